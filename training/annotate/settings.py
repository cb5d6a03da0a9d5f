"""Settings of the annotation: every threshold of the chain, by the module that uses it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from training.annotate.coarse import CoarseSettings
from training.annotate.grounded import GroundedSettings
from training.annotate.masks import GeometricSettings
from training.annotate.pieces import InputSettings
from training.annotate.quality import QualitySettings
from training.annotate.refine import RefineSettings
from training.annotate.slicing import SlicingSettings
from training.checks import fields_in_range


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """How videos become clips."""

    masker: Literal["auto", "geometric", "grounded", "none"] = "auto"
    """Who finds what moves: "auto" takes the video's own masks, else "geometric"; "grounded" needs weights on disk;
    "none" takes everything for static."""
    detector: Path | None = None
    """Folder of Grounding DINO's weights, for "grounded"."""
    segmenter: Path | None = None
    """Folder of SAM 2's weights, for "grounded"."""
    tracker: Literal["sift", "superpoint", "disk", "cotracker3"] = "sift"
    """Who finds points to follow; all but "sift" need weights."""
    tracker_weights: Path | None = None
    """Of a tracker that needs them: a file, or of SuperPoint a folder."""
    refine: bool = True
    """Refine the first cameras by bundle adjustment."""
    seed: int = 0
    """Of all sampling; the same seed and video give the same clips."""
    plots: bool = True
    """Draw plots of every video for the report: a second or two each."""
    inputs: InputSettings = InputSettings()
    """How videos are read."""
    masks: GeometricSettings = GeometricSettings()
    """What counts as moving."""
    grounded: GroundedSettings = GroundedSettings()
    """The same for "grounded"."""
    slicing: SlicingSettings = SlicingSettings()
    """Which frames are used, and how long clips are."""
    coarse: CoarseSettings = CoarseSettings()
    """First cameras."""
    refinement: RefineSettings = RefineSettings()
    """Tracks and bundle adjustment."""
    quality: QualitySettings = QualitySettings()
    """What is believed."""

    def __post_init__(self) -> None:
        fields_in_range(self, "seed", low=0)
        if self.masker == "grounded" and (self.detector is None or self.segmenter is None):
            raise ValueError('masker "grounded" needs the folders of its weights: give detector and segmenter.')
        if self.tracker != "sift" and self.tracker_weights is None:
            raise ValueError(f'tracker "{self.tracker}" needs its weights: give tracker_weights, or take "sift".')

    def told(self) -> dict[str, Any]:
        """Return all settings as a JSON gives them back; infinity is a word."""
        return json.loads(json.dumps(_strict(asdict(self)), allow_nan=False))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return str(value) if isinstance(value, Path) or value in (math.inf, -math.inf) else value
