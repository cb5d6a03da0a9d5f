"""Scores of dreamed clips beyond the PSNR and SSIM of scores.py: structure, perception, sharpness, texture, and parts.

A frame has three parts: what the first frame has seen and what rests there (the visible part), what rests there but
was not seen (holes), and what moves. Static is all but what moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from aether_env.metrics import gradient_energy, ms_ssim, patch_kernel_distance, psnr, ssim
from aether_env.world_model.latents import Codec
from training.evaluation.perceptual import LEAST_SIZE, perceptual_distance
from training.evaluation.scores import BEST_PSNR, FRAMES, LEAST_VISIBLE, Scores, autoencode, visible_in, warp_walk
from training.evaluation.summary import ROWS, Row, mean, ratio_of_means
from training.evaluation.walks import Walk, as_pictures

SIMILARITIES = ("psnr", "ssim", "ms_ssim", "lpips", "st_lpips")
"""Names that `similarities` may give."""
LEAST_PART = 0.01
"""Share of a frame below which its holes, or what moves in it, are too small to judge."""
PATCHES = 500
"""Patches of a clip's kernel distance: noisy for one clip, but without bias, so that the mean over clips is not."""
_PARTS = ("holes", "static", "moving")
_network = cache(perceptual_distance)


def video_scores(row: str, rgb: np.ndarray | Tensor, walk: Walk) -> Scores:
    """Return scores of one row of the tables, a dream or what it is compared with, at `FRAMES`.

    Args:
        row: Its name, see `summary.ROWS`.
        rgb: (B, T, H, W, 3) uint8, T > FRAMES[-1]; frame 0 is the clip's first.
        walk: The truth.

    Raises:
        ValueError: `rgb` is not of the clips' shape.
    """
    shape = walk.clips.rgb.shape
    if tuple(rgb.shape[:1] + rgb.shape[2:]) != tuple(shape[:1] + shape[2:]) or rgb.shape[1] <= FRAMES[-1]:
        wanted = (shape[0], f"T > {FRAMES[-1]}", *shape[2:])
        raise ValueError(f"rgb must be {wanted}, with the clip's first frame at 0, got {tuple(rgb.shape)}.")
    scores: Scores = {}
    for frame in FRAMES:
        scores |= _frame_scores(row, frame, as_pictures(rgb[:, frame], walk.clips.rgb.device), walk)
    return scores


def video_floor_scores(codec: Codec, walk: Walk) -> Scores:
    """Return the scores of the first frame repeated, of it warped, and of the autoencoder; and how large parts are."""
    device = walk.clips.rgb.device
    first = walk.clips.rgb[:, :1].expand_as(walk.clips.rgb)
    scores = video_scores("repeated", first, walk) | video_scores(
        "autoencoder", autoencode(codec, walk.clips.rgb), walk
    )
    for frame in FRAMES:
        scores |= _frame_scores("warp", frame, warp_walk(walk, frame), walk)
        truth = as_pictures(walk.clips.rgb[:, frame], device)
        scores[f"frame_energy_truth_{frame}"] = _numpy(gradient_energy(truth))
        for part, mask in _masks(walk, frame).items():
            scores[f"{part}_share_{frame}"] = _numpy(mask.float().mean((1, 2)))
    return scores


def similarities(shown: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Return how like the truth whole pictures are, name -> (B,).

    The perceptual distance stands under the name of its network, and is absent where there is none or the pictures
    are too small for it.

    Args:
        shown: (B, 3, H, W) in [0, 1].
        truth: (B, 3, H, W) in [0, 1].
    """
    found = {
        "psnr": psnr(shown, truth).clamp_max(BEST_PSNR),
        "ssim": ssim(shown, truth),
        "ms_ssim": ms_ssim(shown, truth),
    }
    name, distance = _network(str(shown.device))
    if distance is not None and min(shown.shape[-2:]) >= LEAST_SIZE:
        found[name] = distance(shown, truth)
    return found


def kernel_distances(shown: Tensor, truth: Tensor) -> np.ndarray:
    """Return how differently the pictures of each clip look up close, (B,): about 0 where they do not.

    Args:
        shown: (B, F, 3, H, W) in [0, 1].
        truth: (B, F, 3, H, W) in [0, 1].
    """
    pairs = zip(shown, truth, strict=True)
    return np.array([patch_kernel_distance(found, true, num_patches=PATCHES) for found, true in pairs])


def _frame_scores(row: str, frame: int, shown: Tensor, walk: Walk) -> Scores:
    """Return the scores of pictures (B, 3, H, W) at one frame."""
    truth = as_pictures(walk.clips.rgb[:, frame], walk.clips.rgb.device)
    visible = visible_in(walk, frame)
    enough = visible.float().mean((1, 2)) >= LEAST_VISIBLE
    # PSNR and SSIM of the whole and of the visible part are picture_scores'.
    scores = {name: value for name, value in similarities(shown, truth).items() if name not in ("psnr", "ssim")}
    scores["visible_ms_ssim"] = torch.where(enough, ms_ssim(shown, truth, visible), torch.nan)
    for part, mask in _masks(walk, frame).items():
        enough = mask.float().mean((1, 2)) >= LEAST_PART
        scores[f"{part}_psnr"] = torch.where(enough, psnr(shown, truth, mask).clamp_max(BEST_PSNR), torch.nan)
        scores[f"{part}_ssim"] = torch.where(enough, ssim(shown, truth, mask), torch.nan)
    scores["frame_energy"] = gradient_energy(shown)
    named = {f"{name}_{row}_{frame}": _numpy(value) for name, value in scores.items()}
    return named | {f"kernel_distance_{row}_{frame}": kernel_distances(shown[:, None], truth[:, None])}


def _masks(walk: Walk, frame: int) -> dict[str, Tensor]:
    """Return the parts of a frame that are judged here, each (B, H, W) bool."""
    static = ~walk.clips.moving[:, frame]
    return dict(zip(_PARTS, (static & ~visible_in(walk, frame), static, ~static), strict=True))


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _metrics() -> Iterator[Row]:
    scores = ["visible_ms_ssim", *SIMILARITIES[2:], "kernel_distance"]
    scores += [f"{part}_{score}" for part in _PARTS for score in ("psnr", "ssim")]
    for frame in FRAMES:
        for row in ROWS:
            yield from ((f"{score}_{row}_{frame}", mean, (f"{score}_{row}_{frame}",)) for score in scores)
            # Not gradient_energy_N: there, N is an env step of a long walk.
            keys = (f"frame_energy_{row}_{frame}", f"frame_energy_truth_{frame}")
            yield f"gradient_ratio_{row}_{frame}", ratio_of_means, keys
        yield from ((f"{part}_share_{frame}", mean, (f"{part}_share_{frame}",)) for part in _PARTS)


METRICS: tuple[Row, ...] = tuple(_metrics())
