"""Scores of dreamed clips beyond the PSNR and SSIM of scores.py: structure, perception, sharpness, texture, and parts.

Parts of a frame are those of `scores.parts_in`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from torch import Tensor

from aether_env.metrics import gradient_energy, ms_ssim, patch_kernel_distance, psnr, ssim
from aether_env.world_model.latents import Codec
from training.evaluation.perceptual import LEAST_SIZE, perceptual_distance
from training.evaluation.scores import BEST_PSNR, FRAMES, Scores, autoencode, parts_in, warp_walk, where_enough
from training.evaluation.summary import Row, mean, ratio_of_means
from training.evaluation.walks import Walk, as_pictures

SIMILARITIES = ("psnr", "ssim", "ms_ssim", "lpips", "st_lpips")
"""Names that `similarities` may give."""
PATCHES = 500
"""Patches of a clip's kernel distance: noisy for one clip, but without bias, so that the mean over clips is not."""
ROWS = ("dream", "repeated", "warp", "autoencoder")
"""What is judged: the dream and what it is compared with."""
_PARTS = ("holes", "static", "moving")
_network = cache(perceptual_distance)


def video_scores(row: str, rgb: np.ndarray | Tensor, walk: Walk) -> Scores:
    """Return scores of one row of the tables, a dream or what it is compared with, at `FRAMES`.

    Args:
        row: Its name, of `ROWS`.
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
        shown = as_pictures(rgb[:, frame], walk.clips.rgb.device)
        scores |= _frame_scores(row, frame, shown, walk, parts_in(walk, frame))
    return scores


def video_floor_scores(codec: Codec, walk: Walk) -> Scores:
    """Return the scores of the first frame repeated, of it warped, and of the autoencoder; and how large parts are."""
    rgb = walk.clips.rgb
    decoded = autoencode(codec, rgb)
    scores: Scores = {}
    for frame in FRAMES:
        parts = parts_in(walk, frame)
        scores |= _frame_scores("repeated", frame, as_pictures(rgb[:, 0], rgb.device), walk, parts)
        scores |= _frame_scores("warp", frame, warp_walk(walk, frame), walk, parts)
        scores |= _frame_scores("autoencoder", frame, as_pictures(decoded[:, frame], rgb.device), walk, parts)
        scores[f"frame_energy_truth_{frame}"] = _numpy(gradient_energy(as_pictures(rgb[:, frame], rgb.device)))
        for part in _PARTS:
            scores[f"{part}_share_{frame}"] = _numpy(parts[part].float().mean((1, 2)))
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


def _frame_scores(row: str, frame: int, shown: Tensor, walk: Walk, parts: dict[str, Tensor]) -> Scores:
    """Return the scores of pictures (B, 3, H, W) at one frame, whose parts are (B, H, W)."""
    truth = as_pictures(walk.clips.rgb[:, frame], walk.clips.rgb.device)
    visible = parts["visible"]
    # PSNR and SSIM of the whole and of the visible part are picture_scores'.
    scores = {name: value for name, value in similarities(shown, truth).items() if name not in ("psnr", "ssim")}
    scores["visible_ms_ssim"] = where_enough("visible", visible, ms_ssim(shown, truth, visible))
    for part in _PARTS:
        mask = parts[part]
        scores[f"{part}_psnr"] = where_enough(part, mask, psnr(shown, truth, mask).clamp_max(BEST_PSNR))
        scores[f"{part}_ssim"] = where_enough(part, mask, ssim(shown, truth, mask))
    scores["frame_energy"] = gradient_energy(shown)
    named = {f"{name}_{row}_{frame}": _numpy(value) for name, value in scores.items()}
    return named | {f"kernel_distance_{row}_{frame}": kernel_distances(shown[:, None], truth[:, None])}


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
