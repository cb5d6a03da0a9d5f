"""Stage 1: which windows the transformer is trained on, and its loss (AETHER section 3.3; DESIGN decisions 3 to 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aether_env.raymap import ORIGIN_GAIN
from aether_env.world_model.conditions import (
    CLIP_POSITIONS,
    COLOUR,
    DISPARITY,
    HISTORY,
    RAY,
    STEP_POSITIONS,
    WINDOW,
    Window,
    slot_raymaps,
    transformer_input,
)
from aether_env.world_model.denoise import denoise, look_back, step_detail
from aether_env.world_model.latents import CELL, Codec
from aether_env.world_model.network import CleanPrediction
from aether_env.world_model.reproject import Views, guess_latents, inverse_pose, reproject
from training.config import TransformerConfig
from training.simulate import LatentBank

BLIND_BEGINS = 8
"""At most so many walks at a time begin with a dreamed depth of their first picture."""


@dataclass(frozen=True)
class Batch:
    """Windows and what they should become."""

    window: Window
    target: Tensor
    """(B, N, TARGET_CHANNELS, h, w)."""


def rays(bank: LatentBank, rows: Tensor, frames: Tensor, reference: Tensor, unit: Tensor) -> Tensor:
    """Return the ray channels of slots.

    Args:
        bank: The clips.
        rows: (B,) clips.
        frames: (B, N, 4) frames of each slot.
        reference: (B,) the frame whose camera is the window's world.
        unit: (B,) length unit.
    """
    poses = bank.world_from_camera[rows[:, None, None], frames]
    world = inverse_pose(bank.world_from_camera[rows, reference])
    height, width = bank.config.height, bank.config.width
    camera = (world[:, None, None] @ poses).float()
    return slot_raymaps(camera, bank.intrinsics[rows], unit, height, width, CELL, ORIGIN_GAIN)


class Walked(NamedTuple):
    """What B walks have seen at each of their latent steps."""

    latents: Tensor
    """(B, latent steps, 32, h, w)."""
    views: tuple[Tensor, Tensor] | None
    """The last frame of each, (B, latent steps, H, W, 3) uint8, and its depth, (B, latent steps, H, W) float16 metres;
    of steps that are still to come the true ones. None where no guesses are made of them."""


class Sampler:
    """Draws batches of windows from a bank. Every draw comes from the generator it is given.

    Args:
        bank: Of clips; where guesses are shown, with views.
        config: What windows are like.
        codec: Encodes guesses; needed with `config.step_guess`.
        bf16: Encode them in bfloat16.
    """

    def __init__(self, bank: LatentBank, config: TransformerConfig, codec: Codec | None = None, bf16: bool = False):
        self.bank, self.config, self.layout = bank, config, bank.layout
        self.codec, self.bf16 = codec, bf16
        # On the device from the beginning: a copy in the middle of a step would make a GPU wait.
        self._kinds = torch.tensor(config.mask_shares, device=bank.device).cumsum(0)[:3]

    def clips(self, size: int, generator: torch.Generator) -> Batch:
        """Windows of the three tasks: 17 frames as five slots, all dreamed, with AETHER's masks."""
        layout, config, device = self.layout, self.config, self.bank.device

        def draw() -> Tensor:
            return torch.rand(size, generator=generator, device=device)

        rows = torch.randint(len(self.bank), (size,), generator=generator, device=device)
        start = torch.randint(len(layout.start_frames), (size,), generator=generator, device=device)
        unit = self.bank.unit[rows, start]
        ray = rays(self.bank, rows, layout.clip_frames[start], layout.start_frames[start], unit)
        colour = self.bank.colour[rows[:, None], layout.clip_colour[start]].float()
        disparity = self.bank.disparity[rows[:, None], layout.clip_disparity[start]].float()
        target = torch.cat([colour, disparity, ray], dim=2)

        kind = torch.bucketize(draw(), self._kinds)
        goal, observation, everything = kind == 0, kind <= 1, kind == 2
        known = target.clone()
        last = known[:, -1]
        last[:, COLOUR] = torch.where(
            goal[:, None, None, None], self.bank.colour[rows, layout.goal_colour[start]].float(), last[:, COLOUR]
        )
        last[:, DISPARITY] = torch.where(
            goal[:, None, None, None],
            self.bank.disparity[rows, layout.goal_disparity[start]].float(),
            last[:, DISPARITY],
        )
        mask = torch.zeros(size, WINDOW, 3, device=device)
        mask[:, 0, 0] = (observation | everything).float()
        mask[:, 1:, 0] = everything[:, None].float()
        mask[:, -1, 0] = torch.maximum(mask[:, -1, 0], goal.float())
        with_depth = draw()
        first_depth = (observation & (with_depth < 0.5)) | (everything & (with_depth < 0.25))
        mask[:, 0, 1] = first_depth.float()
        mask[:, 1:, 1] = (everything & (with_depth < 0.12))[:, None].float()
        mask[:, -1, 1] = torch.maximum(mask[:, -1, 1], (goal & (with_depth < 0.2)).float())
        path = draw()
        mask[:, :, 2] = (path < config.path_share)[:, None].float()
        mask[:, 0, 2] = (path < config.path_share + config.first_ray_share).float()
        return Batch(Window(known, mask, torch.ones(size, WINDOW, device=device), CLIP_POSITIONS), target)

    def resets(self, size: int, generator: torch.Generator) -> Batch:
        """One picture at rest in the new slot: its disparity and rays are dreamed, the rest of the window is empty."""
        device = self.bank.device
        rows = torch.randint(len(self.bank), (size,), generator=generator, device=device)
        start = torch.randint(len(self.layout.start_frames), (size,), generator=generator, device=device)
        known_rays = torch.rand(size, generator=generator, device=device) < 0.7
        return self.reset_windows(rows, start, known_rays)

    def reset_windows(self, rows: Tensor, start: Tensor, known_rays: Tensor) -> Batch:
        """Return what a reset without depth looks at.

        Args:
            rows: (B,) clips.
            start: (B,) which of the starts.
            known_rays: (B,) bool, the intrinsics are known.
        """
        layout, size, device = self.layout, len(rows), self.bank.device
        frames = layout.clip_frames[start][:, :1]
        ray = rays(self.bank, rows, frames, layout.start_frames[start], self.bank.unit[rows, start])
        colour = self.bank.colour[rows[:, None], layout.clip_colour[start][:, :1]].float()
        disparity = self.bank.disparity[rows[:, None], layout.clip_disparity[start][:, :1]].float()
        target = torch.cat([colour, disparity, ray], dim=2)
        target = torch.cat([torch.zeros_like(target).expand(-1, WINDOW - 1, -1, -1, -1), target], dim=1)
        mask = torch.zeros(size, WINDOW, 3, device=device)
        mask[:, -1, 0] = 1.0
        mask[:, -1, 2] = known_rays.float()
        dreamed = torch.zeros(size, WINDOW, device=device)
        dreamed[:, -1] = 1.0
        return Batch(Window(target, mask, dreamed, STEP_POSITIONS, history=WINDOW - 1), target)

    def first_step(self, rows: Tensor) -> Tensor:
        """Return the first step (B,) that a walk in these clips may dream: 1, or 4 where its unit is an old one."""
        return torch.where(self.bank.old_unit[rows], HISTORY + 1, 1)

    def steps(
        self, rows: Tensor, step: Tensor, generator: torch.Generator, dreamt: Walked | None = None, later: bool = True
    ) -> Batch:
        """Env steps: memory, three steps of history, and the new one to be dreamed.

        Args:
            rows: (B,) clips.
            step: (B,) the latent step to be dreamed, at least 1.
            generator: For memory and noise.
            dreamt: What the model itself dreamed of the walks so far; None shows the truth.
            later: Memory may also come from later in the walk.
        """
        layout, config, bank, size = self.layout, self.config, self.bank, len(rows)
        device = bank.device
        history = step[:, None] + torch.arange(-3, 0, device=device)
        steps = len(layout.walk_frames)
        choices = torch.rand(size, steps, generator=generator, device=device)
        number = torch.arange(steps, device=device)
        usable = (number < step[:, None] - 3) | (
            (number > step[:, None]) if later else torch.zeros_like(choices).bool()
        )
        memory = choices.where(usable, -1.0).argmax(dim=1)
        has_memory = usable.any(dim=1)
        has_memory &= torch.rand(size, generator=generator, device=device) < config.memory_share
        slots = torch.cat([memory[:, None], history, step[:, None]], dim=1)
        present = torch.cat([has_memory[:, None], history >= 0], dim=1)
        slots = slots.clamp(min=0)

        ray = rays(bank, rows, layout.walk_frames[slots], layout.walk_frames[step - 1, 3], bank.walk_unit[rows])
        colour = bank.colour[rows[:, None], layout.walk_colour[slots]].float()
        disparity = bank.disparity[rows[:, None], layout.walk_disparity[slots]].float()
        target = torch.cat([colour, disparity, ray], dim=2)
        known = target.clone()
        if dreamt is not None:
            known[:, :-1, : RAY.start] = dreamt.latents[torch.arange(size, device=device)[:, None], slots[:, :-1]]
        noise = torch.randn(known[:, :-1, : RAY.start].shape, generator=generator, device=device)
        known[:, :-1, : RAY.start] += config.history_noise * noise
        mask = torch.zeros(size, WINDOW, 3, device=device)
        mask[:, :-1] = present[..., None].float()
        mask[:, -1, 2] = 1.0
        dreamed = torch.zeros(size, WINDOW, device=device)
        dreamed[:, -1] = 1.0
        guessed = None
        if config.step_guess:
            # As `DreamWorld` does: what was given first, then old before new.
            seen = torch.stack([torch.zeros_like(step), slots[:, 0], step - 1], dim=1)
            old = has_memory & (slots[:, 0] < step)
            there = torch.stack([step > 1, old, torch.ones_like(old)], dim=1)
            known[:, -1, : RAY.start], share = self._guess(rows, step, seen, there, dreamt)
            given = torch.rand(size, generator=generator, device=device) < config.guess_share
            guessed = share * given[:, None, None]
        return Batch(Window(known, mask, dreamed, STEP_POSITIONS, history=WINDOW - 1, guessed=guessed), target)

    @torch.no_grad()
    def _guess(
        self, rows: Tensor, step: Tensor, seen: Tensor, there: Tensor, dreamt: Walked | None
    ) -> tuple[Tensor, Tensor]:
        """Return the latents of a guess at steps (B,) and how much of each cell it shows, as an env step is given.

        Args:
            rows: (B,) clips.
            step: (B,) what is guessed.
            seen: (B, S) steps whose last frames are looked at.
            there: (B, S) bool, which of these there are.
            dreamt: As `steps`.
        """
        bank, layout = self.bank, self.layout
        views = bank.views if dreamt is None else dreamt.views
        assert self.codec is not None and views is not None
        rgb, depth = views
        of = (rows if dreamt is None else torch.arange(len(rows), device=rows.device))[:, None]
        # In the window's world, like the raymaps.
        world = inverse_pose(bank.world_from_camera[rows, layout.walk_frames[step - 1, 3]])[:, None]
        poses = world @ bank.world_from_camera[rows[:, None], layout.walk_frames[seen, 3]]
        wanted = world @ bank.world_from_camera[rows[:, None], layout.walk_frames[step]]
        guess = reproject(Views(rgb[of, seen], depth[of, seen], poses, there), bank.intrinsics[rows], wanted)
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.bf16):
            latents, share = guess_latents(self.codec, guess, bank.walk_unit[rows])
        return latents.float(), share


class Walkers:
    """Walks that the model dreams step by step while it is trained, so that it learns to go on from its own dreams.

    Their state stays where it is in memory: a recorded step finds it there.
    """

    def __init__(self, sampler: Sampler, size: int, generator: torch.Generator):
        self.sampler, self.size = sampler, size
        bank, steps = sampler.bank, len(sampler.layout.walk_frames)
        self.rows = torch.randint(len(bank), (size,), generator=generator, device=bank.device)
        # Walks begin at different steps, so that every batch has young and old ones.
        self.step = torch.randint(1, steps, (size,), generator=generator, device=bank.device)
        self.step = self.step.maximum(sampler.first_step(self.rows))
        self.dreamt = self._truth()
        self.views = self._true_views()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        state = {"dreamt": self.dreamt, "rows": self.rows, "step": self.step}
        return state if self.views is None else state | {"rgb": self.views[0], "depth": self.views[1]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo `state_dict`."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
        self.dreamt.copy_(finite_or(self.dreamt, self._truth()))

    def batch(self, generator: torch.Generator) -> Batch:
        """Return the next step of every walk."""
        return self.sampler.steps(self.rows, self.step, generator, Walked(self.dreamt, self.views), later=False)

    @torch.no_grad()
    def advance(
        self,
        batch: Batch,
        predict_clean: CleanPrediction,
        scheduler: object,
        sigmas: tuple[float, ...],
        detail: float,
        generator: torch.Generator,
        dream: bool,
    ) -> None:
        """Dream the step that `batch` asks for (or take the truth), and begin anew where a walk has ended.

        Where a dream is not finite the walk keeps the truth, or it would spoil every step after this one.
        """
        latents = batch.target
        if dream:
            noise = torch.randn(latents[:, -1:].shape, generator=generator, device=latents.device)
            details = step_detail(detail, self.step - 1)
            latents = denoise(predict_clean, scheduler, batch.window, noise, list(sigmas), details)
        new = finite_or(latents[:, -1, : RAY.start].float(), batch.target[:, -1, : RAY.start])
        walk = torch.arange(self.size, device=latents.device)
        if self.views is not None and dream:
            rgb, depth = self._decoded(new, self.dreamt[walk, self.step - 1], self.rows)
            self.views[0][walk, self.step], self.views[1][walk, self.step] = rgb, depth
        self.dreamt[walk, self.step] = new
        self.step.add_(1)
        ended = self.step >= self.dreamt.shape[1]
        self.begin(ended, generator)
        if dream:
            self._forget_first_depth(ended, predict_clean, scheduler, generator)

    def _forget_first_depth(
        self, begun: Tensor, predict_clean: CleanPrediction, scheduler: object, generator: torch.Generator
    ) -> None:
        """Give half of the walks that begin a first picture whose depth is dreamed, as a reset without depth does."""
        coin = torch.rand(self.size, generator=generator, device=self.rows.device)
        blind = begun & (coin < 0.5) & (self.step == 1)
        chosen = (blind.float() + 0.5 * coin).topk(min(BLIND_BEGINS, self.size)).indices
        rows = self.rows[chosen]
        batch = self.sampler.reset_windows(rows, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool))
        noise = torch.randn(batch.target[:, -1:].shape, generator=generator, device=rows.device)
        dreamt = denoise(predict_clean, scheduler, batch.window, noise, [1.0])[:, -1, DISPARITY]
        before = self.dreamt[chosen, 0, DISPARITY]
        dreamt = torch.where(blind[chosen][:, None, None, None], finite_or(dreamt.float(), before), before)
        self.dreamt[chosen, 0, DISPARITY] = dreamt
        if self.views is not None:
            depth = self._decoded(self.dreamt[chosen, 0], None, rows)[1]
            before = self.views[1][chosen, 0]
            self.views[1][chosen, 0] = torch.where(blind[chosen][:, None, None], depth, before)

    def _decoded(self, latents: Tensor, previous: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last frames, (B, H, W, 3) uint8 and (B, H, W) float16 metres, of latent steps (B, 32, h, w).

        Args:
            latents: Of the steps.
            previous: Of the steps before them; None if they are first pictures, of whose four equal frames a reset
                takes the first.
            rows: (B,) their clips.
        """
        codec, unit = self.sampler.codec, self.sampler.bank.walk_unit[rows]
        assert codec is not None
        frame = 0 if previous is None else -1
        colour, disparity = (None if previous is None else previous[:, block] for block in (COLOUR, DISPARITY))
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.sampler.bf16):
            rgb = codec.decode_colour(latents[:, None, COLOUR], colour)[:, frame]
            depth = codec.decode_depth(latents[:, None, DISPARITY], unit, disparity)[:, frame]
        return rgb, depth.half()

    def begin(self, which: Tensor, generator: torch.Generator) -> None:
        """Start the given walks anew, each in another clip."""
        rows = torch.randint(len(self.sampler.bank), (self.size,), generator=generator, device=self.rows.device)
        self.rows.copy_(torch.where(which, rows, self.rows))
        self.step.copy_(torch.where(which, self.sampler.first_step(self.rows), self.step))
        self.dreamt.copy_(torch.where(which[:, None, None, None, None], self._truth(), self.dreamt))
        for view, truth in zip(self.views or (), self._true_views() or (), strict=True):
            view.copy_(torch.where(which.view(-1, *[1] * (view.ndim - 1)), truth, view))

    def _truth(self) -> Tensor:
        bank, layout, rows = self.sampler.bank, self.sampler.layout, self.rows[:, None]
        colour, disparity = bank.colour[rows, layout.walk_colour], bank.disparity[rows, layout.walk_disparity]
        return torch.cat([colour.float(), disparity.float()], dim=2)

    def _true_views(self) -> tuple[Tensor, Tensor] | None:
        """Return the last frames of all steps, (B, steps, H, W, 3) uint8 and (B, steps, H, W) float16 metres."""
        views = self.sampler.bank.views
        return None if views is None else (views[0][self.rows], views[1][self.rows])


def finite_or(dream: Tensor, truth: Tensor) -> Tensor:
    """Return latents (..., C, h, w): each dream that is finite everywhere, the truth of the others; without a wait."""
    return torch.where(dream.isfinite().all(dim=-1).all(dim=-1).all(dim=-1)[..., None, None, None], dream, truth)


def noise_levels(generator: torch.Generator, pure_share: Tensor) -> Tensor:
    """Draw noise levels in (0, 1].

    Few sampling steps all begin at pure noise, and only there a camera path has to be found: rays are smooth, so that
    even at a level of 0.9 the mean over the cells gives them away.

    Args:
        generator: Of the draws.
        pure_share: (B,) the chance of exactly 1; half of the rest is logit-normal(0.3, 1.1), half is uniform.

    Returns:
        (B,) float32.
    """
    size, device = len(pure_share), pure_share.device
    choice, uniform = (torch.rand(size, generator=generator, device=device) for _ in range(2))
    normal = torch.sigmoid(torch.randn(size, generator=generator, device=device) * 1.1 + 0.3)
    other = torch.where(choice < (1.0 + pure_share) / 2.0, normal, uniform).clamp(min=1e-3)
    return torch.where(choice < pure_share, torch.ones_like(other), other)


class Answer(NamedTuple):
    """What the network said of B windows."""

    clean: Tensor
    """(B, N, TARGET_CHANNELS, h, w) clean latents of the slots that are dreamed, with gradient."""
    level: Tensor
    """(B,) noise levels at which it was asked."""


def stage1_loss(
    predict_clean: CleanPrediction, batch: Batch, config: TransformerConfig, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor], Answer]:
    """Denoising loss: mean squared error of the clean latents, weighted by noise level and block, over dreamed slots.

    Args:
        predict_clean: The network.
        batch: Windows of one kind.
        config: `find_pure_share`, `follow_pure_share` and `ray_weight`.
        generator: Of noise and noise levels.

    Returns:
        The loss, its unweighted parts colour, disparity and ray for the log, and the answer that it judges.
    """
    past, window = look_back(predict_clean, batch.window)
    target = batch.target[:, batch.window.history :]
    path_known = window.mask[:, -1, 2] > 0
    pure_share = torch.where(path_known, config.follow_pure_share, config.find_pure_share)
    level = noise_levels(generator, pure_share)
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    mixed = torch.lerp(target, noise, level[:, None, None, None, None])
    clean = predict_clean(transformer_input(window, mixed), level, window.positions, past)
    # Between the clean latents' error (weight 1) and the velocity's (1 / t^2).
    weight = 1.0 / (level + 0.25)
    dreamed = window.dreamed / window.dreamed.sum(dim=1, keepdim=True)
    error = (clean - target) ** 2
    loss, parts = torch.zeros((), device=target.device), {}
    for name, block, share in (("colour", COLOUR, 1.0), ("disparity", DISPARITY, 1.0), ("ray", RAY, config.ray_weight)):
        per_item = (error[:, :, block].mean(dim=(2, 3, 4)) * dreamed).sum(dim=1)
        loss = loss + share * (weight * per_item).mean()
        parts[name] = per_item.detach().mean()
    return loss, parts, Answer(clean, level)
