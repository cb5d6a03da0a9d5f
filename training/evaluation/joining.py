"""Windows of a long video joined into one: each is brought to the scale and the world of all that came before it.

As AETHER does it: alignment on the frames that two windows share, then a linear cross-fade over them. Pure functions
of numpy arrays; poses, axes and units: see conventions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aether_env.disparity import relative_scale
from aether_env.trajectory import align_sim3, blend_paths


def join_disparity(windows: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """Return the disparity of the whole video, in the first window's unit.

    Args:
        windows: Disparity of each window, (t, H, W), in a unit of its own; 0 is infinitely far.
        starts: Frame of the video at which each begins: 0 first, then in order and without gaps.

    Returns:
        (T, H, W) float64.

    Raises:
        ValueError: The windows do not cover a video, or neighbours share no frame.
    """
    _check_cover(windows, starts)
    joined = np.asarray(windows[0], dtype=np.float64)
    for window, start in zip(windows[1:], starts[1:], strict=True):
        overlap = len(joined) - start
        window = np.asarray(window, dtype=np.float64)
        window = window * scale_between(window[:overlap], joined[start:])
        weight = (np.arange(overlap) + 1.0)[:, None, None] / (overlap + 1)
        mixed = (1 - weight) * joined[start:] + weight * window[:overlap]
        joined = np.concatenate([joined[:start], mixed, window[overlap:]])
    return joined


def join_paths(windows: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """Return the camera path of the whole video, in the first window's world and unit.

    Each window is moved by the similarity that takes its shared poses nearest to the ones before (least squares on
    centres and rotations, camera-to-world). Centres are cross-faded linearly, rotations by slerp.

    Args:
        windows: Poses of each window, (t, 4, 4), in a world of its own.
        starts: As in `join_disparity`.

    Returns:
        (T, 4, 4) float64.

    Raises:
        ValueError: As `join_disparity`; or poses are not rigid.
    """
    _check_cover(windows, starts)
    joined = np.asarray(windows[0], dtype=np.float64)
    for window, start in zip(windows[1:], starts[1:], strict=True):
        overlap = len(joined) - start
        similarity = align_sim3(window[:overlap], joined[start:])
        joined = blend_paths(joined, similarity.apply_to_poses(window), overlap)
    return joined


def scale_between(disparity: np.ndarray, target: np.ndarray) -> float:
    """Return the factor that takes disparity (t, H, W) nearest to another's of the same frames (least squares)."""
    found, wanted = torch.from_numpy(disparity), torch.from_numpy(target)
    return float(relative_scale(found, wanted, torch.ones_like(found, dtype=torch.bool)))


def _check_cover(windows: Sequence[np.ndarray], starts: Sequence[int]) -> None:
    if not len(windows) or len(windows) != len(starts):
        raise ValueError(f"starts must be one a window and there must be a window, got {len(starts)}, {len(windows)}.")
    if starts[0] != 0:
        raise ValueError(f"starts must begin at frame 0, got {starts[0]}.")
    end = len(windows[0])
    for number, (window, start) in enumerate(zip(windows, starts, strict=True)):
        before = starts[max(number - 1, 0)]
        if not before <= start < end or start + len(window) < end:
            raise ValueError(
                f"window {number} of {len(window)} frames must begin at frame {before} to {end - 1}, so that it shares "
                f"frames with those before it, and reach frame {end} or farther; it begins at {start}."
            )
        end = start + len(window)
