"""The commands `aether reconstruct`, `predict` and `plan`; PyTorch is loaded after the arguments are read."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image

from aether_env.camera import Axes, Kind

if TYPE_CHECKING:
    from aether_env.paths import GivenPath
    from aether_env.world_model.pipeline import AetherPipeline
    from aether_env.world_model.result import VideoResult

OUTPUTS = Path("outputs")
"""Where results go unless --out says otherwise."""

_Video = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
_Image = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
_Goal = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="GOAL")]


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint, and where."""

    model: str = "mini"
    """A bundled name, a folder or a hub id."""
    device: str = "cpu"
    """"cpu", "cuda", "cuda:1" ..."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the published checkpoint's weights, default float32; bfloat16 is for GPUs."""
    steps: int | None = None
    """Sampling steps, of the published checkpoint only."""
    fast: bool = False
    """Compile the published checkpoint: pays from the second window on."""

    def load(self) -> AetherPipeline:
        """Return the pipeline."""
        import torch

        from aether_env.world_model.pipeline import AetherPipeline

        settings: dict[str, Any] = {"steps": self.steps} if self.steps is not None else {}
        settings |= {"fast": True} if self.fast else {}
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return AetherPipeline.from_pretrained(self.model, self.device, dtype=dtype, **settings)


@dataclass(frozen=True)
class WayOptions:
    """Where the camera shall go."""

    path: Path | None = None
    """Where the camera goes: TUM, KITTI, JSON (nerfstudio too), .npy or .npz. None of both: the model chooses."""
    walk: str | None = None
    """The same in words, such as "forward 1 turn-left 30": metres where depth is given, else units (how far away near
    things are), and degrees."""
    axes: Axes | None = None
    """Of the path; default as its format has them, else opencv."""
    kind: Kind = "camera_to_world"
    """Of the path's poses."""
    scene_scale: float = 1.0
    """Factor on the path's lengths."""

    def read(self, fps: float) -> Any:
        """Return the path, None where the model shall choose."""
        from aether_env.paths import walk_path

        if self.path is not None and self.walk is not None:
            raise ValueError("path and walk must not both be given; each says where the camera goes.")
        if self.walk is not None:
            return walk_path(self.walk, fps=fps)
        return None if self.path is None else _read_path(self.path, self.axes, self.kind)


_Model = Annotated[ModelOptions, tyro.conf.OmitArgPrefixes]
_Way = Annotated[WayOptions, tyro.conf.OmitArgPrefixes]


def reconstruct(
    video: _Video,
    out: Path | None = None,
    depth: Path | None = None,
    depth_scale: float = 1000.0,
    path: Path | None = None,
    axes: Axes | None = None,
    kind: Kind = "camera_to_world",
    horizontal_fov: float | None = None,
    fps: float | None = None,
    source_fps: float | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    smooth: bool = True,
    checkpoint: _Model = ModelOptions(),  # noqa: B008 (frozen)
) -> None:
    """Find depth and camera path of a video.

    Example: aether reconstruct walk.mp4 --out outputs/walk

    Args:
        video: Video file, or folder of numbered pictures; of any length, size and rate.
        out: Folder for the result; default outputs/reconstruct-NAME.
        depth: Depth of the first frame or of all: .npy in metres, or a 16-bit .png of the first.
        depth_scale: Levels of a .png for one metre.
        path: The camera's path, where it is known: TUM, KITTI, JSON, .npy or .npz, one pose for each frame.
        axes: Of that path; default as its format has them, else opencv.
        kind: Of that path's poses.
        horizontal_fov: Degrees that the pictures span from left to right, where known.
        fps: Frames per second to look at.
        source_fps: Of a folder of pictures.
        stride: Frames between the beginnings of windows.
        batch_size: Windows that are looked at together.
        seed: Of the dream.
        smooth: Smooth the path that is found.
        checkpoint: Which one, and where.
    """
    given = None if path is None else _read_path(path, axes, kind)
    target = out or OUTPUTS / f"reconstruct-{video.stem}"
    with _told_warnings():
        result = checkpoint.load().reconstruct(
            video,
            path=given,
            depth=_read_depth(depth, depth_scale),
            intrinsics=_intrinsics_of_video(video, horizontal_fov, source_fps),
            fps=fps,
            source_fps=source_fps,
            stride=stride,
            batch_size=batch_size,
            seed=seed,
            smooth=smooth,
            out=target,
            progress=True,
        )
    _say(result, target)


def predict(
    image: _Image,
    way: _Way = WayOptions(),  # noqa: B008 (frozen)
    out: Path | None = None,
    depth: Path | None = None,
    depth_scale: float = 1000.0,
    horizontal_fov: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    seed: int = 0,
    smooth: bool = True,
    post_reconstruction: bool = False,
    checkpoint: _Model = ModelOptions(),  # noqa: B008 (frozen)
) -> None:
    """Dream what a camera sees that goes on from a picture.

    Example: aether predict room.jpg --walk "forward 1 turn-left 30"

    Args:
        image: The picture.
        way: Where the camera goes.
        out: Folder for the result; default outputs/predict-NAME.
        depth: Of the picture: .npy in metres or 16-bit .png.
        depth_scale: Levels of a .png for one metre.
        horizontal_fov: Degrees that the picture spans from left to right; 70 are assumed.
        num_frames: Frames of the dream; default what the path has.
        fps: Frames per second.
        seed: Of the dream.
        smooth: Smooth a path that the model chose.
        post_reconstruction: Look at the dream again, and give depth and path that are found in it.
        checkpoint: Which one, and where.
    """
    _dream({"image": image}, way, checkpoint, out or OUTPUTS / f"predict-{image.stem}", depth, depth_scale,
        horizontal_fov, num_frames=num_frames, fps=fps, seed=seed, smooth=smooth,
        post_reconstruction=post_reconstruction,
    )  # fmt: skip


def plan(
    image: _Image,
    goal: _Goal,
    way: _Way = WayOptions(),  # noqa: B008 (frozen)
    out: Path | None = None,
    depth: Path | None = None,
    depth_scale: float = 1000.0,
    horizontal_fov: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    seed: int = 0,
    smooth: bool = True,
    post_reconstruction: bool = False,
    checkpoint: _Model = ModelOptions(),  # noqa: B008 (frozen)
) -> None:
    """Dream the way from a picture to a goal picture, and the camera path with it.

    Example: aether plan here.png there.png

    Args:
        image: What the camera sees.
        goal: What it shall see.
        way: The way, where it is wanted.
        out: Folder for the result; default outputs/plan-NAME-GOAL.
        depth: Of the image: .npy in metres or 16-bit .png; makes the plan metric.
        depth_scale: Levels of a .png for one metre.
        horizontal_fov: Degrees that the pictures span from left to right, where known.
        num_frames: Frames of the plan at least: the checkpoint's next length.
        fps: Frames per second.
        seed: Of the dream: another seed, another way.
        smooth: Smooth the path that is dreamed.
        post_reconstruction: Look at the dream again, and give depth and path that are found in it.
        checkpoint: Which one, and where.
    """
    _dream({"image": image, "goal": goal}, way, checkpoint, out or OUTPUTS / f"plan-{image.stem}-{goal.stem}", depth,
        depth_scale, horizontal_fov, num_frames=num_frames, fps=fps, seed=seed, smooth=smooth,
        post_reconstruction=post_reconstruction,
    )  # fmt: skip


def _dream(
    pictures: dict[str, Any],
    way: WayOptions,
    checkpoint: ModelOptions,
    out: Path,
    depth: Path | None,
    depth_scale: float,
    horizontal_fov: float | None,
    **wishes: Any,
) -> None:
    """Predict, or plan where there is a goal."""
    with _told_warnings():
        way.read(12.0)  # mistakes show before the model is loaded
        known = _read_depth(depth, depth_scale)
        intrinsics = _intrinsics_of_picture(pictures["image"], horizontal_fov)
        pipeline = checkpoint.load()
        task = pipeline.plan if "goal" in pictures else pipeline.predict
        result = task(
            **pictures, path=way.read(wishes["fps"] or pipeline.fps), scene_scale=way.scene_scale, depth=known,
            intrinsics=intrinsics, out=out, progress=True, **wishes,
        )  # fmt: skip
    _say(result, out)


def _read_path(path: Path, axes: Axes | None, kind: Kind) -> GivenPath:
    from aether_env.paths import read_path

    return read_path(path, axes=axes, kind=kind)


def _read_depth(path: Path | None, scale: float) -> np.ndarray | None:
    """Return depth in metres, (H, W) or (T, H, W); 0 and NaN are unknown."""
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"depth: there is no file '{path}'.")
    if not 0 < scale < math.inf:
        raise ValueError(f"depth_scale must be positive and finite, got {scale}.")
    try:
        if path.suffix == ".npy":
            return np.lib.format.open_memmap(path, mode="r")
        with Image.open(path, formats=("PNG",)) as picture:
            levels = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"depth '{path}' is no readable .npy or .png: {error}") from error
    if levels.ndim != 2 or levels.dtype not in (np.uint16, np.int32):  # the second is older Pillows' for 16 bits
        raise ValueError(f"depth '{path}' must be a 16-bit grey .png, got {levels.dtype} {levels.shape}.")
    return (levels / scale).astype(np.float32)


def _intrinsics_of_video(video: Path, degrees: float | None, source_fps: float | None) -> np.ndarray | None:
    from aether_env.videos import open_video

    if degrees is None:
        return None
    return _intrinsics(degrees, *open_video(video, source_fps=source_fps).source_size)


def _intrinsics_of_picture(image: Path, degrees: float | None) -> np.ndarray | None:
    from aether_env.pictures import read_picture

    return None if degrees is None else _intrinsics(degrees, *read_picture(image).shape[:2])


def _intrinsics(degrees: float, height: int, width: int) -> np.ndarray:
    from aether_env.camera import intrinsics_from_fov

    if not 0 < degrees < 180:
        raise ValueError(f"horizontal_fov must be in (0, 180) degrees, got {degrees}.")
    return intrinsics_from_fov(math.radians(degrees), height, width)


@contextmanager
def _told_warnings() -> Iterator[None]:
    """Tell in a line each what is warned of, at once."""

    def tell(message: Warning | str, category: type[Warning], *others: Any, **more: Any) -> None:
        if category is UserWarning:
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = tell
        yield


def _say(result: VideoResult, out: Path) -> None:
    for note in result.notes:
        print(f"  {note}")
    unit = "m" if result.metric else "units"
    middle = float(np.median(result.depth[0]))
    print(
        f"{len(result)} frames of {result.rgb.shape[1]} x {result.rgb.shape[2]} at {result.fps:g} a second, path "
        f"{result.path.length:.2f} {unit}, median depth of the first {middle:.2f} {unit}: {out}"
    )
