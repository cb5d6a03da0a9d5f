"""Clips rendered inside the run, and the same clips as latents, held on the device and renewed as training goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

import torch
from torch import Tensor

from aether_env.conventions import FAR_DEPTH, FRAMES_PER_LATENT
from aether_env.disparity import encode_disparity, fill_depth, unit_from_depth
from aether_env.sim import ClipPlans, SimClips, draw_clips, plan_clips
from aether_env.sim.seeds import SPLITS
from aether_env.world_model.autoencoder import CausalGroupAutoencoder
from aether_env.world_model.latents import shows_surface
from training.clip_sources import MixedClips
from training.clips import shows_sky
from training.config import DataConfig
from training.dataset import BatchSettings, ClipBatches

CLIP_FRAMES = 16
"""Frames after the first one in a window of the three tasks."""
OLD_UNIT_SHARE = 0.4
"""Share of clips whose walk counts in the unit of a place that was left long ago (DESIGN decision 4)."""
WALK = -1
"""In place of the number of a start: a latent of a walk, in the walk's own unit."""


def chunk_seeds(config: DataConfig, number: int, rank: int, world_size: int, seed: int) -> range:
    """Return the training seeds of a chunk: never the same for two chunks, processes or runs of another seed."""
    first = SPLITS["train"].start + (seed << 32) + (number * world_size + rank) * config.chunk_clips
    if first + config.chunk_clips > SPLITS["train"].stop:
        raise ValueError(f"chunk {number} of seed {seed} lies outside the training seeds; use a smaller seed.")
    return range(first, first + config.chunk_clips)


def plan_chunk(config: DataConfig, seeds: range) -> ClipPlans:
    """Plan the clips of one chunk: the part that needs no GPU."""
    return plan_clips(seeds, num_frames=config.num_frames, fps=config.fps, family=config.family, threads=1)


class ChunkSource:
    """Renders chunks by number. With workers, the chunks that come next are planned in other processes meanwhile.

    Args:
        config: Of the clips.
        device: Where they are drawn.
        seeds_of: The seeds of a chunk.
        workers: Processes that plan; 0 plans here.
    """

    def __init__(self, config: DataConfig, device: str, seeds_of: Callable[[int], range], workers: int = 0):
        self.config, self.device, self.seeds_of, self.workers = config, device, seeds_of, workers
        self._planned: dict[int, Future[ClipPlans]] = {}
        # Ctrl-C is the run's to answer: workers that it reached too would be missed when the run saves and ends.
        self._pool = (
            ProcessPoolExecutor(
                workers, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
            )
            if workers
            else None
        )

    def __call__(self, number: int) -> SimClips:
        """Return the clips of a chunk."""
        if self._pool is None:
            plans = plan_chunk(self.config, self.seeds_of(number))
        else:
            for ahead in range(number, number + self.workers + 1):
                if ahead not in self._planned:
                    self._planned[ahead] = self._pool.submit(plan_chunk, self.config, self.seeds_of(ahead))
            plans = self._planned.pop(number).result()
        return draw_clips(
            plans,
            height=self.config.height,
            width=self.config.width,
            device=self.device,
            supersample=self.config.supersample,
        )

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Chunk(Protocol):
    """N clips of T frames on one device, as `SimClips` describes them."""

    @property
    def rgb(self) -> Tensor:
        """(N, T, H, W, 3) uint8."""
        ...

    @property
    def depth(self) -> Tensor:
        """(N, T, H, W) float32 metres."""
        ...

    @property
    def valid(self) -> Tensor:
        """(N, T, H, W) bool."""
        ...

    @property
    def world_from_camera(self) -> Tensor:
        """(N, T, 4, 4) float64."""
        ...

    @property
    def intrinsics(self) -> Tensor:
        """(N, T, 3, 3) pixels."""
        ...


@dataclass(frozen=True)
class MixedChunk:
    """A chunk whose clips come from anywhere, see `Chunk`."""

    rgb: Tensor
    depth: Tensor
    valid: Tensor
    world_from_camera: Tensor
    intrinsics: Tensor


class MixedSource:
    """Chunks by number of clips from several sources: recorded, annotated, rendered.

    A chunk is a function of its number, the process and how many processes there are, and of nothing before it. So a
    run goes on with the same chunks on as many processes. On another number it goes on elsewhere in the row of clips,
    as if it had run on that number from the start: some clips of that epoch come once more, or not before the next.

    Args:
        config: Of the clips; all are brought to its size, rate and length.
        mixed: The sources.
        device: Where chunks go.
        rank: Number of this process.
        world_size: How many there are.
        seed: Of what is dealt.
    """

    def __init__(self, config: DataConfig, mixed: MixedClips, device: str, rank: int, world_size: int, seed: int):
        self.config, self.device = config, device
        settings = BatchSettings(
            batch_size=config.chunk_clips,
            num_frames=(config.num_frames,),
            fps=(config.fps,),
            sizes=((config.height, config.width),),
            seed=seed,
            workers=config.workers,
            ahead=1,
        )
        self.batches = ClipBatches(mixed, settings, rank=rank, world_size=world_size)

    def __call__(self, number: int) -> MixedChunk:
        """Return the clips of a chunk; quickest in order."""
        self.batches.seek(number)
        batch = next(self.batches)
        known = batch.valid | torch.from_numpy(shows_sky(batch.depth.numpy(), batch.valid.numpy()))
        # As it is done with depth that an env is given: the network sees complete depth only.
        depth = torch.where(known, batch.depth.clamp(max=FAR_DEPTH), 0.0).to(self.device)
        depth = fill_depth(depth.flatten(0, 1)).view(depth.shape).clamp(max=FAR_DEPTH)
        return MixedChunk(
            rgb=batch.rgb.movedim(2, -1).to(self.device),
            depth=depth,
            valid=shows_surface(depth),
            world_from_camera=batch.world_from_camera.to(self.device),
            intrinsics=batch.intrinsics.float().to(self.device),
        )

    def close(self) -> None:
        """End the workers, and say what could not be used."""
        self.batches.close()
        self.batches.tell()


def live_chunks(chunks: int, renewals: int) -> list[int]:
    """Return which chunk number each place of the ring holds after so many renewals."""
    newest = chunks - 1 + renewals
    return [newest - (newest - place) % chunks for place in range(chunks)]


def to_network(rgb: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) to float (..., 3, H, W) in [-1, 1]."""
    return rgb.movedim(-1, -3).float() / 127.5 - 1.0


def stored_to_network(stored: Tensor) -> Tensor:
    """Stored disparity (..., H, W) in [0, 1] to (..., 1, H, W) in [-1, 1]."""
    return stored[..., None, :, :] * 2.0 - 1.0


@dataclass(frozen=True)
class Item:
    """One disparity latent: four frames (equal ones for a picture at rest), and the start whose unit they are in."""

    frames: tuple[int, int, int, int]
    start: int


def rest(frame: int) -> tuple[int, int, int, int]:
    """A picture at rest."""
    return (frame, frame, frame, frame)


def group(step: int) -> tuple[int, int, int, int]:
    """The frames of latent step `step` >= 1."""
    first = FRAMES_PER_LATENT * (step - 1) + 1
    return (first, first + 1, first + 2, first + 3)


class Layout:
    """Which latents are stored per clip, and where: index tables for the objective."""

    def __init__(self, config: DataConfig, device: str):
        steps, starts = config.latent_steps, config.clip_starts
        walk = [rest(0)] + [group(j) for j in range(1, steps)]
        windows = [[rest(s)] + [group(s // FRAMES_PER_LATENT + k) for k in range(1, 5)] for s in starts]
        goals = [rest(s + CLIP_FRAMES) for s in starts]
        self.colour_items = list(dict.fromkeys(walk + [f for w in windows for f in w] + goals))
        disparity = [Item(f, WALK) for f in walk]
        disparity += [Item(f, i) for i, w in enumerate(windows) for f in [*w, goals[i]]]
        self.disparity_items = list(dict.fromkeys(disparity))
        colour_place = {f: i for i, f in enumerate(self.colour_items)}
        disparity_place = {f: i for i, f in enumerate(self.disparity_items)}

        def table(rows: list) -> Tensor:
            return torch.tensor(rows, device=device)

        self.walk_colour = table([colour_place[f] for f in walk])
        self.walk_disparity = table([disparity_place[Item(f, WALK)] for f in walk])
        self.walk_frames = table([list(f) for f in walk])
        self.clip_colour = table([[colour_place[f] for f in w] for w in windows])
        self.clip_disparity = table([[disparity_place[Item(f, i)] for f in w] for i, w in enumerate(windows)])
        self.clip_frames = table([[list(f) for f in w] for w in windows])
        self.goal_colour = table([colour_place[f] for f in goals])
        self.goal_disparity = table([disparity_place[Item(f, i)] for i, f in enumerate(goals)])
        self.start_frames = table(list(starts))


class LatentBank:
    """A ring of chunks of encoded clips. Its content is a function of the number of renewals, so a run can resume."""

    def __init__(
        self,
        config: DataConfig,
        colour: CausalGroupAutoencoder,
        disparity: CausalGroupAutoencoder,
        device: str,
        source: Callable[[int], Chunk],
        renewals: int = 0,
        views: bool = False,
    ):
        self.config, self.device, self.source = config, device, source
        self.colour_vae, self.disparity_vae = colour, disparity
        self.layout = Layout(config, device)
        self.renewals = renewals
        clips, height, width = config.chunks * config.chunk_clips, config.height // 4, config.width // 4
        half: dict[str, Any] = {"dtype": torch.float16, "device": device}
        self.colour = torch.empty(clips, len(self.layout.colour_items), 16, height, width, **half)
        self.disparity = torch.empty(clips, len(self.layout.disparity_items), 16, height, width, **half)
        # float64: poses relative to another frame are differences of large numbers, and matrix units round.
        self.world_from_camera = torch.empty(clips, config.num_frames, 4, 4, dtype=torch.float64, device=device)
        self.intrinsics = torch.empty(clips, 3, 3, device=device)
        self.unit = torch.empty(clips, len(config.clip_starts), device=device)
        self.walk_unit = torch.empty(clips, device=device)
        self.old_unit = torch.empty(clips, dtype=torch.bool, device=device)
        size = (clips, config.latent_steps, config.height, config.width)
        self.views = (
            (torch.empty(*size, 3, dtype=torch.uint8, device=device), torch.empty(size, **half)) if views else None
        )
        """Where asked for, the last frame of every step of a walk, and its depth in metres."""
        for number in sorted(live_chunks(config.chunks, renewals)):
            self._fill(number)

    def __len__(self) -> int:
        return len(self.unit)

    def renew(self) -> slice:
        """Replace the oldest chunk; returns the rows that are new."""
        self.renewals += 1
        return self._fill(self.config.chunks - 1 + self.renewals)

    @torch.no_grad()
    def _fill(self, number: int) -> slice:
        clips, place = self.source(number), number % self.config.chunks
        rows = slice(place * self.config.chunk_clips, (place + 1) * self.config.chunk_clips)
        self.world_from_camera[rows] = clips.world_from_camera.double()
        self.intrinsics[rows] = clips.intrinsics[:, 0]
        if self.views is not None:
            last = self.layout.walk_frames[:, -1]
            self.views[0][rows] = clips.rgb[:, last]
            self.views[1][rows] = torch.where(clips.valid[:, last], clips.depth[:, last], FAR_DEPTH).half()
        unit = torch.stack(
            [unit_from_depth(clips.depth[:, s], clips.valid[:, s]) for s in self.config.clip_starts], dim=1
        )
        self.unit[rows] = unit
        # A long walk goes on in the unit of where it began: in a share of the clips the walk's unit is another one.
        generator = torch.Generator().manual_seed(number)
        old = torch.rand(len(unit), generator=generator) < OLD_UNIT_SHARE
        factor = torch.where(old, torch.exp(0.5 * torch.randn(len(unit), generator=generator)), 1.0)
        walk_unit = unit[:, 0] * factor.to(unit)
        self.walk_unit[rows], self.old_unit[rows] = walk_unit, old.to(unit.device)
        for index, shown in enumerate(self.layout.colour_items):
            video = to_network(clips.rgb[:, list(shown)]).transpose(1, 2)
            self.colour[rows, index] = encode_group(self.colour_vae, video)
        for index, item in enumerate(self.layout.disparity_items):
            frames = list(item.frames)
            length = walk_unit if item.start == WALK else unit[:, item.start]
            stored = encode_disparity(clips.depth[:, frames], clips.valid[:, frames], length)
            self.disparity[rows, index] = encode_group(self.disparity_vae, stored_to_network(stored).transpose(1, 2))
        return rows


def encode_group(vae: CausalGroupAutoencoder, video: Tensor, batch: int = 512) -> Tensor:
    """Encode (B, C, 4, H, W) to normalised latents (B, 16, H / 4, W / 4), a part at a time."""
    autocast = torch.autocast(video.device.type, torch.bfloat16, enabled=video.device.type == "cuda")
    with autocast:
        parts = [vae.encode(part).latent_dist.mode()[:, :, 0] for part in video.split(batch)]
    return vae.normalise(torch.cat(parts).float())


def picture_batches(
    config: DataConfig,
    device: str,
    source: Callable[[int], Chunk],
    batch_size: int,
    still_share: float,
    generator_of: Callable[[int], torch.Generator],
    first_step: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for the autoencoders: eight frames in a row of each clip.

    Yields:
        Colour (B, 3, 8, H, W) and stored disparity (B, 1, 8, H, W), both in [-1, 1]. In a share of the samples the
        first four frames are one picture at rest, as at the start of every clip.
    """
    ring: dict[int, Chunk] = {}
    step = first_step
    while True:
        numbers = live_chunks(config.chunks, step // config.renew_every)
        ring = {n: ring[n] if n in ring else source(n) for n in sorted(numbers)}
        generator = generator_of(step)
        clips = ring[numbers[step % len(numbers)]]

        def draw(high: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randint(high, (batch_size,), generator=generator, device=device)

        rows, first = draw(len(clips.rgb)), draw(config.num_frames - 7)
        frames = first[:, None] + torch.arange(8, device=device)
        still = torch.rand(batch_size, generator=generator, device=device) < still_share
        frames = torch.where(still[:, None], frames.clamp(min=(first + 3)[:, None]), frames)
        depth, valid = clips.depth[rows[:, None], frames], clips.valid[rows[:, None], frames]
        # The unit of a walk is that of an earlier frame: it varies about the unit of the frames shown.
        spread = torch.randn(batch_size, generator=generator, device=device) * 0.4
        unit = unit_from_depth(depth[:, 0], valid[:, 0]) * spread.exp()
        stored = encode_disparity(depth, valid, unit)
        yield to_network(clips.rgb[rows[:, None], frames]).transpose(1, 2), stored_to_network(stored).transpose(1, 2)
        step += 1
