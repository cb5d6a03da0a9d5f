"""Annotated videos against the truth: cameras, focal length, masks, and how much was kept.

Errors of a clip: ATE after a similarity, Sim(3), over the length of the true path; rotation against the clip's first
frame, whose own rotation is taken as true (as training does: the world is the camera of the first frame), median over
the other frames. Of a video: the mean over its clips, each as often as it has frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aether_env.camera import relative_to, rotation_distance
from aether_env.path_metrics import LEAST_POSES, ate, focal_error, scale_error
from aether_env.trajectory import align_sim3
from training.annotate.footage import Footage
from training.annotate.results import PieceResult, SliceResult
from training.annotate.slicing import cut

Kind = Literal["static", "dynamic", "vizdoom"]
KINDS: tuple[Kind, ...] = ("static", "dynamic", "vizdoom")
MOVES = 1e-3
"""Share of a video's pixels that move from which on it is dynamic."""
LEAST_PATH = 0.05
"""Metres; errors in percent of a shorter path mean nothing, nor does a focal length found without moving."""
GOOD: dict[Kind, tuple[float, float]] = {"static": (0.5, 0.1), "dynamic": (1.0, 0.3), "vizdoom": (1.0, 0.3)}
"""ATE in percent and rotation in degrees that a good clip has at most."""
WRONG = (5.0, 1.0)
"""The same from which on a clip is wrong: kept all the same, it is a silent failure."""
_NO_ATE = 1e-6
"""Percent; a ratio of smaller errors is one of rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What the recorders kept aside, of a video of T frames."""

    world: str
    """"simulator" or "vizdoom"."""
    world_from_camera: np.ndarray
    """(T, 4, 4) metres."""
    intrinsics: np.ndarray
    """(3, 3) pixels."""
    moving: np.ndarray
    """(T, H, W) bool."""

    @classmethod
    def read(cls, path: Path, world: str) -> Truth:
        """Return the truth in a file of `training.annotate.recorders`."""
        with np.load(path, allow_pickle=False) as file:
            names = ("world_from_camera", "intrinsics", "moving")
            return cls(world=world, **{name: file[name] for name in names})

    @property
    def kind(self) -> Kind:
        """Whether something moves, in the simulator."""
        if self.world == "vizdoom":
            return "vizdoom"
        return "dynamic" if self.moving.mean() >= MOVES else "static"


def usable_frames(pieces: Iterable[Footage], truth: Truth) -> list[int]:
    """Return the numbers of the frames that cameras can be asked of.

    These are the frames of slices that are cut with the true masks and the default thresholds, whatever the chain that
    is judged does: not too dark, bare, blurred or full of motion, and enough of them in a row.
    """
    found: list[int] = []
    for footage in pieces:
        reasons = cut(footage, truth.moving[footage.frame]).reasons
        found += [int(number) for number, reason in zip(footage.frame, reasons, strict=True) if reason is None]
    return found


def path_scores(world_from_camera: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
    """Return the errors of a path; None where there is none to tell.

    Args:
        world_from_camera: (n, 4, 4).
        target: (n, 4, 4), the truth, metres.

    Returns:
        path_m (length of the true one), ate_m, ate_percent, rotation_deg, rotation_worst_deg (of the frames'),
        rotation_aligned_deg (median after the similarity instead of against the first frame), scale_percent (how far
        the path's length is off).
    """
    length = float(np.linalg.norm(np.diff(target[:, :3, 3], axis=0), axis=-1).sum())
    found, true = (relative_to(path, path[0]) for path in (world_from_camera, target))
    angle = np.rad2deg(rotation_distance(found, true)[1:])
    aligned = align_sim3(found, true).apply_to_poses(found)
    error = ate(found, true) if len(found) >= LEAST_POSES else None
    moves = length >= LEAST_PATH
    return {
        "path_m": length,
        "ate_m": error,
        "ate_percent": 100 * error / length if error is not None and moves else None,
        "rotation_deg": float(np.median(angle)) if len(angle) else None,
        "rotation_worst_deg": float(angle.max()) if len(angle) else None,
        "rotation_aligned_deg": float(np.median(np.rad2deg(rotation_distance(aligned, true)))),
        "scale_percent": _finite(100 * float(np.expm1(scale_error(found, true)))) if moves else None,
    }


def clip_scores(one: SliceResult, truth: Truth) -> dict[str, Any]:
    """Return the errors of a slice that was kept: those of its path and focal length, and of the coarse ones."""
    assert one.clip is not None
    true = truth.world_from_camera[one.frames]
    scores: dict[str, Any] = _which(one) | path_scores(one.clip.world_from_camera, true)
    moves = scores["path_m"] >= LEAST_PATH
    focal = 100 * float(focal_error(one.clip.intrinsics, truth.intrinsics).mean())
    scores["focal_error_percent"] = focal if moves else None
    if "coarse_path" in one.figures:
        coarse = path_scores(np.asarray(one.figures["coarse_path"]), true)
        scores |= {f"coarse_{name}": coarse[name] for name in ("ate_percent", "rotation_deg")}
    if "coarse_focal" in one.figures:
        coarse_focal = 100 * abs(float(one.figures["coarse_focal"]) / truth.intrinsics[0, 0] - 1)
        scores["coarse_focal_error_percent"] = coarse_focal if moves else None
    return scores


def mask_scores(moving: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """Return mask_iou, mask_recall and mask_false_share (of what rests) over all frames; None where 0 / 0.

    Args:
        moving: (T, H, W) bool.
        true: (T, H, W) bool.
    """
    both, either = int((moving & true).sum()), int((moving | true).sum())
    rests = int((~true).sum())
    return {
        "mask_iou": both / either if true.any() else None,
        "mask_recall": both / int(true.sum()) if true.any() else None,
        "mask_false_share": int((moving & ~true).sum()) / rests if rests else None,
    }


def video_scores(
    name: str,
    truth: Truth,
    pieces: Sequence[tuple[Footage, PieceResult]],
    usable: Sequence[int],
    *,
    dropped: Sequence[str] = (),
    failed: str | None = None,
) -> dict[str, Any]:
    """Return everything that is told about a video, as a JSON takes it.

    Args:
        name: Of the video.
        truth: Of the video.
        pieces: What the chain made of each; none where it failed.
        usable: See `usable_frames`.
        dropped: Why frames could not even be read.
        failed: How the chain failed.
    """
    slices = [one for _, result in pieces for one in result.slices]
    kept = [one for one in slices if one.clip is not None]
    clips = [clip_scores(one, truth) for one in kept]
    refused = [_which(one) | _refused(one, truth) for one in slices if one.clip is None]
    frames = {int(number) for one in kept for number in one.frames}
    path = truth.world_from_camera[:, :3, 3]
    row: dict[str, Any] = {
        "name": name,
        "world": truth.world,
        "kind": truth.kind,
        "failed": failed,
        "moving_share": float(truth.moving.mean()),
        "path_m": float(np.linalg.norm(np.diff(path, axis=0), axis=-1).sum()),
        "frames": len(truth.world_from_camera),
        "usable": len(usable),
        "kept": len(frames),
        "kept_usable": len(frames & set(usable)),
        "success": any(is_good(clip, truth.kind) for clip in clips),
        "wrong_clips": sum(map(is_wrong, clips)),
    }
    names = ("ate_percent", "rotation_deg", "rotation_worst_deg", "rotation_aligned_deg", "scale_percent")
    figures = (*names, "focal_error_percent", "coarse_ate_percent", "coarse_rotation_deg", "coarse_focal_error_percent")
    row |= {figure: _over_clips(clips, figure) for figure in figures}
    row["coarse_over_refined"] = _ratio(row["coarse_ate_percent"], row["ate_percent"])
    row["coarse_over_refined_rotation"] = _ratio(row["coarse_rotation_deg"], row["rotation_deg"])
    row |= _masks(pieces, truth)
    return row | {"clips": clips, "refused": refused, "lost": _lost(truth, pieces, frames, dropped, failed)}


def is_good(clip: dict[str, Any], kind: Kind) -> bool:
    """Return whether a clip is as good as clips of its kind shall be; a path too short has no ATE to be judged by."""
    most = GOOD[kind]
    return (clip["ate_percent"] or 0.0) <= most[0] and (clip["rotation_deg"] or 0.0) <= most[1]


def is_wrong(clip: dict[str, Any]) -> bool:
    """Return whether a clip should never have been kept."""
    return (clip["ate_percent"] or 0.0) > WRONG[0] or (clip["rotation_deg"] or 0.0) > WRONG[1]


def _which(one: SliceResult) -> dict[str, Any]:
    frames = {"first": int(one.frames[0]), "frames": len(one.frames), "quality": _finite(float(one.quality))}
    return frames if one.clip is not None else frames | {"reason": one.reason}


def _refused(one: SliceResult, truth: Truth) -> dict[str, Any]:
    """Return the errors of what was refused: whether that was right."""
    if one.world_from_camera is None:
        return {}
    scores = path_scores(one.world_from_camera, truth.world_from_camera[one.frames])
    return {name: scores[name] for name in ("path_m", "ate_percent", "rotation_deg")}


def _masks(pieces: Sequence[tuple[Footage, PieceResult]], truth: Truth) -> dict[str, float | None]:
    pairs = [(result.moving, truth.moving[footage.frame]) for footage, result in pieces if result.moving is not None]
    if not pairs:
        return dict.fromkeys(("mask_iou", "mask_recall", "mask_false_share"))
    found, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return mask_scores(found, true)


def _lost(
    truth: Truth,
    pieces: Sequence[tuple[Footage, PieceResult]],
    kept: set[int],
    dropped: Sequence[str],
    failed: str | None,
) -> dict[str, int]:
    """Return reason -> frames that are in no clip for it; "untold" are those without any reason."""
    reasons = Counter(dropped)
    for _, result in pieces:
        reasons.update(result.dropped.values())
        for one in result.slices:
            if one.clip is None:
                reasons[one.reason or "untold"] += len(one.frames)
    rest = len(truth.world_from_camera) - len(kept) - sum(reasons.values())
    if rest > 0:
        reasons["untold" if failed is None else "chain failed"] += rest
    return dict(reasons.most_common())


def _over_clips(clips: Sequence[dict[str, Any]], figure: str) -> float | None:
    """Return the mean of those clips that have the figure, by their frames."""
    having = [clip for clip in clips if clip.get(figure) is not None]
    if not having:
        return None
    return float(np.average([clip[figure] for clip in having], weights=[clip["frames"] for clip in having]))


def _ratio(coarse: float | None, refined: float | None) -> float | None:
    return None if coarse is None or refined is None else coarse / max(refined, _NO_ATE)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
