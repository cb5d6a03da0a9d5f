"""What a training run is made of. A run is a `TrainConfig`; recipes.py has the ones that were run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aether_env.conventions import FRAMES_PER_LATENT


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Clips rendered inside the run."""

    height: int = 64
    """Rows of a picture."""
    width: int = 96
    """Columns of a picture."""
    fps: float = 12.0
    """Frames per second."""
    latent_steps: int = 12
    """Latent steps of a clip: the resting first frame and groups of four frames."""
    clip_starts: tuple[int, ...] = (0, 16, 28)
    """Frames at which a window of the three tasks may begin; multiples of 4."""
    chunk_clips: int = 1024
    """Clips rendered and encoded together."""
    chunks: int = 24
    """Chunks held at a time."""
    renew_every: int = 60
    """Training steps after which the oldest chunk is replaced."""
    supersample: int = 2
    """Rays per pixel and axis."""
    workers: int = 0
    """Processes that plan clips ahead; 0 plans in the training process."""
    family: str | None = None
    """One scene family only; None mixes all."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return FRAMES_PER_LATENT * (self.latent_steps - 1) + 1

    def __post_init__(self) -> None:
        if self.height % 8 or self.width % 8:
            raise ValueError(f"height and width must be multiples of 8, got {self.height} x {self.width}.")
        last = self.num_frames - 1 - 16
        bad = [s for s in self.clip_starts if s % FRAMES_PER_LATENT or not 0 <= s <= last]
        if bad or self.clip_starts[:1] != (0,):
            raise ValueError(
                f"clip_starts must be multiples of 4 in 0..{last}, got {bad}; change them or latent_steps."
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with Muon for the matrices of attention and feed-forward."""

    lr: float = 6e-4
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon; 0 gives every parameter to AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_share: float = 0.4
    """Share of the run, at its end, over which the rate falls linearly to zero."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.9995
    """Decay of the averaged weights that are shipped."""

    def __post_init__(self) -> None:
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must be in (0, 1], got {self.decay_share}.")
        if self.lr <= 0 or self.muon_lr < 0 or self.clip_norm <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"lr and clip_norm must be positive, muon_lr >= 0 and ema in [0, 1), got {self}.")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """One run trains the colour and the disparity autoencoder side by side."""

    colour: dict[str, Any] = field(default_factory=lambda: {"in_channels": 3})
    """Arguments of the colour autoencoder."""
    disparity: dict[str, Any] = field(
        default_factory=lambda: {
            "in_channels": 1,
            "width": 96,
            "fine_width": 24,
            "encoder_blocks": 2,
            "decoder_blocks": 3,
            "fine_blocks": 1,
        }
    )
    """Arguments of the disparity autoencoder, thinner: it is decoded at every env step."""
    kl_weight: float = 2e-5
    """Weight of the KL term per latent number."""
    edge_weight: float = 1.0
    """Weight of the L1 loss on spatial differences."""
    still_share: float = 0.3
    """Share of samples whose first group is one picture at rest."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The colour autoencoder's decoder, trained on against a discriminator. The encoder, so every latent, stays."""

    autoencoder: str = "mini"
    """Checkpoint whose colour decoder is trained on; everything else of it is exported as it is."""
    adversarial_weight: float = 0.3
    """Weight of the discriminator's verdict beside the reconstruction loss."""
    adversarial_start: float = 0.1
    """Share of the run during which the discriminator learns but the decoder does not heed it."""
    latent_noise: float = 0.15
    """Largest standard deviation of the noise on latents, in those of the latent channels: dreamed latents are not
    perfect either. Each sample draws its own from 0 to here."""
    critic_lr: float = 4e-4
    """Peak learning rate of the discriminator."""
    critic_widths: tuple[int, ...] = (48, 96, 192)
    """Channels of the discriminator's convolutions; each halves the size of the picture."""

    def __post_init__(self) -> None:
        if self.adversarial_weight < 0 or self.latent_noise < 0 or self.critic_lr <= 0:
            raise ValueError(f"adversarial_weight and latent_noise must be >= 0, critic_lr positive, got {self}.")
        if not 0 <= self.adversarial_start <= 1:
            raise ValueError(f"adversarial_start must be in [0, 1], got {self.adversarial_start}.")
        if not self.critic_widths or min(self.critic_widths) < 1:
            raise ValueError(f"critic_widths must name at least one positive width, got {self.critic_widths}.")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Stage 1: the diffusion transformer in latent space."""

    architecture: dict[str, Any] = field(
        default_factory=lambda: {"num_attention_heads": 6, "num_layers": 8, "time_embed_dim": 128}
    )
    """Arguments of CogVideoXTransformer3DModel beyond those that the layout fixes."""
    step_share: float = 0.25
    """Share of the batch: env steps with true history."""
    walker_share: float = 0.2
    """Share of the batch: env steps whose history the model dreamed itself."""
    reset_share: float = 0.04
    """Share of the batch: one picture, its disparity and raymap to be dreamed. The rest are clips."""
    walker_start: float = 0.25
    """Share of the run after which walkers go on from what they dreamed; before, from the truth."""
    walker_sigmas: tuple[float, ...] = (1.0, 0.67, 0.33)
    """Noise levels of the walkers' sampling, and of the exported checkpoint's env steps."""
    walker_detail: float = 0.9
    """How much farther the walkers' steps, and those of the exported checkpoint, go from the first towards the last
    answer of the network, see `step_detail` in denoise.py."""
    find_pure_share: float = 0.75
    """Share of samples that start from pure noise among windows whose camera path is to be found."""
    follow_pure_share: float = 0.3
    """The same share among windows whose path is known: what lower noise levels add there is detail."""
    ray_weight: float = 3.0
    """Weight of the raymap's error beside those of colour and disparity: its numbers vary little, but all matter."""
    history_noise: float = 0.05
    """Standard deviation of the noise on shown latents of an env step, in training and in use."""
    memory_share: float = 0.6
    """Share of env steps that are shown a memory."""
    mask_shares: tuple[float, float, float, float] = (0.30, 0.40, 0.28, 0.02)
    """Clips: observation and goal, observation, all frames, nothing (AETHER section 3.3)."""
    path_share: float = 0.5
    """Clips whose path is known."""
    first_ray_share: float = 0.15
    """Clips without path of which the first frame's rays (the intrinsics) are known."""
    autoencoder: str | None = None
    """Checkpoint whose autoencoders are used: a folder such as runs/mini_autoencoder/checkpoint, or "mini"."""
    warm_start: str | None = None
    """Checkpoint whose transformer the run begins with; None begins with random weights."""

    def __post_init__(self) -> None:
        shares = (self.step_share, self.walker_share, self.reset_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(f"step, walker and reset shares must be positive and leave some clips, got {shares}.")
        if min(self.mask_shares) < 0 or abs(sum(self.mask_shares) - 1) > 1e-6:
            raise ValueError(f"mask_shares must be four shares that sum to 1, got {self.mask_shares}.")
        sigmas = self.walker_sigmas
        if sigmas[:1] != (1.0,) or sorted(set(sigmas), reverse=True) != list(sigmas) or sigmas[-1] <= 0:
            raise ValueError(f"walker_sigmas must fall from 1 towards 0, got {sigmas}.")
        if not (0 <= self.find_pure_share <= 1 and 0 <= self.follow_pure_share <= 1):
            raise ValueError(f"find_pure_share and follow_pure_share must be in [0, 1], got {self}.")
        if self.ray_weight <= 0 or not 0 <= self.history_noise < 1:
            raise ValueError(f"ray_weight must be positive and history_noise in [0, 1), got {self}.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run."""

    stage: str = "transformer"
    """"autoencoder", "decoder" or "transformer"."""
    data: DataConfig = field(default_factory=DataConfig)
    """Clips."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Of the stage "autoencoder"; the stage "decoder" shares its edge_weight and still_share."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Of the stage "decoder"."""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    """Of the stage "transformer"."""
    batch_size: int = 256
    """Samples per step and process."""
    steps: int = 1000
    """Steps of the run."""
    minutes: float | None = None
    """Wall-clock budget: the schedule ends at `steps` or here, whichever comes first. Such a run cannot be repeated bit
    by bit, because the schedule follows the clock."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between log lines."""
    seed: int = 0
    """Of the weights and of every draw."""
    device: str = "cpu"
    """"cpu" or "cuda" (then one process per GPU under torchrun)."""
    compile: bool = False
    """Compile the transformer's blocks or the autoencoders."""
    bf16: bool = False
    """Run the network in bfloat16; weights and sums stay float32."""

    def __post_init__(self) -> None:
        if self.stage not in ("autoencoder", "decoder", "transformer"):
            raise ValueError(f"stage must be 'autoencoder', 'decoder' or 'transformer', got {self.stage!r}.")
        for name in ("batch_size", "steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.stage == "transformer" and self.transformer.autoencoder is None:
            raise ValueError("transformer.autoencoder must name a checkpoint with trained autoencoders.")
