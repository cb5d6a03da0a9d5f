"""Guesses in training: they are those of use, hide nothing that is to be learned, and follow what walks dream."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from aether_env.camera import se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.sim import SimClips
from aether_env.world_model.checkpoint import Components
from aether_env.world_model.conditions import COLOUR, DISPARITY, RAY, TARGET_CHANNELS, transformer_input
from aether_env.world_model.latents import Codec
from aether_env.world_model.promise import Start
from aether_env.world_model.rollout import DreamWorld
from tests.tiny import HEIGHT, WIDTH, tiny_components
from training.config import DataConfig, TransformerConfig
from training.objective import Batch, Sampler, Walkers
from training.simulate import LatentBank
from training.trainer import joined

DATA = DataConfig(height=HEIGHT, width=WIDTH, latent_steps=13, clip_starts=(0, 4), chunk_clips=8, chunks=2)
GUESSING = TransformerConfig(history_noise=0.0, memory_share=1.0, step_guess=True, guess_share=1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bent_walks(number):
    """Eight clips ahead in a bend, sky in the top rows; every frame of its own colours and depth, so none is mixed up.

    What the renderer would give beyond FAR_DEPTH is not valid.
    """
    rng, frames = np.random.default_rng(number), DATA.num_frames
    speed = rng.uniform(0.01, 0.04, (8, 1, 1))
    pose = se3_exp(speed * np.arange(frames)[:, None] * np.array([0.3, 0.1, 1.0, 0.05, 0.2, 0.1]))
    depth = rng.uniform(2, 6, (8, frames, 1, 1)) + rng.uniform(0, 0.5, (8, frames, HEIGHT, WIDTH))
    depth[:, :, :3] = 250.0
    intrinsics = np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]) * rng.uniform([[1], [1], [1]], [[1.2], [1.2], [1]])
    shape = (8, frames, HEIGHT, WIDTH)
    depth_t = torch.tensor(depth, dtype=torch.float32).clamp(max=FAR_DEPTH)
    return SimClips(
        rgb=torch.tensor(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)), depth=depth_t,
        valid=depth_t < FAR_DEPTH, segmentation=torch.zeros(shape).short(), moving=torch.zeros(shape).bool(),
        world_from_camera=torch.tensor(pose), intrinsics=torch.tensor(intrinsics).float().expand(8, frames, 3, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> Components:
    """A tiny checkpoint whose latents have means and spreads, as trained ones do."""
    made = tiny_components()
    for vae, seed in ((made.vae, 1), (made.disparity_vae, 2)):
        vae.mean.copy_(torch.randn(16, generator=generator(seed)))
        vae.std.copy_(0.5 + torch.rand(16, generator=generator(seed)))
    made.settings = replace(made.settings, step_guess=True, history_noise=0.0)
    return made


@pytest.fixture(scope="module")
def bank(parts):
    return LatentBank(DATA, parts.vae, parts.disparity_vae, "cpu", bent_walks, views=True)


@pytest.fixture(scope="module")
def sampler(bank, parts):
    return Sampler(bank, GUESSING, Codec(parts))


def with_config(sampler, **changes):
    return Sampler(sampler.bank, replace(GUESSING, **changes), sampler.codec)


def clips_of(bank):
    """The clips of a bank, in its order."""
    chunks = [bent_walks(number) for number in range(DATA.chunks)]
    return {name: torch.cat([getattr(c, name) for c in chunks]) for name in vars(chunks[0])}


def test_a_bank_keeps_the_last_frame_of_every_step_and_the_sky_at_far_depth(bank):
    clips = clips_of(bank)
    rgb, depth = bank.views
    last = [0] + [4 * step for step in range(1, DATA.latent_steps)]
    assert torch.equal(rgb, clips["rgb"][:, last])
    assert torch.equal(depth[:, :, 3:], clips["depth"][:, last, 3:].half()) and (depth[:, :, :3] == FAR_DEPTH).all()
    assert rgb.dtype == torch.uint8 and depth.dtype == torch.float16


def test_a_bank_that_is_renewed_has_the_views_of_a_run_that_resumes_there_and_none_where_nobody_asks(bank, parts):
    arguments = (replace(DATA, chunks=1), parts.vae, parts.disparity_vae, "cpu", bent_walks)
    renewed, resumed = LatentBank(*arguments, views=True), LatentBank(*arguments, renewals=1, views=True)
    assert not torch.equal(renewed.views[0], resumed.views[0])
    renewed.renew()
    for a, b in zip(renewed.views, resumed.views, strict=True):
        assert torch.equal(a, b)
    assert LatentBank(*arguments).views is None


def state_in_use(parts, bank, step):
    """What a world remembers of the true frames of all clips, when step `step` is to be dreamed."""
    world, clips = DreamWorld(parts), clips_of(bank)
    depth = torch.where(clips["valid"], clips["depth"], FAR_DEPTH)
    pictures = clips["rgb"][:, 0].numpy(), depth[:, 0].numpy(), clips["intrinsics"][:, 0].double().numpy()
    starts = [Start(rgb=rgb, depth=metres, intrinsics=k) for rgb, metres, k in zip(*pictures, strict=True)]
    state, _ = world.start(starts, range(len(bank)))
    torch.testing.assert_close(state.unit[~bank.old_unit].float(), bank.walk_unit[~bank.old_unit])
    for before in range(1, step):
        frames = range(4 * before - 3, 4 * before + 1)
        rgb, metres, poses = (x[:, list(frames)] for x in (clips["rgb"], depth, clips["world_from_camera"]))
        latents = torch.cat(
            [bank.colour[:, bank.layout.walk_colour[before]], bank.disparity[:, bank.layout.walk_disparity[before]]], 1
        )
        points = world._points(metres[:, -1], state.intrinsics, poses[:, -1])
        state = world._remember(state, latents.float(), poses, points)
        state = world._keep_view(state, rgb[:, -1], metres[:, -1], poses[:, -1], points)
    wanted = clips["world_from_camera"][:, 4 * step - 3 : 4 * step + 1]
    return world, replace(state, unit=bank.walk_unit.double()), wanted


def only_in_sight(state, clips, step):
    """Return a state in which of all older steps only this one would be seen again; None stands for no step."""
    changed = {}
    for name, first in (("memory", 0), ("view", 2)):
        poses, points = getattr(state, f"{name}_pose"), getattr(state, f"{name}_points").clone()
        ends = poses if poses.ndim == 4 else poses[:, :, -1]
        there = torch.zeros(points.shape[:2], dtype=torch.bool)
        if step is not None:
            there = (ends == clips["world_from_camera"][:, None, 4 * step]).all(dim=(2, 3))
        there[:, :first] = True  # of the newest frame and the first picture nobody asks
        points[~there] = torch.tensor([0.0, 0.0, -9.0])
        changed[f"{name}_points"] = points
    return replace(state, **changed)


def memory_of(bank, batch):
    """Return of which step (B,) memory is, -1 without, in windows of the clips in their order, again and again."""
    rows = torch.arange(len(batch.target)) % len(bank)
    latents = bank.colour[rows[:, None], bank.layout.walk_colour].float()
    found = (batch.window.known[:, :1, COLOUR] == latents).flatten(2).all(dim=2)
    assert (found.sum(dim=1) == 1).all()
    return torch.where(batch.window.mask[:, 0, 0] == 1, found.long().argmax(dim=1), -1)


def gaps(a, b):
    """Return how far apart the guesses of windows lie, (B,)."""
    return (a.known[:, -1, : RAY.start] - b.known[:, -1, : RAY.start]).abs().amax(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("step", "memory"), [(1, None), (2, None), (4, 0), (5, 0), (12, None), (12, 0), (12, 4), (12, 8)]
)
def test_training_shows_of_a_true_history_what_a_dream_shows(parts, bank, sampler, step, memory):
    """Of older steps training shows any, a dream that which is seen again; of steps 4 and 8 it has kept a frame.

    Also the first picture and the newest frame may be the older one: at step 4 and at step 5.
    """
    world, state, wanted = state_in_use(parts, bank, step)
    with torch.inference_mode():
        used = world._window(only_in_sight(state, clips_of(bank), memory), wanted)
    sampler = with_config(sampler, memory_share=float(memory is not None))
    rows = torch.arange(len(bank)).repeat(10)
    batch = sampler.steps(rows, torch.full_like(rows, step), generator(), later=False)
    such = memory_of(bank, batch) == (-1 if memory is None else memory)
    assert len(rows[such].unique()) >= len(bank) / 2
    used = replace(used, **{name: getattr(used, name)[rows] for name in ("known", "mask", "dreamed", "guessed")})
    trained = batch.window
    torch.testing.assert_close(trained.mask[such], used.mask[such], atol=0, rtol=0)
    torch.testing.assert_close(trained.guessed[such], used.guessed[such], atol=1e-6, rtol=0)
    assert 0.5 < used.guessed.mean() < 1
    assert gaps(trained, used)[such].max() < 1e-4
    if step == 12 and memory is not None:  # the choice makes a difference: any other would be another guess
        assert (gaps(trained, used)[~such] > 1e-2).float().mean() > 0.9
    # The rest of what the network sees too; the history's latents are kept as float16 in training.
    noisy = torch.zeros_like(batch.target)
    alike = such & ~bank.old_unit[rows]  # the first latent of the others is in the unit of a walk that begins earlier
    shown = [transformer_input(window, noisy)[alike] for window in (trained, used)]
    torch.testing.assert_close(*shown, atol=5e-3, rtol=1e-3)
    assert trained.history == used.history and trained.positions == used.positions


def test_memory_from_later_in_the_walk_is_shown_to_the_network_but_not_in_the_guess(sampler, bank):
    rows = torch.arange(len(bank)).repeat(4)
    step = torch.full_like(rows, 6)
    batch = sampler.steps(rows, step, generator())
    memory = memory_of(bank, batch)
    without = with_config(sampler, memory_share=0.0).steps(rows, step, generator()).window
    same = gaps(batch.window, without) == 0
    later, first, other = memory > 6, memory == 0, (memory > 0) & (memory < 6)
    assert later.sum() > 20 and first.sum() > 2 and other.sum() > 5
    assert same[later].all() and not same[other].any()
    assert same[first].all()  # it lies on top anyway


def test_the_share_of_guesses_is_what_the_config_says_and_the_others_are_hidden_whole(sampler):
    rows = torch.arange(2000) % len(sampler.bank)
    small = copy.copy(sampler)
    small._guess = lambda rows, *_: (torch.ones(len(rows), RAY.start, 4, 6), torch.full((len(rows), 4, 6), 0.7))
    small.config = replace(GUESSING, guess_share=0.8)
    guessed = small.steps(rows, torch.full_like(rows, 3), generator()).window.guessed
    given = guessed.amax(dim=(1, 2)) > 0
    assert given.float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (guessed[given] == 0.7).all() and (guessed[~given] == 0).all()


def test_a_share_of_0_shows_what_is_shown_without_guesses(sampler, bank):
    rows = torch.arange(len(bank))
    step = 1 + rows % (DATA.latent_steps - 1)
    hidden = with_config(sampler, guess_share=0.0).steps(rows, step, generator()).window
    plain = Sampler(bank, replace(GUESSING, step_guess=False)).steps(rows, step, generator()).window
    assert (hidden.guessed == 0).all() and plain.guessed is None
    noisy = torch.randn(hidden.known.shape, generator=generator())
    assert torch.equal(transformer_input(hidden, noisy), transformer_input(plain, noisy))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_is_to_be_dreamed_is_never_shown(sampler, bank, share):
    step = 4
    other = copy.copy(bank)
    other.colour, other.disparity, other.views = bank.colour.clone(), bank.disparity.clone(), None
    other.colour[:, bank.layout.walk_colour[step]] = 9.0
    other.disparity[:, bank.layout.walk_disparity[step]] = 9.0
    rgb, depth = (view.clone() for view in bank.views)
    rgb[:, step], depth[:, step] = 255, 1.0
    other.views = rgb, depth
    rows = torch.arange(len(bank))
    shown, targets = [], []
    for of in (bank, other):
        config = replace(GUESSING, guess_share=share)
        batch = Sampler(of, config, sampler.codec).steps(rows, torch.full_like(rows, step), generator())
        shown.append(transformer_input(batch.window, torch.zeros_like(batch.target)))
        targets.append(batch.target)
    assert torch.equal(*shown) and not torch.equal(*targets)
    latents = shown[0][:, -1, TARGET_CHANNELS : TARGET_CHANNELS + RAY.start]
    assert (latents.abs().amax(dim=(1, 2, 3)) > 0).all() == bool(share) and not (share == 0 and latents.any())


def test_windows_without_a_guess_keep_none_beside_those_with_one(sampler, bank):
    rows = torch.arange(3)
    step = sampler.steps(rows, torch.full_like(rows, 3), generator())
    reset = sampler.resets(2, generator())
    both = joined([step, reset])
    assert torch.equal(both.window.guessed[:3], step.window.guessed) and (both.window.guessed[3:] == 0).all()
    noisy = torch.ones_like(both.target)
    apart = [transformer_input(b.window, torch.ones_like(b.target)) for b in (step, reset)]
    assert torch.equal(transformer_input(both.window, noisy), torch.cat(apart))
    assert joined([reset, reset]).window.guessed is None


class Dreamer:
    """A network that dreams noise of about the size of latents, always the same."""

    def look(self, model_input, positions):
        return []

    def __call__(self, model_input, sigma, positions, past):
        return torch.randn(model_input[:, :, :TARGET_CHANNELS].shape, generator=generator(9))


def make_walkers(sampler, steps, rows=None):
    walkers = Walkers(sampler, len(steps), generator())
    walkers.rows[:] = torch.arange(len(steps)) if rows is None else rows
    walkers.step[:] = torch.tensor(steps)
    walkers.dreamt.copy_(walkers._truth())
    for view, truth in zip(walkers.views, sampler.bank.views, strict=True):
        view.copy_(truth[walkers.rows])
    return walkers


def advance(walkers, dream=True, network=None):
    batch: Batch = walkers.batch(generator())
    scheduler = FlowMatchEulerDiscreteScheduler()
    walkers.advance(batch, network or Dreamer(), scheduler, (1.0,), 0.0, generator(), dream=dream)
    return batch


def decoded(codec, latents, unit):
    """The last frames of latent steps (B, N, 32, h, w), decoded as one video."""
    rgb = codec.decode_colour(latents[:, :, COLOUR])[:, -1]
    return rgb, codec.decode_depth(latents[:, :, DISPARITY], unit)[:, -1].half()


def test_a_walk_looks_from_the_decoded_last_frame_of_what_it_dreamed(sampler, bank):
    walkers = make_walkers(sampler, [1, 2, 4])
    first, second = walkers.step.clone(), walkers.step + 1
    advance(walkers)
    advance(walkers)
    walk = torch.arange(3)
    with torch.no_grad():
        for step in (first, second):
            pair = walkers.dreamt[walk[:, None], torch.stack([step - 1, step], dim=1)]
            rgb, depth = decoded(sampler.codec, pair, bank.walk_unit[walkers.rows])
            assert torch.equal(walkers.views[0][walk, step], rgb) and torch.equal(walkers.views[1][walk, step], depth)
            assert not torch.equal(rgb, bank.views[0][walkers.rows, step])
    for row in range(3):  # what came before and what comes after is the truth
        others = [s for s in range(DATA.latent_steps) if s not in (first[row], second[row])]
        for view, truth in zip(walkers.views, bank.views, strict=True):
            assert torch.equal(view[row, others], truth[walkers.rows[row], others])


def test_a_walk_that_dreamed_the_truth_is_shown_about_the_guess_of_a_true_history(sampler, bank):
    """The walk's own frames are looked at by its place in the batch, the bank's by clip."""
    walkers = make_walkers(sampler, [3, 4, 5], rows=torch.tensor([7, 2, 11]))
    batch = walkers.batch(generator())
    true = sampler.steps(walkers.rows, walkers.step, generator(), later=False)
    assert torch.equal(batch.window.guessed, true.window.guessed)
    assert torch.equal(batch.window.known, true.window.known)
    walkers.views[0].copy_(255 - walkers.views[0])
    assert (walkers.batch(generator()).window.known != batch.window.known).any(dim=(2, 3, 4))[:, -1].all()


def test_a_walk_that_takes_the_truth_keeps_the_true_views(sampler, bank):
    walkers = make_walkers(sampler, [1, 2, 4])
    advance(walkers, dream=False)
    for view, truth in zip(walkers.views, bank.views, strict=True):
        assert torch.equal(view, truth[walkers.rows])


def test_where_a_walk_begins_anew_its_views_are_the_truth_again(sampler, bank):
    walkers = make_walkers(sampler, [DATA.latent_steps - 2] * 2)
    place = [view.data_ptr() for view in walkers.views]
    advance(walkers)
    assert not torch.equal(walkers.views[0], bank.views[0][walkers.rows])
    walkers.begin(torch.tensor([True, False]), generator(3))
    for view, truth in zip(walkers.views, bank.views, strict=True):
        assert torch.equal(view[0], truth[walkers.rows[0]]) and not torch.equal(view[1], truth[walkers.rows[1]])
    advance(walkers)  # the second comes to its end
    assert torch.equal(walkers.views[0][1], bank.views[0][walkers.rows[1]])
    assert [view.data_ptr() for view in walkers.views] == place  # a recorded step finds them there


def blind_walks(sampler):
    """Walks that begin anew, and which of them with a first depth that was dreamed."""
    walkers = make_walkers(sampler, [DATA.latent_steps - 1] * 16)
    advance(walkers)
    blind = (walkers.dreamt[:, 0] != walkers._truth()[:, 0]).any(dim=3).any(dim=2).any(dim=1)
    assert 1 <= blind.sum() <= 8
    return walkers, blind


def test_of_a_first_depth_that_was_dreamed_only_the_depth_changes_and_of_the_other_walks_nothing(sampler, bank):
    walkers, blind = blind_walks(sampler)
    rgb, depth = walkers.views
    true_rgb, true_depth = (truth[walkers.rows] for truth in bank.views)
    assert torch.equal(rgb, true_rgb)
    assert torch.equal(depth[~blind], true_depth[~blind]) and torch.equal(depth[blind, 1:], true_depth[blind, 1:])
    assert (depth[blind, 0] != true_depth[blind, 0]).any(dim=2).any(dim=1).all()


def test_a_first_depth_that_was_dreamed_is_decoded_as_a_reset_decodes_it(sampler, bank):
    walkers, blind = blind_walks(sampler)
    with torch.no_grad():
        first, unit = walkers.dreamt[blind, :1, DISPARITY], bank.walk_unit[walkers.rows[blind]]
        wanted = sampler.codec.decode_depth(first, unit)[:, 0]
    torch.testing.assert_close(walkers.views[1][blind, 0].float(), wanted, atol=0, rtol=2e-3)


def test_a_dream_that_is_not_finite_leaves_finite_views(sampler, bank):
    class Broken(Dreamer):
        def __call__(self, *inputs):
            dream = super().__call__(*inputs)
            dream[0] = float("nan")
            return dream

    walkers = make_walkers(sampler, [2, 2])
    advance(walkers, network=Broken())
    assert walkers.views[1].isfinite().all() and (walkers.views[1] > 0).all()
    assert walkers.batch(generator()).window.known.isfinite().all()


def test_saved_walks_come_back_with_what_they_saw(sampler, bank):
    walkers, again = make_walkers(sampler, [1, 2, 4]), Walkers(sampler, 3, generator(5))
    advance(walkers)
    state = {name: value.clone() for name, value in walkers.state_dict().items()}
    assert set(state) == {"dreamt", "rows", "step", "rgb", "depth"}
    again.load_state_dict(state)
    for name, value in again.state_dict().items():
        assert torch.equal(value, walkers.state_dict()[name]), name
    for a, b in zip(again.views, walkers.views, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(again.batch(generator()).window.known, walkers.batch(generator()).window.known)


def test_without_guesses_walks_save_what_they_saved_before(bank):
    plain = copy.copy(bank)
    plain.views = None
    walkers = Walkers(Sampler(plain, replace(GUESSING, step_guess=False)), 2, generator())
    assert set(walkers.state_dict()) == {"dreamt", "rows", "step"}
    assert walkers.batch(generator()).window.guessed is None
    advance(walkers)
