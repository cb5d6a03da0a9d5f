"""Settings of what is learned in the paper's layout, and of stage 2, which ours has too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from training.checks import fields_in_range
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
        fields_in_range(self, "colour_weight", "depth_weight", "points_weight", "gradient_weight", low=0)
        fields_in_range(self, "norm", low=1, high=2)  # below 1 its gradient has no bound
        fields_in_range(self, "gradient_scales", low=1)
        fields_in_range(self, "level_power", low=0)
        fields_in_range(self, "share", low=0, high=1, ends="(]")
        fields_in_range(self, "far", low=1, ends="()")
        weights = (self.colour_weight, self.depth_weight, self.points_weight)
        if max(weights) == 0:
            raise ValueError(
                "one of colour_weight, depth_weight and points_weight must be above 0, got "
                f"{weights}; without decoded losses leave the whole of stage 2 out."
            )


def check_mask_shares(shares: tuple[float, ...]) -> None:
    """Check how the clips of a batch are divided by what is known of their pictures.

    Raises:
        ValueError: They are not four shares that sum to 1.
    """
    if len(shares) != 4 or not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # of NaN neither holds
        raise ValueError(f"mask_shares must be four shares that sum to 1, got {shares}.")


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
        check_mask_shares(self.mask_shares)
        fields_in_range(self, "path_share", low=0, high=1)
        fields_in_range(self, "block_weights", low=0)
        if len(self.block_weights) != 3 or max(self.block_weights) == 0:
            raise ValueError(f"block_weights must be three numbers, one of them positive, got {self.block_weights}.")
        fields_in_range(self, "flow_mean", low=-math.inf)
        fields_in_range(self, "flow_std", low=0, ends="()")


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
    decoded_size: tuple[int, int] = (128, 192)
    """Height and width of the part of the pictures that stage 2 decodes, anew at each step; at most the whole. Of 41
    whole frames of 480 x 720 the decoder of CogVideoX would keep 284 GiB for the backward pass."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source of clips.")
        for source in self.sources:
            read_source(source)
        bad = [n for n in self.num_frames if n < 9 or n % 8 != 1]
        if bad or not self.num_frames:
            raise ValueError(f"num_frames must be numbers 8 k + 1, at least 9, for this autoencoder, got {bad}.")
        fields_in_range(self, "fps", low=1, high=60)  # what RoPE is spread for
        if not self.fps:
            raise ValueError("fps must name at least one rate.")
        wrong = [size for size in self.sizes if min(size) < 16 or size[0] % 16 or size[1] % 16]
        if wrong or not self.sizes:
            raise ValueError(f"sizes must be heights and widths that are multiples of 16, got {wrong}.")
        if min(self.decoded_size) < 64 or self.decoded_size[0] % 16 or self.decoded_size[1] % 16:
            raise ValueError(
                f"decoded_size must be a height and a width, multiples of 16 and at least 64, got {self.decoded_size}."
            )
        fields_in_range(self, "workers", low=0)
        fields_in_range(self, "shuffle_shards", low=1)
