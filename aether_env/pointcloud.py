"""RGB-D pictures with cameras to coloured points, and points with a camera path to GLB or PLY files, numpy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aether_env.camera import check_intrinsics, check_poses

if TYPE_CHECKING:
    import trimesh

_GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0])
_START_COLOUR, _END_COLOUR = np.array([40, 120, 255]), np.array([255, 90, 40])


def unproject_depth(depth: np.ndarray, intrinsics: np.ndarray, world_from_camera: np.ndarray) -> np.ndarray:
    """Return the point that each pixel's centre sees.

    Args:
        depth: (..., H, W) z-depth.
        intrinsics: (..., 3, 3) pixels of (H, W).
        world_from_camera: (..., 4, 4).

    Returns:
        (..., H, W, 3) in the poses' world and the depth's unit.

    Raises:
        ValueError: Depth without rows and columns, poses that are not rigid, or intrinsics of a wrong shape.
    """
    depth = np.asarray(depth)
    if depth.ndim < 2:
        raise ValueError(f"depth must have shape (..., H, W), got {depth.shape}.")
    k = check_intrinsics("intrinsics", intrinsics)[..., None, None]
    pose = check_poses("world_from_camera", world_from_camera)
    height, width = depth.shape[-2:]
    y = (np.arange(height)[:, None] + 0.5 - k[..., 1, 2, :, :]) / k[..., 1, 1, :, :]
    x = (np.arange(width) + 0.5 - k[..., 0, 2, :, :] - k[..., 0, 1, :, :] * y) / k[..., 0, 0, :, :]
    ray = np.stack(np.broadcast_arrays(x, y, 1.0), axis=-1)
    turned = np.einsum("...ij,...hwj->...hwi", pose[..., :3, :3], ray)
    return depth[..., None] * turned + pose[..., None, None, :3, 3]


def depth_edges(depth: np.ndarray, tolerance: float = 0.05) -> np.ndarray:
    """Return where depth jumps, so that no points hang between a thing and what is behind it.

    Disparity is linear on every plane, however slanted, so its second difference is small but at edges.

    Args:
        depth: (..., H, W) positive z-depth.
        tolerance: Second difference of disparity, relative to the disparity, above which a pixel is an edge.

    Returns:
        (..., H, W) bool.

    Raises:
        ValueError: Depth without rows and columns, or a tolerance that is not positive.
    """
    depth = np.asarray(depth, np.float64)
    if depth.ndim < 2:
        raise ValueError(f"depth must have shape (..., H, W), got {depth.shape}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}.")
    disparity = 1 / np.maximum(depth, 1e-9)
    bend = np.zeros_like(disparity)
    bend[..., 1:-1, :] = np.abs(np.diff(disparity, n=2, axis=-2))
    bend[..., :, 1:-1] = np.maximum(bend[..., :, 1:-1], np.abs(np.diff(disparity, n=2, axis=-1)))
    return bend > tolerance * disparity


def write_points(
    path: str | os.PathLike[str],
    points: np.ndarray,
    colours: np.ndarray,
    *,
    world_from_camera: np.ndarray | None = None,
    intrinsics: np.ndarray | None = None,
    image_hw: tuple[int, int] | None = None,
    frustum_depth: float | None = None,
) -> Path:
    """Write coloured points, and a camera path as a line with frusta, to a GLB or PLY file.

    GLB turns OpenCV axes into those of glTF (y up), so that viewers show the scene upright. PLY holds points only and
    keeps the axes; there the path becomes points. The file appears under its name only when it is complete.

    Args:
        path: Ends in .glb or .ply; missing folders are made.
        points: (N, 3); points that are not finite are left out.
        colours: (N, 3) uint8.
        world_from_camera: (T, 4, 4) of the path, or None.
        intrinsics: (3, 3) or (T, 3, 3) for the shape of the frusta; None draws 60 degrees.
        image_hw: Height and width that the intrinsics belong to.
        frustum_depth: Depth of the frusta; None takes a fiftieth of the points' extent.

    Returns:
        The path written.

    Raises:
        ValueError: Unknown ending, wrong shapes, poses that are not rigid, or intrinsics without `image_hw`.
    """
    path = Path(path)
    if path.suffix.lower() not in (".glb", ".ply"):
        raise ValueError(f"path must end in .glb or .ply, got {path.name!r}.")
    points, colours = np.asarray(points, np.float64), np.asarray(colours)
    if points.ndim != 2 or points.shape[-1] != 3 or colours.shape != points.shape:
        raise ValueError(f"points and colours must both be (N, 3), got {points.shape} and {colours.shape}.")
    if colours.dtype != np.uint8:
        raise ValueError(f"colours must be uint8 in 0..255, got {colours.dtype}.")
    if (intrinsics is None) != (image_hw is None):
        raise ValueError("intrinsics and image_hw belong together: give both or neither.")
    finite = np.isfinite(points).all(-1)
    points, colours = points[finite], colours[finite]
    if len(points) == 0:
        raise ValueError("points holds no finite point; nothing to write.")
    lines, line_colours = np.zeros((0, 2, 3)), np.zeros((0, 3), np.uint8)
    if world_from_camera is not None:
        poses = check_poses("world_from_camera", world_from_camera).reshape(-1, 4, 4)
        depth = frustum_depth or max(float(np.ptp(points, axis=0).max()), 1e-6) / 50
        lines, line_colours = _camera_lines(poses, _corner_rays(intrinsics, image_hw, len(poses)) * depth)
    encode = _as_glb if path.suffix.lower() == ".glb" else _as_ply
    data = encode(points, colours, lines, line_colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _corner_rays(intrinsics: np.ndarray | None, image_hw: tuple[int, int] | None, count: int) -> np.ndarray:
    """Return (T, 4, 3) rays with z = 1 through the picture's corners, in camera axes."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    if intrinsics is None or image_hw is None:
        half = np.tan(np.deg2rad(30))
        xy = (corners * 2 - 1) * np.array([half, half * 2 / 3])
        return np.broadcast_to(np.concatenate([xy, np.ones((4, 1))], -1), (count, 4, 3))
    k = np.broadcast_to(check_intrinsics("intrinsics", intrinsics), (count, 3, 3))
    pixels = np.concatenate([corners * np.array([image_hw[1], image_hw[0]]), np.ones((4, 1))], -1)
    return np.swapaxes(np.linalg.solve(k, np.broadcast_to(pixels.T, (count, 3, 4))), -1, -2)


def _camera_lines(poses: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return segments (S, 2, 3) of the path and of a frustum at every pose, and their colours (S, 3)."""
    centre = poses[:, :3, 3]
    corner = np.einsum("tij,tkj->tki", poses[:, :3, :3], corners) + centre[:, None]
    sides = np.stack([np.broadcast_to(centre[:, None], corner.shape), corner], axis=-2)
    rims = np.stack([corner, np.roll(corner, -1, axis=1)], axis=-2)
    way = np.stack([centre, np.concatenate([centre[1:], centre[-1:]])], axis=-2)[:, None]
    lines = np.concatenate([sides, rims, way], axis=1)
    late = np.linspace(0, 1, len(poses))[:, None]
    colours = ((1 - late) * _START_COLOUR + late * _END_COLOUR).round().astype(np.uint8)
    return lines.reshape(-1, 2, 3), np.repeat(colours, lines.shape[1], axis=0)


def _as_glb(points: np.ndarray, colours: np.ndarray, lines: np.ndarray, line_colours: np.ndarray) -> bytes:
    import trimesh

    scene = trimesh.Scene()
    scene.add_geometry(_cloud(points @ _GLTF_FROM_OPENCV, colours), geom_name="points")
    if len(lines):
        entities = [
            trimesh.path.entities.Line([2 * i, 2 * i + 1], color=(*colour, 255))
            for i, colour in enumerate(line_colours.tolist())
        ]
        vertices = lines.reshape(-1, 3) @ _GLTF_FROM_OPENCV
        scene.add_geometry(trimesh.path.Path3D(entities, vertices, process=False), geom_name="cameras")
    return bytes(scene.export(file_type="glb"))


def _as_ply(points: np.ndarray, colours: np.ndarray, lines: np.ndarray, line_colours: np.ndarray) -> bytes:
    along = np.linspace(0, 1, 20)[:, None]
    dots = (lines[:, :1] * (1 - along) + lines[:, 1:] * along).reshape(-1, 3)
    dot_colours = np.repeat(line_colours, len(along), axis=0)
    cloud = _cloud(np.concatenate([points, dots]), np.concatenate([colours, dot_colours]))
    return bytes(cloud.export(file_type="ply"))


def _cloud(points: np.ndarray, colours: np.ndarray) -> trimesh.PointCloud:
    import trimesh

    return trimesh.PointCloud(points, colors=np.column_stack([colours, np.full(len(colours), 255, np.uint8)]))
