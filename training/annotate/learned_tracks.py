"""Trackers that need weights: SuperPoint or DISK find the points that KLT follows, or CoTracker3 follows points itself.

Nothing is fetched: the weights are files that the user has. Untested on real weights, none come with this package: the
tests run SuperPoint's very class with random ones, and honest doubles of the other two, which are not installed here.
LightGlue is not needed: points are followed through the video, not matched between pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from training.annotate.grounded import load_model
from training.annotate.refine import Tracker
from training.annotate.tracks import Tracks, TrackSettings, follow

_EVERY = 10
"""Frames after which CoTracker3 gets new points."""


def make_tracker(
    name: Literal["superpoint", "disk", "cotracker3"],
    weights: Path,
    settings: TrackSettings = TrackSettings(),  # noqa: B008 - it is frozen
    *,
    device: str = "cpu",
) -> Tracker:
    """Return a tracker for `refine_cameras`.

    Args:
        name: "superpoint", "disk" or "cotracker3".
        weights: SuperPoint: the folder of transformers; DISK: depth-save.pth; CoTracker3: scaled_offline.pth.
        settings: How points are followed; of CoTracker3 only their number and the least length.
        device: Where the network runs.

    Raises:
        ValueError: An unknown name, the package is not installed, or the weights are missing or of something else.
    """
    if name == "cotracker3":
        return _CoTracker(Path(weights), settings, device)
    if name not in ("superpoint", "disk"):
        raise ValueError(f'name must be "superpoint", "disk" or "cotracker3", got {name!r}.')
    detect = (_superpoint if name == "superpoint" else _disk)(Path(weights), device)
    return lambda rgb, usable: follow(rgb, usable, settings, detect=detect)


def _superpoint(folder: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return SuperPoint's points of a picture, the best first."""
    import torch

    network = load_model("SuperPointForKeypointDetection", "superpoint", folder).to(device)

    def detect(rgb_HW3: np.ndarray) -> np.ndarray:
        # It sees pictures in squares of 8 x 8; what is left over at the right and below is not looked at.
        height, width = (side // 8 * 8 for side in rgb_HW3.shape[:2])
        grey = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY)[:height, :width]
        picture = torch.from_numpy(grey).to(device).float()[None, None].expand(1, 3, -1, -1) / 255
        with torch.inference_mode():
            found = network(picture)
        order = found.scores[0].argsort(descending=True)[: int(found.mask[0].sum())]
        share = found.keypoints[0][order].cpu().numpy().astype(np.float64)
        return share * [width, height] + 0.5

    return detect


def _disk(weights: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return DISK's points of a picture, the best first."""
    import torch

    try:
        DISK = import_module("kornia.feature").DISK
    except ImportError as error:
        raise ValueError(f'tracker "disk" needs kornia ({error}): pip install kornia, or use "sift".') from error
    network = DISK()
    _load(
        lambda: network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["extractor"]),
        weights,
    )
    network = network.to(device).eval()

    def detect(rgb_HW3: np.ndarray) -> np.ndarray:
        picture = torch.from_numpy(rgb_HW3).to(device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            found = network(picture, pad_if_not_divisible=True)[0]
        order = found.detection_scores.argsort(descending=True)
        return found.keypoints[order].cpu().numpy().astype(np.float64) + 0.5

    return detect


class _CoTracker:
    """CoTracker3, offline, with backward tracking; a point counts where it says that it is visible."""

    def __init__(self, weights: Path, settings: TrackSettings, device: str):
        try:
            CoTrackerPredictor = import_module("cotracker.predictor").CoTrackerPredictor
        except ImportError as error:
            raise ValueError(
                f'tracker "cotracker3" needs the package cotracker ({error}): pip install '
                'git+https://github.com/facebookresearch/co-tracker, or use "sift".'
            ) from error
        options = {"checkpoint": str(weights), "offline": True, "v2": False, "window_len": 60}
        self.network = _load(lambda: CoTrackerPredictor(**options), weights).to(device)
        self.settings, self.device = settings, device

    def __call__(self, rgb: np.ndarray, usable: np.ndarray) -> Tracks:
        """Return tracks; see `Tracker`."""
        import torch

        queries = _queries(rgb, usable, self.settings.points)
        if not len(queries):
            return Tracks(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
        video = torch.from_numpy(rgb).to(self.device).permute(0, 3, 1, 2)[None].float()
        with torch.inference_mode():
            at, seen = self.network(
                video, queries=torch.from_numpy(queries).to(self.device)[None], backward_tracking=True
            )
        pixel = at[0].transpose(0, 1).cpu().numpy().astype(np.float64) + 0.5
        visible = seen[0].T.cpu().numpy().astype(bool)
        height, width = usable.shape[1:]
        inside = ((pixel >= 0) & (pixel < [width, height])).all(-1) & visible
        track, frame = np.nonzero(inside)
        x, y = np.floor(pixel[track, frame]).astype(np.int64).T
        tracks = Tracks(track, frame, pixel[track, frame])
        return tracks.only(usable[frame, y, x], self.settings.least_length)[0]


def _queries(rgb: np.ndarray, usable: np.ndarray, points: int) -> np.ndarray:
    """Return corners, spread evenly over some of the frames: frame, x, y, (N, 3) float32, centres at integers."""
    found = [np.zeros((0, 3), np.float32)]
    for frame in range(0, len(rgb), _EVERY):
        grey = cv2.cvtColor(rgb[frame], cv2.COLOR_RGB2GRAY)
        distance = 0.6 * np.sqrt(grey.size / points)
        corners = cv2.goodFeaturesToTrack(grey, points, 0.002, distance, mask=usable[frame].astype(np.uint8))
        if corners is not None:
            found.append(np.insert(corners[:, 0], 0, frame, axis=1))
    return np.concatenate(found)


def _load(load: Callable[[], Any], weights: Path) -> Any:
    """Return what `load` returns, its failures told as what is wrong with the weights."""
    try:
        return load()
    except Exception as error:  # torch fails in its own ways
        raise ValueError(f"weights must be a whole file of that network, {weights} is not: {error}") from error
