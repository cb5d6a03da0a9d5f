"""Settings of what is learned in the paper's layout, and of stage 2, which ours has too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from training.data_config import read_source


@dataclass(frozen=True, kw_only=True)
class DecodedConfig:
    """Stage 2: losses on decoded clips, beside the loss on latents."""

    colour_weight: float = 0.3
    """Weight of 1 - MS-SSIM of the pictures. The defaults of these three give each about half of the gradient that the
    loss on latents has there, as measured on `mini` at noise level 0.4 with `share` 0.25."""
    depth_weight: float = 0.05
    """Weight of the scale-and-shift-invariant loss of disparity."""
    points_weight: float = 0.01
    """Weight of the scale-and-shift-invariant loss of points; it teaches the rays only."""
    norm: float = 1.0
    """p of the disparity's data term |error|^p, in 1..2. The paper gives none; 1 forgives the few pixels of an edge."""
    gradient_weight: float = 0.5
    """alpha: weight of the disparity's gradient term beside its data term; MiDaS's."""
    gradient_scales: int = 4
    """Scales of the gradient term; MiDaS's."""
    level_power: float = 2.0
    """An item counts (1 - noise level)^this. Near pure noise the clean latents are the mean of all that may come, which
    decodes to mush: there the gradients say little that the loss on latents agrees with (cosine of the two for rays, on
    `mini`: 0.03 at level 1, 0.19 at 0.6, 0.29 at 0.2). 0 counts all levels alike."""
    share: float = 0.25
    """Share of the clips that is decoded at each step, those with the least noise: on a CPU, decoding all of them would
    take as long as the step itself."""
    far: float = 50.0
    """Points farther away than this many units, and the sky, do not count."""

    def __post_init__(self) -> None:
        weights = (self.colour_weight, self.depth_weight, self.points_weight, self.gradient_weight)
        if min(weights) < 0 or max(weights[:3]) <= 0:
            raise ValueError(
                "colour_weight, depth_weight, points_weight and gradient_weight must be at least 0 and one of the "
                f"first three above, got {weights}; without decoded losses leave the whole of stage 2 out."
            )
        if not 1 <= self.norm <= 2:
            raise ValueError(f"norm must be in 1..2, got {self.norm}; below 1 its gradient has no bound.")
        if self.gradient_scales < 1:
            raise ValueError(f"gradient_scales must be at least 1, got {self.gradient_scales}.")
        if self.level_power < 0:
            raise ValueError(f"level_power must be at least 0, got {self.level_power}; 0 counts all levels alike.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}.")
        if not self.far > 1:
            raise ValueError(f"far must be above 1 (units), got {self.far}.")


@dataclass(frozen=True, kw_only=True)
class AetherV1Config:
    """The objective of the paper's layout."""

    prediction: str = "v_prediction"
    """"v_prediction": the checkpoint's own scheduler, timesteps drawn evenly. "flow": straight paths, levels
    logit-normal; `AetherV1` cannot sample such a checkpoint."""
    flow_mean: float = 0.0
    """Of "flow": mean of the level's logit; larger means more noise."""
    flow_std: float = 1.0
    """Of "flow": standard deviation of the level's logit."""
    mask_shares: tuple[float, float, float, float] = (0.30, 0.40, 0.28, 0.02)
    """Clips whose known pictures are: observation and goal, observation, all, none."""
    path_share: float = 0.5
    """Clips whose path is known."""
    block_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of a channel of colour, disparity and ray."""
    slicing: bool = True
    """Encode and decode one clip at a time: less memory, the same numbers."""

    def __post_init__(self) -> None:
        if self.prediction not in ("v_prediction", "flow"):
            raise ValueError(f"prediction must be 'v_prediction' or 'flow', got {self.prediction!r}.")
        if len(self.mask_shares) != 4 or min(self.mask_shares) < 0 or abs(sum(self.mask_shares) - 1) > 1e-6:
            raise ValueError(f"mask_shares must be four shares that sum to 1, got {self.mask_shares}.")
        if not 0 <= self.path_share <= 1:
            raise ValueError(f"path_share must be in [0, 1], got {self.path_share}.")
        weights = self.block_weights
        if len(weights) != 3 or not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError(f"block_weights must be three numbers >= 0, one of them positive, got {weights}.")
        if not (self.flow_std > 0 and math.isfinite(self.flow_std) and math.isfinite(self.flow_mean)):
            raise ValueError(f"flow_std must be positive and flow_mean finite, got {self.flow_std}, {self.flow_mean}.")


@dataclass(frozen=True, kw_only=True)
class AetherV1StageConfig:
    """The stage "aetherv1": the paper's model."""

    checkpoint: str | None = None
    """Folder in the published format to begin with: AetherV1, or the base model widened by training.widen."""
    sources: tuple[str, ...] = ("simulator",)
    """Where clips come from, see `DataConfig`."""
    num_frames: tuple[int, ...] = (17, 25, 33, 41)
    """Frames of a clip; each batch has one of these numbers."""
    fps: tuple[float, ...] = (8.0, 10.0, 12.0, 15.0, 24.0)
    """Frames per second; each batch has one of these rates."""
    sizes: tuple[tuple[int, int], ...] = ((480, 720),)
    """Heights and widths; clips go to the size nearest in aspect."""
    shuffle_shards: int = 16
    """Shards whose clips are shuffled among each other."""
    workers: int = 0
    """Processes that load clips ahead."""
    objective: AetherV1Config = field(default_factory=AetherV1Config)
    """Stage 1."""
    stage2: bool = False
    """Add the losses of `decoded`."""
    decoded: DecodedConfig = field(default_factory=DecodedConfig)
    """Stage 2: losses on decoded clips."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source of clips.")
        for source in self.sources:
            read_source(source)
        bad = [n for n in self.num_frames if n < 9 or n % 8 != 1]
        if bad or not self.num_frames:
            raise ValueError(f"num_frames must be numbers 8 k + 1, at least 9, for this autoencoder, got {bad}.")
        if not self.fps or not 1 <= min(self.fps) <= max(self.fps) <= 60:
            raise ValueError(f"fps must be rates in 1..60, what RoPE is spread for, got {self.fps}.")
        wrong = [size for size in self.sizes if min(size) < 16 or size[0] % 16 or size[1] % 16]
        if wrong or not self.sizes:
            raise ValueError(f"sizes must be heights and widths that are multiples of 16, got {wrong}.")
        if self.workers < 0 or self.shuffle_shards < 1:
            raise ValueError(
                f"workers must be at least 0 and shuffle_shards at least 1, got {self.workers}, {self.shuffle_shards}."
            )
