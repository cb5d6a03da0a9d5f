"""Draws views of scenes with mujoco-warp's ray tracer: the same kernels on CPU and GPU.

The colours are traced at `supersample` times the size and averaged; depth and segmentation are traced at the pixel
centres themselves, so depth belongs exactly to the ray through (column + 0.5, row + 0.5).
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import mujoco
import numpy as np
import torch
import warp as wp


def _start_warp() -> None:
    """Start warp in silence.

    Without an NVIDIA driver its library writes a warning straight to the process's error output; no setting stops it.
    """
    wp.config.log_level = wp.LOG_ERROR
    if torch.cuda.is_available():
        wp.init()
        return
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no error output to keep quiet
        wp.init()
        return
    try:
        os.dup2(nowhere, 2)
        wp.init()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_start_warp()  # before mujoco_warp, whose import would start it

import mujoco_warp  # noqa: E402
from mujoco_warp._src.bvh import compute_bvh_group_roots  # noqa: E402

from aether_env.conventions import FAR_DEPTH  # noqa: E402
from aether_env.sim.scenes import FIRST_MOVER, NUM_LIGHTS, SHAPES, Scenes  # noqa: E402
from aether_env.sim.textures import SKY_SIZE, skies, texture_bank  # noqa: E402

_HORIZON = 1000.0
"""Surfaces farther than this are not drawn, in metres."""


@wp.kernel(enable_backward=False)
def _collect(
    colours: wp.array2d[wp.uint32],
    depths: wp.array2d[wp.float32],
    shapes: wp.array2d[wp.vec2i],
    num_clips: int,
    supersample: int,
    far: float,
    rgb: wp.array4d[wp.uint8],
    depth: wp.array4d[wp.float32],
    segmentation: wp.array4d[wp.int16],
):
    """Average the colours and sort views (time before clip) into the output (clip before time)."""
    view, row, column = wp.tid()
    clip = view % num_clips
    time = view // num_clips
    width = depth.shape[3]
    red = int(0)  # noqa: UP018 - warp's way to say that a loop changes it
    green = int(0)  # noqa: UP018
    blue = int(0)  # noqa: UP018
    for i in range(supersample):
        for j in range(supersample):
            packed = colours[view, (row * supersample + i) * width * supersample + column * supersample + j]
            red += int((packed >> wp.uint32(16)) & wp.uint32(255))
            green += int((packed >> wp.uint32(8)) & wp.uint32(255))
            blue += int(packed & wp.uint32(255))
    count = supersample * supersample
    rgb[clip, time, row, 3 * column + 0] = wp.uint8((red + count // 2) // count)
    rgb[clip, time, row, 3 * column + 1] = wp.uint8((green + count // 2) // count)
    rgb[clip, time, row, 3 * column + 2] = wp.uint8((blue + count // 2) // count)
    metres = depths[view, row * width + column]
    if metres <= 0.0 or metres > far:
        metres = far
    depth[clip, time, row, column] = metres
    segmentation[clip, time, row, column] = wp.int16(shapes[view, row * width + column][0])


class Renderer:
    """Holds what the ray tracer keeps on one device for one picture size; reused from call to call."""

    def __init__(
        self,
        *,
        height: int,
        width: int,
        device: str | torch.device,
        supersample: int = 2,
        shadows: bool = True,
        capacity: int = 64,
    ) -> None:
        """Allocate for up to `capacity` views at once.

        Args:
            height: Rows of the pictures.
            width: Columns of the pictures.
            device: A torch device, "cpu" or "cuda:0".
            supersample: Colour samples along each side of a pixel.
            shadows: Whether lights cast shadows.
            capacity: Views drawn at once; memory grows with it.
        """
        self.height, self.width, self.supersample, self.capacity = height, width, supersample, capacity
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._warp_device = wp.device_from_torch(self.device)
        with wp.ScopedDevice(self._warp_device):
            host_model = _template()
            self._model: Any = mujoco_warp.put_model(host_model)
            self._data: Any = mujoco_warp.make_data(host_model, nworld=capacity, nconmax=1, njmax=1)
            self._context: Any = mujoco_warp.create_render_context(
                host_model,
                nworld=capacity,
                cam_active=["depth", "colour"] if supersample > 1 else ["depth"],
                cam_res=[(width, height), (width * supersample, height * supersample)][: 1 + (supersample > 1)],
                # One camera does it all where colours need no finer one.
                render_rgb=[False, True] if supersample > 1 else [True],
                render_depth=[True, False] if supersample > 1 else [True],
                render_seg=[True, False] if supersample > 1 else [True],
                use_shadows=shadows,
                use_precomputed_rays=False,
                render_skybox=True,
                enable_emission=False,
            )
            surfaces, edges = texture_bank().levels(), wp.TextureAddressMode
            # The template knows two dummy textures; the real ones take their place.
            self._textures = [_device_texture(picture, edges.WRAP) for picture in surfaces]
            self._textures += [_device_texture(picture, edges.CLAMP) for picture in skies()]
            self._context.textures_registry = self._textures
            self._context.textures = wp.array(self._textures, dtype=wp.Texture2D)
            self._context.skybox_face_width = wp.array([SKY_SIZE], dtype=int)
            self._first_sky = len(surfaces)
            if self._warp_device.is_cuda:  # rebuilding on a GPU stays with the constructor that the GPU has
                context = self._context
                context.bvh = wp.Bvh(context.lower, context.upper, groups=context.group, constructor="lbvh")
                context.bvh_id = context.bvh.id
            wp.synchronize_device(self._warp_device)

    def draw(
        self,
        scenes: Scenes,
        mover_pose: torch.Tensor,
        scene_from_camera: torch.Tensor,
        *,
        rgb: torch.Tensor,
        depth: torch.Tensor,
        segmentation: torch.Tensor,
    ) -> None:
        """Draw N x T views, at most `capacity`, into the given contiguous tensors.

        Args:
            scenes: N scenes.
            mover_pose: (N, T, M, 7) positions and quaternions of the movers, scene axes.
            scene_from_camera: (N, T, 4, 4), OpenCV camera axes.
            rgb: (N, T, H, W, 3) uint8, written.
            depth: (N, T, H, W) float32 metres, FAR_DEPTH where nothing is hit, written.
            segmentation: (N, T, H, W) int16 shape number, -1 for the sky, written.
        """
        num_clips, num_frames = mover_pose.shape[:2]
        num_views = num_clips * num_frames
        assert num_views <= self.capacity
        with wp.ScopedDevice(self._warp_device), self._torch_stream():
            self._set_scenes(scenes)
            self._set_views(mover_pose, scene_from_camera)
            self._build_tree()
            mujoco_warp.render(self._model, self._data, self._context)
            wp.launch(
                _collect,
                dim=(num_views, self.height, self.width),
                inputs=[
                    self._context.rgb_data,
                    self._context.depth_data,
                    self._context.seg_data,
                    num_clips,
                    self.supersample,
                    FAR_DEPTH,
                    wp.from_torch(rgb.flatten(-2)),
                    wp.from_torch(depth),
                    wp.from_torch(segmentation),
                ],
            )

    def _torch_stream(self) -> Any:
        """Run warp on torch's current stream, so that neither reads what the other has not written yet."""
        if self._warp_device.is_cuda:
            return wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(self.device)))
        return nullcontext()

    def _upload(self, array: np.ndarray, dtype: torch.dtype, warp_dtype: Any) -> wp.array:
        tensor = torch.as_tensor(np.ascontiguousarray(array)).to(dtype).to(self.device).contiguous()
        return wp.from_torch(tensor, dtype=warp_dtype)

    def _set_scenes(self, scenes: Scenes) -> None:
        """Set what belongs to a scene; the tracer looks up row `view % N`, and views are sorted time before clip."""
        model, f32, i32 = self._model, torch.float32, torch.int32
        rgba = np.concatenate([scenes.tint, scenes.visible[..., None]], axis=-1)
        texture_ids = np.full((*scenes.texture.shape, model.mat_texid.shape[2]), -1)
        texture_ids[..., int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = scenes.texture
        model.geom_size = self._upload(scenes.size, f32, wp.vec3)
        model.geom_rgba = self._upload(rgba, f32, wp.vec4)
        model.mat_texid = self._upload(texture_ids, i32, wp.int32)
        model.mat_texrepeat = self._upload(scenes.repeat, f32, wp.vec2)
        model.mat_specular = self._upload(scenes.gloss, f32, wp.float32)
        model.light_type = self._upload(scenes.light_type, i32, wp.int32)
        model.light_active = self._upload(scenes.light_on, torch.bool, wp.bool)
        model.light_castshadow = self._upload(scenes.light_shadow, torch.bool, wp.bool)
        model.light_diffuse = self._upload(scenes.light_diffuse, f32, wp.vec3)
        model.light_ambient = self._upload(scenes.light_ambient, f32, wp.vec3)
        model.light_specular = self._upload(0.5 * scenes.light_diffuse, f32, wp.vec3)
        model.light_attenuation = self._upload(scenes.light_attenuation, f32, wp.vec3)
        half_height = np.tan(scenes.horizontal_fov / 2) * self.height / self.width
        fovy = np.rad2deg(2 * np.arctan(half_height))
        model.cam_fovy = self._upload(np.stack([fovy, fovy], axis=-1), f32, wp.float32)
        self._context.skybox_tex_id = self._upload(self._first_sky + scenes.sky, i32, wp.int32)
        self._position, self._rotation, self._light_position, self._light_direction = (
            torch.as_tensor(values).to(self.device, f32)
            for values in (scenes.position, scenes.rotation, scenes.light_position, scenes.light_direction)
        )

    def _set_views(self, mover_pose: torch.Tensor, scene_from_camera: torch.Tensor) -> None:
        """Set what belongs to a view; kinematics are not needed, since nothing but the movers moves."""
        data, (num_clips, num_frames) = self._data, mover_pose.shape[:2]
        data.nworld = num_clips * num_frames

        def by_time(tensor: torch.Tensor, warp_dtype: Any) -> wp.array:
            return wp.from_torch(tensor.transpose(0, 1).flatten(0, 1).contiguous(), dtype=warp_dtype)

        def all_times(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[:, None].expand(-1, num_frames, *tensor.shape[1:])

        pose = mover_pose.to(self.device, torch.float32).repeat_interleave(3, dim=2)
        statics = slice(0, FIRST_MOVER)
        position = torch.cat([all_times(self._position[:, statics]), pose[..., :3]], dim=2)
        rotation = torch.cat([all_times(self._rotation[:, statics]), _quaternion_matrix(pose[..., 3:])], dim=2)
        camera = scene_from_camera.to(self.device, torch.float32)[:, :, None].expand(-1, -1, 2, 4, 4)
        opengl = torch.tensor([1.0, -1.0, -1.0], device=self.device)
        data.geom_xpos = by_time(position, wp.vec3)
        data.geom_xmat = by_time(rotation, wp.mat33)
        data.cam_xpos = by_time(camera[..., :3, 3], wp.vec3)
        data.cam_xmat = by_time(camera[..., :3, :3] * opengl, wp.mat33)
        data.light_xpos = by_time(all_times(self._light_position), wp.vec3)
        data.light_xdir = by_time(all_times(self._light_direction), wp.vec3)

    def _build_tree(self) -> None:
        """Sort the shapes of every view anew: a refitted tree of other scenes' shapes would be twice as slow."""
        mujoco_warp.refit_bvh(self._model, self._data, self._context)
        self._context.bvh.rebuild()
        wp.launch(
            compute_bvh_group_roots,
            dim=self.capacity,
            inputs=[self._context.bvh.id],
            outputs=[self._context.group_root],
        )


def _quaternion_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Return rotation matrices (..., 3, 3) of unit quaternions (..., 4), w first."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _template() -> mujoco.MjModel:
    """Return the one model whose fields every scene fills in: shapes, a material each, two cameras, lights."""
    spec = mujoco.MjSpec()
    spec.stat.extent = 1.0
    spec.visual.map.znear, spec.visual.map.zfar = 0.01, _HORIZON
    spec.visual.headlight.active = 0
    for name, kind in (("surface", mujoco.mjtTexture.mjTEXTURE_2D), ("sky", mujoco.mjtTexture.mjTEXTURE_SKYBOX)):
        spec.add_texture(name=name, type=kind, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT, width=8, height=8)
    for shape, kind in enumerate(SHAPES):
        material = spec.add_material(name=f"shape{shape}", texuniform=bool(kind == 0), rgba=[0.5, 0.5, 0.5, 1])
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "surface"
        # Scattered, so that the tracer's tree has a sensible order to start from.
        spread = np.random.Generator(np.random.PCG64(shape)).uniform(-3, 3, size=3)
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom(int(kind)),
            size=[0.1, 0.1, 0.1],
            pos=spread,
            material=f"shape{shape}",
            contype=0,
            conaffinity=0,
        )
    for light in range(NUM_LIGHTS):
        spec.worldbody.add_light(
            pos=[0, 0, 2 + light], attenuation=[1, 0, 0.01], type=mujoco.mjtLightType.mjLIGHT_POINT
        )
    for name in ("depth", "colour"):
        spec.worldbody.add_camera(name=name)
    return spec.compile()


def _device_texture(picture: np.ndarray, edge: wp.TextureAddressMode) -> wp.Texture2D:
    rgba = np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1).astype(np.float32) / 255
    return wp.Texture2D(rgba, filter_mode=wp.TextureFilterMode.LINEAR, address_mode=edge)
