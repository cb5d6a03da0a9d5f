"""What a training run is made of. A run is a `TrainConfig`; recipes.py has the ones that were run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from training.aetherv1_config import AetherV1Config, AetherV1StageConfig, DecodedConfig, check_mask_shares
from training.checks import arguments_in_range, fields_in_range
from training.data_config import DataConfig

__all__ = [
    "AetherV1Config", "AetherV1StageConfig", "AutoencoderConfig", "DataConfig", "DecodedConfig", "DecoderConfig",
    "OptimizerConfig", "ParallelConfig", "TrainConfig", "TransformerConfig", "WatchConfig",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with Muon for the matrices of attention and feed-forward."""

    lr: float = 6e-4
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon; 0 gives every parameter to AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    schedule: str = "trapezoid"
    """"trapezoid": linear warm-up, constant, linear fall to zero. "onecycle": the paper's, as OneCycleLR (two cosines,
    up from lr / 25 and down to lr / 250,000). Both follow the progress of the run, by steps or by the clock."""
    warmup_steps: int = 100
    """"trapezoid": steps of warm-up."""
    decay_share: float = 0.4
    """"trapezoid": share of the run, at its end, over which the rate falls."""
    rise_share: float = 0.3
    """"onecycle": share of the run over which the rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.9995
    """Decay of the averaged weights that are shipped."""

    def __post_init__(self) -> None:
        if self.schedule not in ("trapezoid", "onecycle"):
            raise ValueError(f"schedule must be 'trapezoid' or 'onecycle', got {self.schedule!r}.")
        fields_in_range(self, "decay_share", "rise_share", low=0, high=1, ends="(]")
        fields_in_range(self, "lr", "clip_norm", low=0, ends="()")
        fields_in_range(self, "muon_lr", "weight_decay", "warmup_steps", low=0)
        fields_in_range(self, "ema", "betas", low=0, high=1, ends="[)")
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas}.")


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

    def __post_init__(self) -> None:
        fields_in_range(self, "kl_weight", "edge_weight", low=0)
        fields_in_range(self, "still_share", low=0, high=1)
        for name in ("colour", "disparity"):
            arguments_in_range(name, getattr(self, name))


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
        fields_in_range(self, "adversarial_weight", "latent_noise", low=0)
        fields_in_range(self, "adversarial_start", low=0, high=1)
        fields_in_range(self, "critic_lr", low=0, ends="()")
        fields_in_range(self, "critic_widths", low=1)
        if not self.critic_widths:
            raise ValueError("critic_widths must name at least one width.")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The diffusion transformer in latent space: stage 1, and with `stage2` stage 2."""

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
    walker_every: int = 1
    """Training steps between two steps of the walkers; between them the same steps are trained on with other noise.
    Dreaming is many small passes, of which a GPU computes quicker than a CPU can ask for them."""
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
    step_guess: bool = False
    """Show an env step what the frames so far look like from the wanted poses, in training and in use; see
    aether_env/world_model/reproject.py."""
    guess_share: float = 0.9
    """Share of env steps that are shown it in training."""
    mask_shares: tuple[float, float, float, float] = (0.30, 0.40, 0.28, 0.02)
    """Clips: observation and goal, observation, all frames, nothing (AETHER section 3.3)."""
    path_share: float = 0.5
    """Clips whose path is known."""
    first_ray_share: float = 0.15
    """Clips without path of which the first frame's rays (the intrinsics) are known."""
    autoencoder: str | None = None
    """Checkpoint whose autoencoders are used: a folder such as runs/mini_autoencoder/checkpoint, or "mini". "fresh" is
    a pair with random weights, see `AutoencoderConfig`, which tries the machinery without another run."""
    stage2: bool = False
    """Add the losses of `decoded`."""
    decoded: DecodedConfig = field(default_factory=DecodedConfig)
    """Stage 2: losses on decoded clips beside the one on latents."""

    def __post_init__(self) -> None:
        fields_in_range(self, "step_share", "walker_share", "reset_share", low=0, high=1, ends="()")
        shares = (self.step_share, self.walker_share, self.reset_share)
        if sum(shares) >= 1:
            raise ValueError(f"step, walker and reset shares must leave some clips, got {shares}.")
        check_mask_shares(self.mask_shares)
        fields_in_range(self, "walker_start", "memory_share", "path_share", "first_ray_share", low=0, high=1)
        fields_in_range(self, "guess_share", low=0, high=1)
        fields_in_range(self, "find_pure_share", "follow_pure_share", low=0, high=1)
        fields_in_range(self, "walker_sigmas", low=0, high=1, ends="(]")
        sigmas = self.walker_sigmas
        if sigmas[:1] != (1.0,) or sorted(set(sigmas), reverse=True) != list(sigmas):
            raise ValueError(f"walker_sigmas must fall from 1 towards 0, got {sigmas}.")
        fields_in_range(self, "walker_detail", low=0, high=2)  # what a checkpoint takes
        fields_in_range(self, "history_noise", low=0, high=1, ends="[)")
        fields_in_range(self, "ray_weight", low=0, ends="()")
        fields_in_range(self, "walker_every", low=1)
        arguments_in_range("architecture", self.architecture)

    def windows(self, batch_size: int) -> dict[str, int]:
        """Return how many windows of each kind a batch holds: clip, step, walker, reset.

        Raises:
            ValueError: There are none of some kind.
        """
        sizes = {name: round(batch_size * getattr(self, f"{name}_share")) for name in ("step", "walker", "reset")}
        sizes = {"clip": batch_size - sum(sizes.values()), **sizes}
        if min(sizes.values()) < 1:
            raise ValueError(
                f"batch_size {batch_size} leaves no sample for some kind of window ({sizes}); use at least 32."
            )
        return sizes


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a run spreads over processes, and what it computes twice to save memory."""

    shards: int = 1
    """Processes that share one copy of the weights and optimizers, of one node as a rule; 1: each holds its own."""
    activation_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass: a third more work, a fraction of the memory."""

    def __post_init__(self) -> None:
        fields_in_range(self, "shards", low=1)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a run shows of itself beside log.jsonl."""

    tensorboard: bool = True
    """Scalars and sheets also to RUN_DIR/tensorboard, where the package tensorboard is installed."""
    sheet_every: int = 0
    """Steps between sheets of samples from validation seeds, in RUN_DIR/samples; 0: none. The first process draws them
    with averaged weights, the others wait. In the stage "aetherv1" this takes a whole copy of the transformer on its
    device while it draws, 11 GB of AetherV1 in bfloat16 beside the run's own weights, and the time of
    2 * sheet_clips * sheet_steps passes through it."""
    sheet_clips: int = 4
    """Clips on a sheet."""
    sheet_steps: int = 10
    """Stage "aetherv1" only: sampling steps of a sheet. Our own transformer takes those of its checkpoint."""
    peak_tflops: float | None = None
    """Peak of the device, of which MFU is a share; None measures it by matrix products, on a CPU there is none."""

    def __post_init__(self) -> None:
        fields_in_range(self, "sheet_every", low=0)
        fields_in_range(self, "sheet_clips", low=1)
        fields_in_range(self, "sheet_steps", low=1, high=1000)  # the checkpoint's levels of noise
        if self.peak_tflops is not None:
            fields_in_range(self, "peak_tflops", low=0, ends="()")


FRESH = "fresh"
"""In place of a checkpoint's name: random weights."""
STAGES = ("autoencoder", "decoder", "transformer", "aetherv1")
"""What can be trained: both autoencoders of our layout, its colour decoder, its transformer; the paper's model."""
SMALL_STAGES = ("autoencoder", "decoder")
"""Those without a transformer."""
WARM_TIMES = ("never", "end", "saves")
MAX_SEED = 255
"""The simulator has 2^40 training seeds, and each seed of a run takes 2^32 of them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run."""

    stage: str = "transformer"
    """"autoencoder", "decoder", "transformer" (of our layout) or "aetherv1"."""
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
    aetherv1: AetherV1StageConfig = field(default_factory=AetherV1StageConfig)
    """Of the stage "aetherv1"."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes and memory."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Progress, sheets."""
    batch_size: int = 256
    """Samples per step and process."""
    steps: int = 1000
    """Steps of the run."""
    minutes: float | None = None
    """Wall-clock budget: the schedule ends at `steps` or here, whichever comes first. Such a run cannot be repeated bit
    by bit, because the schedule follows the clock."""
    warm_start: str | None = None
    """What the run begins with instead of random weights: a checkpoint of the same architecture, such as "mini", or a
    run or its folder warm/, whose raw and averaged weights both go on."""
    warm: str = "saves"
    """When the folder warm/ is written, all weights in bfloat16: "never", at the "end", or at all "saves"."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps after which their log lines are written together: until then the numbers stay on the device."""
    max_bad_steps: int = 20
    """A step whose loss or gradient is not finite is skipped; after so many in a row the run stops with a report."""
    seed: int = 0
    """Of the weights and of every draw, 0 to 255: each has scenes of its own, and there are so many."""
    device: str = "cpu"
    """"cpu" or "cuda" (then one process per GPU under torchrun); "cuda:1" is one GPU, for a run of one process."""
    threads: int = 0
    """Of PyTorch on a CPU; 0 leaves it to PyTorch. For a tiny network one is quicker than two."""
    compile: bool = False
    """Compile the transformer's blocks or the autoencoders."""
    cuda_graphs: bool = False
    """Record the steps of the stage "transformer" and replay them, so that a GPU does not wait for the CPU; not with
    shards or stage 2."""
    bf16: bool = False
    """Run the network in bfloat16; weights and sums stay float32."""

    def __post_init__(self) -> None:
        for name, choices in (("stage", STAGES), ("warm", WARM_TIMES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        fields_in_range(self, "batch_size", "steps", "save_every", "log_every", "max_bad_steps", low=1)
        fields_in_range(self, "threads", low=0)
        fields_in_range(self, "seed", low=0, high=MAX_SEED)
        if self.minutes is not None:
            fields_in_range(self, "minutes", low=0, ends="()")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N' for one GPU, got {self.device!r}.")
        self._check_stage()

    def _check_recorded(self) -> None:
        """Refuse what cannot be recorded."""
        for name, value, wanted in (
            ("stage", self.stage, "transformer"),
            ("parallel.shards", self.parallel.shards, 1),
            ("transformer.stage2", self.transformer.stage2, False),
            ("device", self.device.split(":")[0], "cuda"),
        ):
            if value != wanted:
                raise ValueError(f"{name} must be {wanted!r} for cuda_graphs, got {value!r}; or --no-cuda-graphs.")

    def _check_stage(self) -> None:
        """Refuse what the stage would not heed, and what it cannot do without."""
        flow = self.stage == "aetherv1" and self.aetherv1.objective.prediction == "flow"
        if self.watch.sheet_every and flow:
            raise ValueError(
                f"watch.sheet_every must be 0 where aetherv1.objective.prediction is 'flow', got "
                f"{self.watch.sheet_every}: sheets are drawn by AetherV1's own sampler, which cannot use it."
            )
        if self.parallel.activation_checkpointing and self.stage in SMALL_STAGES:
            raise ValueError(
                f"parallel.activation_checkpointing must be off in the stage {self.stage!r}: it is for the blocks of "
                "transformers; a smaller batch_size saves memory too."
            )
        if self.cuda_graphs:
            self._check_recorded()
        if self.data.sources and self.stage == "aetherv1":
            raise ValueError(
                f"data.sources must be empty in the stage 'aetherv1', got {self.data.sources}; aetherv1.sources names "
                "its clips."
            )
        if self.stage == "transformer":
            if self.transformer.autoencoder is None:
                raise ValueError("transformer.autoencoder must name a checkpoint with trained autoencoders.")
            self.transformer.windows(self.batch_size)
        if self.stage == "aetherv1" and self.aetherv1.checkpoint is None:
            raise ValueError(
                "aetherv1.checkpoint must name a folder in the published format: aether import-aetherv1 brings "
                "AetherV1, python -m training.widen makes one of CogVideoX-5b-I2V."
            )
