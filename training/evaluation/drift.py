"""How far a dream drifts from the truth on long walks, and what it still knows when it comes back to where it began.

A number of drift at step N is the mean over the four frames of env step N; errors of depth, its scale and the kernel
distance take the pixels or patches of all four together. Scores without a prefix are the dream's; beside them stand a
ceiling, `autoencoder_...`, and floors: `repeated_...` (the first frame), `warp_...` (it warped by
true depth and pose) and, for depth, `flat_...` (the median of the first frame's depth).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aether_env.camera import relative_to
from aether_env.conventions import FRAMES_PER_LATENT
from aether_env.metrics import depth_errors, gradient_energy, ms_ssim, patch_kernel_distance, psnr, ssim
from aether_env.sim import ClipPlans, draw_clips
from aether_env.world_model.checkpoint import Settings
from aether_env.world_model.latents import Codec, at_rest
from aether_env.world_model.promise import Frames
from aether_env.world_model.rollout import DreamState, DreamWorld
from training.evaluation.perceptual import PictureDistance
from training.evaluation.scores import BEST_PSNR, LEAST_SHARE, Scores, parts_in, refuse_nan, warp_walk, where_enough
from training.evaluation.summary import Row, mean, mean_difference, median, ratio_of_means
from training.evaluation.walks import Walk, WalkSet, as_pictures

STEPS = (1, 5, 10, 16, 25, 50, 100, 200)
"""Env steps of a long walk at which a dream is judged."""
RETURN_STEPS = (4, 8, 16)
"""Env steps out, after which the camera comes back the same way."""
PATCHES = 500
"""For the kernel distance of a clip's four frames: more save less noise than a few more clips do."""
PERCEPTUAL = ("lpips", "st_lpips")
"""What a perceptual distance may be called."""

Perceptual = tuple[str, PictureDistance | None]
"""As `perceptual_distance` returns it; None as its function leaves it out."""

_LAST_STEP = range(5, 9)  # of a walk drawn as its first frame, the step before and the step
_LUMA = (0.299, 0.587, 0.114)
_RETURN_ROWS = ("truth_return", "autoencoder_return", "turning_point_return", "other_clip_return")
_MEMORY = {True: "", False: "_without_memory"}


def long_walks(count: int, settings: Settings, device: str = "cpu") -> WalkSet:
    """Return the first test clips, planned for all of `STEPS`: the same walks however few of their steps are measured.

    Args:
        count: Clips; planning 32 takes about 3 seconds. What is not measured is not drawn.
        settings: Size and speed of the checkpoint's pictures.
        device: Where they are drawn.
    """
    return WalkSet(count, FRAMES_PER_LATENT * STEPS[-1] + 1, settings, device)


@torch.inference_mode()
def drift_scores(
    world: DreamWorld,
    walks: WalkSet,
    numbers: np.ndarray,
    seed: int,
    *,
    last_step: int = STEPS[-1],
    perceptual: Perceptual = ("none", None),
) -> Scores:
    """Return how dreams along the true path differ from the truth at each of `STEPS`.

    Parts are those of `scores.parts_in`; moving is what has moved since the first frame. Frames with less than
    `LEAST_SHARE` of a part do not count.

    Args:
        world: The dream.
        walks: Clips of more than 4 * `last_step` frames, see `long_walks`; only frames that are needed are drawn.
        numbers: (B,) which of the clips.
        seed: Of the dreams' noise, see `Walk.seeds`, and of the patches.
        last_step: Later steps are left out.
        perceptual: Name and function of the perceptual distance.

    Returns:
        `long_..._N` of pictures; `energy_ROW_N` and `contrast_ROW_N`, gradient energy and standard deviation of luma,
        also of the truth; `metric_abs_rel_N` of depth that is not aligned, `depth_scale_N`, the median of its ratio to
        the truth, and `depth_scale_error_N`, the size of that ratio's logarithm.

    Raises:
        ValueError: `last_step` is less than 1, or the clips are too short.
    """
    steps = [step for step in STEPS if step <= last_step]
    if not steps:
        raise ValueError(f"last_step must be at least {STEPS[0]}, got {last_step}.")
    _check_length(walks, FRAMES_PER_LATENT * steps[-1])
    start = draw_at(walks, numbers, np.array([0]))
    scores: Scores = {}
    for step, dream in _dreamed(world, start, _path(walks, numbers), steps, seed):
        # Before the first step the camera was at rest.
        walk = draw_at(walks, numbers, np.array([0, *_frames_of(step - 1).clip(min=0), *_frames_of(step)]))
        rgb, depth = _autoencoded(world.codec, walk)
        named = _picture_scores(dream, rgb, walk, seed, perceptual) | _depth_scores(dream, depth, walk)
        scores |= {f"{name}_{step}": value for name, value in named.items()}
    return scores


@torch.inference_mode()
def return_scores(
    world: DreamWorld,
    walks: WalkSet,
    numbers: np.ndarray,
    seed: int,
    *,
    steps: Sequence[int] = RETURN_STEPS,
    perceptual: Perceptual = ("none", None),
) -> Scores:
    """Return how a dream that went N env steps out and the same way back differs from what it was.

    `return_..._N` compare its last frame with the picture that it began from (`static`: where nothing moves in either
    of the true ones), `return_same_pose_psnr_N` the frames on the way back with those on the way out at equal poses.
    All of them also `_without_memory`: nothing older than the history is shown to the network.

    Beside them, in place of the last frame: the true one (`truth_...`, movers have gone on), what the autoencoder makes
    of that, the true one at the turning point, as of a dream that did not come back, and the start of the next clip.

    Args:
        world: The dream.
        walks: At least two clips of more than 8 * max(`steps`) frames, see `long_walks`; only frames that are needed
            are drawn.
        numbers: (B,) which of the clips.
        seed: Of the dreams' noise, see `Walk.seeds`.
        steps: Env steps out.
        perceptual: Name and function of the perceptual distance.

    Raises:
        ValueError: The clips are too short, there is one only, or steps that are not positive.
    """
    if walks.count < 2:
        raise ValueError(f"walks must have at least 2 clips, got {walks.count}: each is compared with the next one.")
    if not steps or min(steps) < 1:
        raise ValueError(f"steps must be numbers of env steps, each at least 1, got {tuple(steps)}.")
    _check_length(walks, 2 * FRAMES_PER_LATENT * max(steps))
    path = _path(walks, numbers)
    other = draw_at(walks, (numbers + 1) % walks.count, np.array([0])).clips.rgb[:, 0]
    true_ends = {turn: _true_return(walks, numbers, turn) for turn in steps}
    scores: Scores = {}

    def judge(row: str, turn: int, shown: Tensor | np.ndarray, suffix: str = "") -> None:
        found = _return_picture_scores(shown, *true_ends[turn], perceptual)
        scores.update({f"{row}_{name}{suffix}_{turn}": value for name, value in found.items()})

    for turn, (walk, _) in true_ends.items():
        rgb = walk.clips.rgb
        decoded, _ = _autoencoded(world.codec, walk)
        rows = dict(zip(_RETURN_ROWS, (rgb[:, -2], decoded[:, -1], rgb[:, -1], other), strict=True))
        for row, shown in rows.items():
            judge(row, turn, shown)
    device = walk.clips.rgb.device
    for remembers, suffix in _MEMORY.items():
        for turn, there, back in _out_and_back(world, walk, path, steps, seed, remembers):
            judge("return", turn, back[:, 0], suffix)
            # The start and the turning point were dreamed once only.
            pair = (as_pictures(frames, device) for frames in (back[:, 1:], there[:, :-1]))
            scores[f"return_same_pose_psnr{suffix}_{turn}"] = _over_frames(_capped_psnr, *pair)
    return scores


def draw_at(walks: WalkSet, numbers: np.ndarray, frames: np.ndarray, moments: np.ndarray | None = None) -> Walk:
    """Draw some frames of planned clips.

    Args:
        walks: The clips.
        numbers: (B,) which of them.
        frames: (T,) numbers of the frames whose cameras look; the first of them is the world.
        moments: (T,) numbers of the frames whose movers are seen; None takes `frames`.

    Returns:
        B clips of T frames; what moves is what has moved since the first of these frames in any of them.
    """
    plans, count = walks.plans, walks.count
    chosen = ClipPlans(
        scenes=plans.scenes[numbers],
        scene_from_camera=plans.scene_from_camera[numbers][:, frames],
        mover_pose=plans.mover_pose[numbers][:, frames if moments is None else moments],
    )
    other = plans.scene_from_camera[(numbers + 1) % count][:, frames]
    settings = walks.settings
    return Walk(
        clips=draw_clips(chosen, height=settings.height, width=settings.width, device=walks.device),
        other_path=relative_to(other, other[:, :1]),
        numbers=numbers,
    )


def _check_length(walks: WalkSet, last_frame: int) -> None:
    if walks.num_frames <= last_frame:
        raise ValueError(f"walks must have at least {last_frame + 1} frames for these steps, got {walks.num_frames}.")


def _path(walks: WalkSet, numbers: np.ndarray) -> np.ndarray:
    """Return all poses (B, T, 4, 4) of clips, world = first frame."""
    path = walks.plans.scene_from_camera[numbers]
    return relative_to(path, path[:, :1])


def _frames_of(step: int) -> np.ndarray:
    return np.arange(FRAMES_PER_LATENT * (step - 1), FRAMES_PER_LATENT * step) + 1


def _dreamed(
    world: DreamWorld, walk: Walk, path: np.ndarray, steps: Sequence[int], seed: int
) -> Iterator[tuple[int, Frames]]:
    """Dream along paths (B, T, 4, 4) and yield the wanted steps."""
    state, _ = world.start(walk.starts(), walk.seeds(seed))
    for step in tqdm(range(1, max(steps) + 1), desc="env steps", unit="step", leave=False):
        state, frames = world.advance(state, path[:, _frames_of(step)])
        refuse_nan(f"depth dreamed at step {step}", frames.depth, walk)
        if step in steps:
            yield step, frames


def _autoencoded(codec: Codec, walk: Walk) -> tuple[Tensor, Tensor]:
    """Return what the autoencoders make of an env step of a walk of the first frame, the step before and the step.

    Returns:
        Colours (B, 4, H, W, 3) uint8, depth (B, 4, H, W).
    """
    unit = codec.unit(walk.clips.depth[:, 0])
    seen = slice(1, 1 + 2 * FRAMES_PER_LATENT)  # the decoders see one latent step before
    colour = codec.encode_colour(walk.clips.rgb[:, seen])
    disparity = codec.encode_depth(walk.clips.depth[:, seen], unit)
    return (
        codec.decode_colour(colour[:, 1:], colour[:, 0]),
        codec.decode_depth(disparity[:, 1:], unit, disparity[:, 0]),
    )


def _picture_scores(dream: Frames, decoded: Tensor, walk: Walk, seed: int, perceptual: Perceptual) -> Scores:
    """Return scores of the pictures of a walk's last env step and of its floors; names without the step."""
    rgb = walk.clips.rgb
    truth = as_pictures(rgb[:, _LAST_STEP], rgb.device)
    shown_by = {
        "dream": as_pictures(dream.rgb, rgb.device),
        "autoencoder": as_pictures(decoded, rgb.device),
        "repeated": as_pictures(at_rest(rgb[:, 0]), rgb.device),
        "warp": torch.stack([warp_walk(walk, frame) for frame in _LAST_STEP], dim=1),
    }
    parts = _parts_of(walk)
    scores = {f"long_{part}_share": _numpy(mask.float().mean((1, 2, 3))) for part, mask in parts.items()}
    for row, shown in shown_by.items():
        found = {name: _over_frames(measure, shown, truth) for name, measure in _measures(perceptual).items()}
        for part, mask in parts.items():
            found[f"{part}_psnr"] = _over_frames(partial(_part_psnr, part), shown, truth, mask)
        pairs = zip(shown, truth, strict=True)
        distances = [patch_kernel_distance(a, b, num_patches=PATCHES, seed=seed) for a, b in pairs]
        found["kernel_distance"] = np.array(distances)
        scores |= {f"{_prefix(row)}long_{name}": value for name, value in found.items()}
    for row, shown in {**shown_by, "truth": truth}.items():
        scores[f"energy_{row}"] = _over_frames(gradient_energy, shown)
        scores[f"contrast_{row}"] = _over_frames(_contrast, shown)
    return scores


def _depth_scores(dream: Frames, decoded: Tensor, walk: Walk) -> Scores:
    """Return scores of the depth of a walk's last env step, nothing aligned; names without the step."""
    depth, valid = walk.clips.depth, walk.clips.valid
    middle = torch.where(valid[:, 0], depth[:, 0], torch.nan).flatten(1).nanmedian(1).values
    shown_by = {
        "dream": torch.as_tensor(dream.depth, device=depth.device),
        "autoencoder": decoded,
        "flat": middle[:, None, None, None].expand_as(decoded),
    }
    truth, counts = depth[:, _LAST_STEP], valid[:, _LAST_STEP]
    scores: Scores = {}
    for row, shown in shown_by.items():
        ratio = torch.where(counts, shown / truth, torch.nan).flatten(1).nanmedian(1).values
        scores[f"{_prefix(row)}metric_abs_rel"] = _numpy(depth_errors(shown, truth, counts, None).abs_rel)
        scores[f"{_prefix(row)}depth_scale"] = _numpy(ratio)
        scores[f"{_prefix(row)}depth_scale_error"] = _numpy(ratio.log().abs())
    return scores


def _parts_of(walk: Walk) -> dict[str, Tensor]:
    """Return the parts of the frames of a walk's last env step, each (B, 4, H, W) bool."""
    frames = [parts_in(walk, frame) for frame in _LAST_STEP]
    return {part: torch.stack([parts[part] for parts in frames], dim=1) for part in LEAST_SHARE}


def _true_return(walks: WalkSet, numbers: np.ndarray, steps_out: int) -> tuple[Walk, Tensor]:
    """Draw the start, the last two env steps and the turning point of a walk out and back.

    Returns:
        Clips of ten frames, and where something moves at the start or on return, (B, H, W) bool.
    """
    turn, last = FRAMES_PER_LATENT * steps_out, 2 * FRAMES_PER_LATENT * steps_out
    moments = np.array([0, *range(last - 2 * FRAMES_PER_LATENT + 1, last + 1), turn])
    walk = draw_at(walks, numbers, np.minimum(moments, last - moments), moments)
    return walk, walk.clips.moving[:, 0] | walk.clips.moving[:, -2]


def _out_and_back(
    world: DreamWorld, walk: Walk, path: np.ndarray, steps: Sequence[int], seed: int, remembers: bool
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Dream N env steps along paths (B, T, 4, 4) and back, for each N of `steps`.

    Yields:
        N, colours (B, 4 N, H, W, 3) on the way out, poses 1 to 4 N, and on the way back, poses 0 to 4 N - 1.
    """

    def advance(state: DreamState, poses: np.ndarray) -> tuple[DreamState, np.ndarray]:
        state, frames = world.advance(state, poses)
        if not remembers:
            state = replace(state, memory_count=torch.zeros_like(state.memory_count))
        return state, frames.rgb

    state, _ = world.start(walk.starts(), walk.seeds(seed))
    there: list[np.ndarray] = []
    for step in tqdm(range(1, max(steps) + 1), desc="out and back", unit="step", leave=False):
        state, rgb = advance(state, path[:, _frames_of(step)])
        there.append(rgb)
        if step not in steps:
            continue
        back: list[np.ndarray] = []
        returning = state  # states are not modified: the way out goes on from this one as well
        for home in range(step, 0, -1):
            returning, rgb = advance(returning, path[:, _frames_of(home)[::-1] - 1])
            back.insert(0, rgb[:, ::-1])
        yield step, np.concatenate(there, axis=1), np.concatenate(back, axis=1)


def _return_picture_scores(shown: Tensor | np.ndarray, walk: Walk, moving: Tensor, perceptual: Perceptual) -> Scores:
    """Return scores of pictures (B, H, W, 3) uint8 against the first of a walk; names without row and step."""
    start = as_pictures(walk.clips.rgb[:, 0], moving.device)
    picture = as_pictures(shown, moving.device)
    found = {name: _numpy(measure(picture, start)) for name, measure in _measures(perceptual).items()}
    return found | {"static_psnr": _numpy(_part_psnr("static", picture, start, ~moving))}


def _measures(perceptual: Perceptual) -> dict[str, PictureDistance]:
    """Return name -> function of pictures and true pictures, (B, 3, H, W), that returns (B,)."""
    name, distance = perceptual
    return {"psnr": _capped_psnr, "ssim": ssim, "ms_ssim": ms_ssim} | ({} if distance is None else {name: distance})


def _capped_psnr(shown: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    return psnr(shown, truth, mask).clamp_max(BEST_PSNR)


def _part_psnr(part: str, shown: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Return PSNR (B,) in a part (B, H, W), NaN where the part is too small."""
    return where_enough(part, mask, _capped_psnr(shown, truth, mask))


def _contrast(rgb: Tensor) -> Tensor:
    """Return the standard deviation (B,) of luma over pictures (B, 3, H, W)."""
    luma = (rgb * rgb.new_tensor(_LUMA)[:, None, None]).sum(1)
    return luma.flatten(1).std(1, correction=0)


def _over_frames(measure: Callable[..., Tensor], *frames: Tensor) -> np.ndarray:
    """Return the mean (B,) over the T frames of tensors (B, T, ...), without the NaN."""
    values = measure(*(frame.flatten(0, 1) for frame in frames))
    return _numpy(values.view(frames[0].shape[:2]).nanmean(1))


def _prefix(row: str) -> str:
    return "" if row == "dream" else f"{row}_"


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _drift_metrics() -> Iterator[Row]:
    pictures = ("psnr", "ssim", "ms_ssim", *PERCEPTUAL, "kernel_distance", *(f"{part}_psnr" for part in LEAST_SHARE))
    for step in STEPS:
        for row in ("dream", "autoencoder", "repeated", "warp"):
            prefix = _prefix(row)
            for name in ("energy", "contrast"):
                metric = "gradient_energy" if name == "energy" else name
                yield f"{prefix}{metric}_{step}", ratio_of_means, (f"{name}_{row}_{step}", f"{name}_truth_{step}")
            yield from ((f"{prefix}long_{s}_{step}", mean, (f"{prefix}long_{s}_{step}",)) for s in pictures)
        for row in ("dream", "autoencoder", "flat"):
            for name, statistic in (("metric_abs_rel", mean), ("depth_scale", median), ("depth_scale_error", mean)):
                yield f"{_prefix(row)}{name}_{step}", statistic, (f"{_prefix(row)}{name}_{step}",)
        yield from ((f"long_{part}_share_{step}", mean, (f"long_{part}_share_{step}",)) for part in LEAST_SHARE)


def _return_metrics() -> Iterator[Row]:
    pictures = ("psnr", "ssim", "ms_ssim", *PERCEPTUAL, "static_psnr")
    names = [f"{row}_{score}" for row in _RETURN_ROWS for score in pictures]
    names += [f"return_{score}{suffix}" for suffix in _MEMORY.values() for score in (*pictures, "same_pose_psnr")]
    for step in RETURN_STEPS:
        yield from ((f"{name}_{step}", mean, (f"{name}_{step}",)) for name in names)
        gain = (f"return_static_psnr_{step}", f"return_static_psnr_without_memory_{step}")
        yield f"return_memory_gain_db_{step}", mean_difference, gain


METRICS: tuple[Row, ...] = (*_drift_metrics(), *_return_metrics())
"""Of both kinds of scores."""
