"""AetherPipeline: reconstruct, predict and plan with any checkpoint, on pictures, videos and paths as users have them.

    pipeline = AetherPipeline.from_pretrained("mini")      # or a folder, also of the published checkpoint, or a hub id
    result = pipeline.reconstruct("walk.mp4")              # depth and camera path of a video of any length
    result = pipeline.predict("room.jpg", path=walk_path("forward 1 turn-left 30"))
    result = pipeline.plan("here.png", "there.png")
    result.save("outputs/plan")

What does not fit the checkpoint is resampled, padded or cut into windows, and `result.notes` says so. Poses, axes and
units: see conventions; paths in other axes: `paths.poses_from`, `paths.read_path`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from aether_env.camera import CameraPath, relative_to, scale_poses
from aether_env.devices import check_device
from aether_env.paths import GivenPath
from aether_env.trajectory import smooth_path
from aether_env.videos import Note, OpenVideo, Resampling, VideoFrame, open_video
from aether_env.world_model.aetherv1 import load_aetherv1
from aether_env.world_model.aetherv1_clips import AetherV1Clips
from aether_env.world_model.checkpoint import PROMPT_FILE, SETTINGS_FILE, CheckpointError, load_checkpoint, resolve
from aether_env.world_model.clip_model import ClipModel, ClipResult
from aether_env.world_model.dreams import (
    Dream,
    Wish,
    batch_of,
    checked_raymap,
    checked_seed,
    checked_whole,
    fit_dream,
    rate_for,
    row_of,
    stacked,
)
from aether_env.world_model.long_video import (
    FrameStore,
    JoinedWindows,
    PathLike,
    VideoTruth,
    batches,
    disparity_of,
    given_path,
    intrinsics_of,
    shows_surface,
)
from aether_env.world_model.own_clips import OwnClips
from aether_env.world_model.result import VideoResult, check_replaceable
from aether_env.world_model.windows import FrameWindow, cut, later_seed, windows_of

PathOut = str | os.PathLike[str] | None
"""Where a result goes."""
_PUBLISHED_PARTS = ("transformer", "vae", "scheduler")


class AetherPipeline:
    """A checkpoint and its three tasks.

    Args:
        model: The checkpoint as functions of whole windows: `OwnClips` or `AetherV1Clips`.
    """

    def __init__(self, model: ClipModel):
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "mini",
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        **settings: Any,
    ) -> Self:
        """Load a checkpoint. A folder without aether.json is read as one of the published format.

        Args:
            name: A bundled name, a folder, or a hub id such as "owner/model".
            device: Where the weights go.
            dtype: Of the published checkpoint's weights, default float32; ours are always float32.
            revision: Of a hub id.
            settings: Of `OwnClips` (sigmas, reconstruct_views, reconstruct_refine) or of `AetherV1Clips` (size, steps,
                guidance, progress, fast).

        Raises:
            CheckpointError: There is no such checkpoint, or it can not be used.
            ValueError: A setting that the checkpoint does not have, or a device that is not there.
        """
        check_device(device)
        folder = resolve(name, revision=revision)
        ours = (folder / SETTINGS_FILE).exists()
        known = (
            ("sigmas", "reconstruct_views", "reconstruct_refine")
            if ours
            else ("size", "steps", "guidance", "progress", "fast")
        )
        if foreign := sorted(set(settings) - set(known)):
            raise ValueError(f"{foreign[0]} is no setting of {folder}; it has {', '.join(known)}.")
        if ours:
            if dtype not in (None, torch.float32):
                raise ValueError(f"dtype must be float32 for {folder}, a checkpoint of our own layout, got {dtype}.")
            return cls(OwnClips(load_checkpoint(folder, device), **settings))
        try:
            parts = load_aetherv1(folder, device=device, dtype=dtype or torch.float32)
        except CheckpointError as error:
            lacks = [part for part in (*_PUBLISHED_PARTS, PROMPT_FILE) if not (folder / part).exists()]
            if not lacks:
                raise
            raise CheckpointError(
                f"{error} {folder} has neither {SETTINGS_FILE} nor {', '.join(lacks)}; where the published transformer "
                "is, `aether import-aetherv1` makes a whole folder."
            ) from error
        return cls(AetherV1Clips(parts, **settings))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the checkpoint, so that `from_pretrained` reads it; whatever fails, a folder that was there stays.

        Weights of our own layout are stored as int8 and float16, as in the package; those of the published format as
        they are.
        """
        self.model.save(Path(folder))

    def to(self, device: str | torch.device) -> Self:
        """Move everything to a device."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name: "transformer", "vae", "scheduler" ..."""
        return self.model.components

    @property
    def fps(self) -> float:
        """Frames per second of what is dreamed, unless another rate is asked for."""
        return rate_for(self.model, None)

    def reconstruct(
        self,
        video: Any,
        *,
        path: PathLike | None = None,
        raymap: np.ndarray | None = None,
        depth: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        fps: float | None = None,
        source_fps: float | None = None,
        stride: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        smooth: bool = True,
        resampling: Resampling = "area",
        out: PathOut = None,
        progress: bool = False,
    ) -> VideoResult:
        """Find depth and camera path of a video of any length.

        A video that is longer than a window is looked at in windows that overlap; each is brought to the unit and world
        of those before it by what they share.

        Args:
            video: File, folder of pictures, array (T, H, W, 3) or list of pictures: see `videos.open_video`.
            path: Where it is known, one pose for each frame of the source; a file's camera is taken as the video's.
            raymap: (T, 6, h, w) in place of a path, for those who have one of the public code
                (`raymap.encode_raymap_aetherv1`); only for the published checkpoint and a video of one whole window.
            depth: Metres, where known: (H, W) of the source's first frame, which makes the result metric, or (T, H, W)
                of all its frames; NaN where unknown.
            intrinsics: (3, 3) pixels of the source, where known.
            fps: Frames per second to look at; None takes the checkpoint's nearest to the source's, and every frame of a
                slower source.
            source_fps: Of arrays and pictures, which do not tell.
            stride: Frames between the beginnings of windows; None: half a window.
            batch_size: Windows that are looked at together; None: as many as suit the checkpoint.
            seed: Of the dream.
            smooth: Smooth the path (Kalman filter and RTS smoother), with covariance; a known path is left alone.
            resampling: "public" crops and resizes as AETHER's code does, and the result also has what the model said
                before rounding (`model_rgb`, `model_disparity`), where the video is one window.
            out: Folder for the result. The frames then wait on disk, so that memory does not grow with the video.
            progress: Show a bar.

        Returns:
            The video in the checkpoint's size and rate, with depth and path; saved in `out` where that is given.

        Raises:
            ValueError: An argument that does not fit, before anything is computed; or the video is damaged.
        """
        seed = checked_seed(seed)
        batch_size = self.model.at_once if batch_size is None else checked_whole("batch_size", batch_size, 1)
        longest = self.model.lengths[-1]
        stride = longest // 2 if stride is None else checked_whole("stride", stride, 1, longest - 1)
        _check_out(out)
        known = None if path is None else given_path(path)
        if known is not None:
            intrinsics = _camera_of(video, known, intrinsics, source_fps)
        opened, rate = self._open(video, intrinsics, fps, source_fps, resampling)
        if raymap is not None:
            raymap = checked_raymap(self.model, raymap)
            if known is not None or opened.expected_frames != len(raymap):
                raise ValueError(
                    f"raymap must be given without a path, and the video have its {len(raymap)} frames, got "
                    f"{opened.expected_frames}."
                )
        truth = VideoTruth(opened, known, depth)
        with FrameStore(out) as frames, _sampling_bar(self.model, progress):
            joined = JoinedWindows(frames)
            bar = tqdm(opened, desc="reconstructing", unit="frame", total=opened.expected_frames, disable=not progress)
            windows = windows_of(bar, self.model.lengths, stride)
            for group in batches(windows, batch_size, first_alone=truth.first_depth is not None):
                unit = 1.0 if joined.first is None else float(joined.first.unit)
                found = self._look(group, truth, seed, unit, rate, raymap)
                for row, window in enumerate(group):
                    joined.add(window, found[row])
            return _kept(self._video(joined, truth, stride, smooth, rate), out)

    def _look(
        self,
        group: Sequence[FrameWindow[VideoFrame]],
        truth: VideoTruth,
        seed: int,
        unit: float,
        fps: float,
        raymap: np.ndarray | None,
    ) -> ClipResult:
        """Reconstruct windows of one length together; `unit` is the first window's, in metres."""
        depth, poses = truth.depth_of(group), stacked([truth.poses_of(window.frames) for window in group])
        if poses is not None and depth is None:
            poses = scale_poses(poses, 1 / unit)  # models take metres with depth only
        shown = poses is not None or truth.opened.intrinsics_known
        options = {} if raymap is None else {"raymap": raymap[None]}
        if raymap is not None and len(group) + group[0].start > 1:
            raise ValueError(f"raymap must be of the whole video, which is longer than its {len(raymap)} frames.")
        return self.model.reconstruct(
            np.stack([[frame.rgb for frame in window.frames] for window in group]),
            depth=depth,
            world_from_camera=poses,
            intrinsics=np.stack([window.frames[0].intrinsics for window in group]) if shown else None,
            seeds=[later_seed(seed, window.start) if window.start else seed for window in group],
            fps=fps,
            **options,
        )

    def _video(self, joined: JoinedWindows, truth: VideoTruth, stride: int, smooth: bool, rate: float) -> VideoResult:
        """Return what the windows of a video say together."""
        opened, first = truth.opened, joined.first
        assert first is not None  # a video has a window
        path, intrinsics = joined.finish()
        if opened.intrinsics_known:
            intrinsics = np.stack([frame.intrinsics for frame in joined.source_frames])
        known = truth.poses_of(joined.source_frames)
        if known is not None:
            path = known
        camera, covariance = _camera(path, intrinsics, opened.fps, smooth and known is None)
        cutting = cut(len(path), self.model.lengths, stride)
        found = known is None and not opened.intrinsics_known  # then nothing was assumed of the camera
        notes = [note for note in opened.notes if not (found and note.what == "assumed_fov")]
        if opened.fps < 0.999 * rate:
            text = f"{opened.fps:g} frames a second are looked at as if they were {rate:g}, so that none is repeated."
            notes.append(Note("fps", text, {"from": opened.fps, "to": rate}))
        return VideoResult(
            **joined.frames.arrays(),
            path=camera,
            covariance=covariance,
            **_said(first, len(path), opened.resampling if joined.windows == 1 else None),
            unit=float(first.unit),
            metric=bool(first.metric),
            fps=opened.fps,
            notes=(*notes, *cutting.notes()),
        )

    def predict(
        self,
        image: Any = None,
        *,
        path: Any = None,
        raymap: Any = None,
        num_frames: int | None = None,
        depth: Any = None,
        intrinsics: Any = None,
        fps: float | None = None,
        scene_scale: float = 1.0,
        seed: int | Sequence[int] = 0,
        smooth: bool = True,
        post_reconstruction: bool = False,
        resampling: Resampling = "area",
        out: PathOut = None,
        progress: bool = False,
    ) -> Any:
        """Dream what follows a picture, along a path or along one of the model's own.

        Args:
            image: A picture: path, PIL picture or array (H, W, 3), uint8 or floats in [0, 1]; None dreams from the path
                alone, or from nothing. A list (or array (B, H, W, 3)) is a batch: then path, depth, intrinsics and
                seed may be lists too, one for each, or hold for all.
            path: Where the camera goes, of any length; its first pose is taken as the picture's. In metres where
                `depth` is given, else in units: about how far away near things are.
            raymap: (T, 6, h, w) in place of a path, as in `reconstruct`.
            num_frames: Frames wanted; default the path's, else the longest window. A path is spread over them.
            depth: (H, W) metres of the picture, NaN where unknown; makes the result metric.
            intrinsics: (3, 3) pixels of the picture, where known; with a path 70 degrees are assumed otherwise.
            fps: Frames per second; None takes the checkpoint's.
            scene_scale: Factor on the path's lengths, for paths in other units.
            seed: Of the dream.
            smooth: Smooth a dreamed path, with covariance.
            post_reconstruction: Look at the dreamed video again, and give the depth and path that are found in it, as
                the public demo does.
            resampling: As in `reconstruct`.
            out: Folder for the result, of a single picture.
            progress: Show a bar, where the path is longer than a window or the checkpoint takes many steps.

        Returns:
            A VideoResult, or a list of them for a batch.

        Raises:
            ValueError: An argument that does not fit, before anything is computed.
        """
        return self._dream_all(
            {"image": image, "path": path, "raymap": raymap, "depth": depth, "intrinsics": intrinsics, "seed": seed},
            Wish(num_frames, fps, scene_scale, smooth, post_reconstruction, resampling, progress),
            out,
        )

    def plan(
        self,
        image: Any,
        goal: Any,
        *,
        path: Any = None,
        raymap: Any = None,
        num_frames: int | None = None,
        depth: Any = None,
        goal_depth: Any = None,
        intrinsics: Any = None,
        fps: float | None = None,
        scene_scale: float = 1.0,
        seed: int | Sequence[int] = 0,
        smooth: bool = True,
        post_reconstruction: bool = False,
        resampling: Resampling = "area",
        out: PathOut = None,
        progress: bool = False,
    ) -> Any:
        """Dream the way from a picture to a goal picture, and the camera's path with it.

        Args:
            image: As in `predict`; a batch too.
            goal: What the camera shall see at the end: a picture of any size, or as many as images.
            path: The way, where it is wanted; at most the longest window's length.
            raymap: In place of a path, as in `reconstruct`.
            num_frames: Frames of the plan at least; default the path's, else the longest window. Without a path it has
                the next length that the checkpoint knows.
            depth: (H, W) metres of the image; makes the plan metric.
            goal_depth: (H, W) metres of the goal, only with `depth`, where the checkpoint takes it.
            intrinsics: (3, 3) pixels of the image, where known; the goal is of the same camera.
            fps: As in `predict`, like all that follow.
            scene_scale: Factor on the path's lengths.
            seed: Of the dream: another seed, another way.
            smooth: Smooth a dreamed path, with covariance.
            post_reconstruction: As in `predict`.
            resampling: As in `reconstruct`.
            out: Folder for the result, of a single plan.
            progress: Show a bar, where the checkpoint takes many steps.

        Returns:
            A VideoResult, or a list of them for a batch; `to_poses` gives a robot's poses.

        Raises:
            ValueError: An argument that does not fit, before anything is computed.
        """
        given = {"image": image, "goal": goal, "path": path, "raymap": raymap, "depth": depth, "goal_depth": goal_depth}
        return self._dream_all(
            given | {"intrinsics": intrinsics, "seed": seed},
            Wish(num_frames, fps, scene_scale, smooth, post_reconstruction, resampling, progress),
            out,
        )

    def _open(
        self,
        video: Any,
        intrinsics: np.ndarray | None,
        fps: float | None,
        source_fps: float | None,
        resampling: Resampling,
    ) -> tuple[OpenVideo, float]:
        """Open a video in the checkpoint's size; return it with the frames per second that the model is told.

        Unless a rate is asked for that is the nearest trained one. A slower video keeps its frames: repeated ones would
        be a camera that stops and goes on.
        """
        rate, wanted = rate_for(self.model, fps), fps
        if fps is None:
            own = open_video(video, source_fps=source_fps).source_fps
            rate = min(self.model.rates, key=lambda trained: abs(math.log(trained / own)))
            wanted = None if own < 0.999 * rate else rate
        opened = open_video(
            video, self.model.height, self.model.width, fps=wanted, source_fps=source_fps, intrinsics=intrinsics,
            resampling=resampling,
        )  # fmt: skip
        return opened, rate

    def _dream_all(self, given: dict[str, Any], wish: Wish, out: PathOut) -> Any:
        """Dream one item or a batch; items that are alike are dreamed together."""
        batch = batch_of(given["image"])
        if batch is not None and out is not None:
            raise ValueError("out must be left out for a batch; save each result.")
        _check_out(out)
        rows = [given] if batch is None else [row_of(given, index, batch) for index in range(batch)]
        items = [fit_dream(self.model, row, wish) for row in rows]
        results: dict[int, VideoResult] = {}
        for kind in sorted({item.kind for item in items}):
            of_kind = [index for index, item in enumerate(items) if item.kind == kind]
            for first in range(0, len(of_kind), self.model.at_once):
                numbers = of_kind[first : first + self.model.at_once]
                alike = [items[index] for index in numbers]
                with ExitStack() as stack:
                    stack.enter_context(_sampling_bar(self.model, wish.progress))
                    if alike[0].frames > self.model.lengths[-1]:
                        stores = [stack.enter_context(FrameStore(out)) for _ in alike]
                        found = self._follow(alike, wish, stores, out)
                    else:
                        found = self._dream(alike, wish, out)
                    results |= dict(zip(numbers, [_kept(result, out) for result in found], strict=True))
        return results[0] if batch is None else [results[index] for index in range(batch)]

    def _dream(self, items: Sequence[Dream], wish: Wish, out: PathOut) -> list[VideoResult]:
        """Dream items of one kind, each within a window, together."""
        fps, asked = rate_for(self.model, wish.fps), items[0].frames
        length = next(n for n in self.model.lengths if n >= asked)
        path = stacked([item.path for item in items])
        if path is not None:
            path = np.concatenate([path, np.repeat(path[:, -1:], length - asked, axis=1)], axis=1)
        picture, goal = (stacked([getattr(item, name) for item in items]) for name in ("picture", "goal"))
        options: dict[str, Any] = {
            "depth": stacked([item.depth for item in items]),
            "world_from_camera": path,
            "intrinsics": stacked([item.intrinsics for item in items]),
            "seeds": [item.seed for item in items],
            "fps": fps,
            "num_frames": length,
        }
        if (raymap := stacked([item.raymap for item in items])) is not None:
            options["raymap"] = raymap
        if goal is None:
            clip = self.model.predict(picture, **options)
        else:
            assert picture is not None  # checked with the item
            clip = self.model.plan(picture, goal, goal_depth=stacked([item.goal_depth for item in items]), **options)
        kept = length if goal is not None and path is None else asked  # the goal is at the end of the window
        results = []
        for row, item in enumerate(items):
            found, smoothed = clip[row], wish.smooth and path is None
            # A dream is of one camera: the median of what its frames say is steadier than each.
            matrix = np.median(found.intrinsics, axis=0) if item.intrinsics is None else item.intrinsics
            camera, covariance = _camera(found.world_from_camera[:kept], matrix, fps, smoothed)
            result = VideoResult(
                rgb=found.rgb[:kept],
                depth=found.depth[:kept],
                disparity=disparity_of(found.depth[:kept]),
                path=camera,
                covariance=covariance,
                **_said(found, kept, wish.resampling),
                unit=float(found.unit),
                metric=bool(found.metric),
                fps=fps,
                notes=item.notes + _length_notes(asked, length, kept),
            )
            results.append(self._looked_at_again(result, item, wish, out) if wish.post_reconstruction else result)
        return results

    def _follow(
        self, items: Sequence[Dream], wish: Wish, stores: Sequence[FrameStore], out: PathOut
    ) -> list[VideoResult]:
        """Dream along paths of one length that are longer than a window, together."""
        picture, path, intrinsics, depth = (
            stacked([getattr(item, name) for item in items]) for name in ("picture", "path", "intrinsics", "depth")
        )
        assert picture is not None and path is not None and intrinsics is not None  # checked with the items
        fps, frames, longest = rate_for(self.model, wish.fps), items[0].frames, self.model.lengths[-1]
        seeds = [item.seed for item in items]
        pieces = self.model.follow(
            picture, world_from_camera=path, intrinsics=intrinsics, depth=depth, seeds=seeds, fps=fps
        )
        with tqdm(total=frames, desc="dreaming", unit="frame", disable=not wish.progress) as bar:
            for piece in pieces:
                for row, store in enumerate(stores):
                    store.add(piece.rgb[row], piece.depth[row])
                bar.update(piece.rgb.shape[1])
        text = f"{frames} frames are more than the {longest} of a window: each part goes on from the one before."
        notes = (Note("windowed", text, {"frames": frames, "length": longest}),)
        results = []
        for item, store in zip(items, stores, strict=True):
            assert item.path is not None and item.intrinsics is not None
            result = VideoResult(
                **store.arrays(),
                path=CameraPath(item.path, item.intrinsics),
                unit=1.0 if item.depth is None else float(self.model.units(item.depth[None])[0]),
                metric=item.depth is not None and shows_surface(item.depth),
                fps=fps,
                notes=item.notes + notes,
            )
            results.append(self._looked_at_again(result, item, wish, out) if wish.post_reconstruction else result)
        return results

    def _looked_at_again(self, dream: VideoResult, item: Dream, wish: Wish, out: PathOut) -> VideoResult:
        """Return a dream with the depth and the path that are found in its pictures."""
        found = self.reconstruct(
            dream.rgb,
            source_fps=dream.fps,
            fps=dream.fps,
            depth=item.depth if dream.metric else None,
            intrinsics=dream.path.intrinsics[0],
            smooth=wish.smooth,
            out=out,  # where it is replaced by the whole result
            progress=wish.progress,
        )
        text = "Depth and path were found by looking at the dreamed video again."
        return replace(found, notes=(*dream.notes, Note("post_reconstruction", text)))


def _check_out(out: PathOut) -> None:
    """Refuse a folder that a result cannot replace, before hours are spent on the result."""
    if out is not None:
        check_replaceable(Path(out).resolve())


def _camera_of(
    video: Any, path: GivenPath, intrinsics: np.ndarray | None, source_fps: float | None
) -> np.ndarray | None:
    """Return the intrinsics of a video: those that are given, else those that come with its path."""
    size = open_video(video, source_fps=source_fps).source_size
    of_path = intrinsics_of(replace(path, picture_size=path.picture_size or size), *size)
    if of_path is not None and intrinsics is not None:
        raise ValueError("intrinsics must be given or be in the path's file, not both.")
    return intrinsics if of_path is None else of_path


@contextmanager
def _sampling_bar(model: ClipModel, show: bool) -> Iterator[None]:
    """Show a bar while a model takes its steps; a callback of the user's own goes before."""
    if not show or model.progress is not None:
        yield
        return
    bar = None

    def tell(done: int, total: int) -> None:
        nonlocal bar
        if bar is None or done == 1:
            bar = tqdm(total=total, desc="sampling", unit="step", leave=False)
        bar.update()
        if done == total:
            bar.close()

    model.progress = tell
    try:
        yield
    finally:
        model.progress = None


def _kept(result: VideoResult, out: PathOut) -> VideoResult:
    """Save a result where that is wanted."""
    if out is not None:
        result.save(out)
    return result


def _camera(
    poses: np.ndarray, intrinsics: np.ndarray, fps: float, smooth: bool
) -> tuple[CameraPath, np.ndarray | None]:
    """Return a path relative to its first pose, and its covariance where it was smoothed."""
    if not smooth:
        return CameraPath(relative_to(poses, poses[:1]), intrinsics), None
    smoothed = smooth_path(poses, rate_hz=fps).from_first()
    return CameraPath(smoothed.world_from_camera, intrinsics), smoothed.covariance


def _said(found: ClipResult, kept: int, resampling: Resampling | None) -> dict[str, Any]:
    """Return what the model itself said of the frames of one window; nothing of joined ones (None)."""
    if resampling is None:
        return {}
    said = {"raymap": found.raymap[:kept]}
    if resampling == "public" and found.model_rgb is not None and found.model_disparity is not None:
        said["model_rgb"] = found.model_rgb[:kept].movedim(1, -1).cpu().numpy()
        said["model_disparity"] = found.model_disparity[:kept].cpu().numpy()
    return said


def _length_notes(asked: int, length: int, kept: int) -> tuple[Note, ...]:
    """Return what a user should know of a window that is longer than what was asked for."""
    if asked == length:
        return ()
    if kept == length:
        text = f"{asked} frames were asked for; a plan of {length} was made, the next length that the model knows."
    else:
        text = f"{asked} frames are fewer than the {length} of a window: what was dreamed after them is dropped."
    return (Note("padded", text, {"frames": asked, "length": length}),)
