"""Dreams that are shown what the frames so far look like from the wanted poses. The weights are random."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from aether_env.camera import se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.world_model import rollout
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.conditions import HISTORY, RAY, transformer_input
from aether_env.world_model.promise import Start
from aether_env.world_model.reproject import Views, guess_latents, reproject
from aether_env.world_model.rollout import MEMORY, DreamWorld
from tests.tiny import tiny_components

HEIGHT, WIDTH = 16, 24
INTRINSICS = np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]])


def make_world(guess=True, **kwargs):
    parts = tiny_components()
    parts.settings = replace(parts.settings, step_guess=guess)
    return DreamWorld(parts, **kwargs)


@pytest.fixture(scope="module")
def world():
    return make_world()


def start(index, depth=True):
    rng = np.random.default_rng(index)
    metres = rng.uniform(1, 5, (HEIGHT, WIDTH))
    metres[0] = FAR_DEPTH
    rgb = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Start(rgb=rgb, depth=metres if depth else None, intrinsics=INTRINSICS * [[1 + 0.1 * index], [1], [1]])


def path(batch, step):
    """Four poses of a camera that goes ahead in a bend, the rows at different speeds."""
    time = step + np.arange(1, 5) / 4
    speed = 0.05 * (1 + np.arange(batch))[:, None, None]
    return se3_exp(speed * time[:, None] * np.array([0.2, 0.1, 1.0, 0.05, 0.3, 0.0]))


def walk(world, starts, steps):
    state, frames = world.start(starts, range(len(starts)))
    seen = [frames]
    for step in range(steps):
        state, frames = world.advance(state, path(len(starts), step))
        seen.append(frames)
    return state, seen


def same(a, b):
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert torch.equal(x, y) and x.dtype == y.dtype, f.name


@pytest.fixture(scope="module")
def walked(world):
    """Three dreams after three steps, one without scale: of each, memory holds the first picture and nothing else."""
    return walk(world, [start(0), start(1, depth=False), start(2)], 3)


@pytest.mark.parametrize("guess", [True, False])
def test_the_state_keeps_the_last_frames_of_the_steps_as_they_were_returned(guess):
    state, seen = walk(make_world(guess), [start(0), start(1, depth=False)], HISTORY + 1)
    for place, frames in enumerate(seen[-HISTORY:]):
        assert np.array_equal(state.history_rgb[:, place], frames.rgb[:, -1])
        assert np.array_equal(state.history_depth[:, place], frames.depth[:, -1].astype(np.float16))
    assert np.array_equal(state.memory_rgb[:, 0], seen[0].rgb[:, 0])
    assert np.array_equal(state.memory_depth[:, 0], seen[0].depth[:, 0].astype(np.float16))


def test_frames_leave_the_history_for_the_same_place_of_memory_as_their_latents(world):
    steps = MEMORY + HISTORY + 2
    state, frames = world.start([start(0)], [0])
    latents, seen = [state.history[0, -1]], [frames]
    for step in range(steps):
        state, frames = world.advance(state, path(1, step))
        latents.append(state.history[0, -1])
        seen.append(frames)
    remembered = steps + 1 - HISTORY
    assert remembered > MEMORY
    # The first stays, the others are overwritten in turn.
    held = {0: 0} | {1 + (number - 1) % (MEMORY - 1): number for number in range(1, remembered)}
    assert len(held) == MEMORY and max(held.values()) == remembered - 1
    for place, number in held.items():
        assert torch.equal(state.memory[0, place], latents[number].half())
        assert np.array_equal(state.memory_rgb[0, place], seen[number].rgb[0, -1])
        assert np.array_equal(state.memory_depth[0, place], seen[number].depth[0, -1].astype(np.float16))
        assert np.array_equal(state.memory_pose[0, place, -1], seen[number].world_from_camera[0, -1])


def wanted_of(state, turned=()):
    wanted = path(len(state), int(state.step[0]))
    for row in turned:
        wanted[row] = wanted[row] @ se3_exp(np.array([0, 0, 0, 0, np.pi, 0]))
    return torch.tensor(wanted)


@pytest.mark.parametrize("memory", [0, 1, None])
def test_the_new_slot_holds_what_the_newest_frame_and_the_chosen_memory_show_from_the_wanted_poses(
    world, walked, memory
):
    """The expected is of the frames as they were returned and of poses of the world at reset, not of the state."""
    state, seen = walked
    state, last = world.advance(state, path(3, 3))
    behind = torch.tensor([0.0, 0.0, -9.0]).expand_as(state.memory_points[:, 0])
    points = state.memory_points.clone()  # by them a memory is chosen
    for place in {0, 1} - {memory}:
        points[:, place] = behind
    state, wanted = replace(state, memory_points=points), torch.tensor(path(3, 4))
    remembered = seen[memory or 0]
    shown = Views(
        rgb=torch.tensor(np.stack([last.rgb[:, -1], remembered.rgb[:, -1]], axis=1)),
        depth=torch.tensor(np.stack([last.depth[:, -1], remembered.depth[:, -1]], axis=1)).half(),
        world_from_camera=torch.tensor(
            np.stack([path(3, 3)[:, -1], path(3, 0)[:, -1] if memory else np.tile(np.eye(4), (3, 1, 1))], axis=1)
        ),
        there=torch.tensor([True, memory is not None]).expand(3, 2),
    )
    with torch.inference_mode():
        window = world._window(state, wanted)
        guess = reproject(shown, torch.tensor(last.intrinsics[:, 0]), wanted)
        latents, share = guess_latents(world.codec, guess, state.unit.float())
    assert (window.mask[:, 0] == float(memory is not None)).all() and window.mask[:, -1].tolist() == [[0, 0, 1]] * 3
    torch.testing.assert_close(window.guessed, share, atol=1e-6, rtol=0)
    torch.testing.assert_close(window.known[:, -1, : RAY.start], latents, atol=1e-4, rtol=0)
    # The memory makes a difference here.
    other = shown._replace(there=torch.tensor([True, memory is None]).expand(3, 2))
    assert not torch.equal(reproject(other, torch.tensor(last.intrinsics[:, 0]), wanted).seen, guess.seen)


def test_a_memory_that_is_not_shown_is_not_guessed_from_and_the_newest_frame_always_is(world, walked):
    state, _ = walked
    window = world._window(state, wanted_of(state, turned=[1]))
    assert window.mask[:, 0, 0].tolist() == [1, 0, 1]
    assert (window.guessed[1] == 0).all() and (window.guessed[[0, 2]].mean(dim=(1, 2)) > 0.5).all()
    other = replace(state, memory_rgb=255 - state.memory_rgb, memory_depth=state.memory_depth + 1)
    without = world._window(other, wanted_of(state, turned=[1]))
    assert torch.equal(without.known[1], window.known[1]) and torch.equal(without.guessed[1], window.guessed[1])
    assert not torch.equal(without.known[0, -1], window.known[0, -1])


def test_right_after_reset_the_guess_is_the_first_picture_from_the_wanted_poses(world):
    state, _ = world.start([start(0), start(2)], [0, 1])
    at_rest = torch.eye(4, dtype=torch.float64).expand(2, 4, 4, 4)
    window = world._window(state, at_rest)
    assert (window.mask[:, :3] == 0).all() and (window.guessed == 1).all()
    torch.testing.assert_close(window.known[:, -1, : RAY.start], state.history[:, -1], atol=1e-3, rtol=0)


def test_without_the_setting_nothing_is_guessed(world, walked):
    state, _ = walked
    without, wanted = make_world(guess=False), wanted_of(state)
    window = without._window(state, wanted)
    assert window.guessed is None
    noisy = torch.zeros_like(window.known)
    hidden = transformer_input(replace(world._window(state, wanted), guessed=None), noisy)
    assert torch.equal(transformer_input(window, noisy), hidden)


def test_the_guess_changes_the_dream_and_comes_from_the_kept_frames(world, walked):
    state, _ = walked
    after, _ = world.advance(state, path(3, 3))
    other, _ = world.advance(replace(state, history_rgb=255 - state.history_rgb), path(3, 3))
    plain, _ = make_world(guess=False).advance(state, path(3, 3))
    for changed in (other, plain):
        assert (changed.history[:, -1] - after.history[:, -1]).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    blind, _ = make_world(guess=False).advance(replace(state, history_rgb=255 - state.history_rgb), path(3, 3))
    assert torch.equal(blind.history, plain.history)


def test_a_dream_is_the_same_alone_and_in_a_batch(world):
    """A last bit that is rounded otherwise may be a grey level of a frame, and then the guess has it too: 1e-3."""
    starts = [start(i, depth=i != 1) for i in range(4)]
    state, seen = walk(world, starts, 5)
    for row in range(4):
        alone, frames = world.start(starts[row : row + 1], [row])
        for step in range(5):
            alone, frames = world.advance(alone, path(4, step)[row : row + 1])
            assert np.abs(frames.rgb[0].astype(int) - seen[step + 1].rgb[row]).max() <= 1
            np.testing.assert_allclose(frames.depth[0], seen[step + 1].depth[row], rtol=1e-3)
        torch.testing.assert_close(alone.history[0], state.history[row], atol=1e-3, rtol=0)


@pytest.mark.xfail(
    strict=False,  # how a CPU rounds is its own affair
    reason="on a CPU a batch's convolutions round the decoded depth otherwise, float16 and the guess make it more: "
    "decode_colour and decode_depth of DreamWorld._advance row by row (`_row_by_row`) end it",
)
def test_a_dream_by_the_decoders_of_mini_is_the_same_alone_and_in_a_batch(monkeypatch):
    """By the bounds of test_rollout.py. The network, which is slow and rounds alike here, believes the guess."""
    monkeypatch.setattr(rollout, "denoise", lambda predict, scheduler, window, *_: window.known[:, -1:])
    parts = load_checkpoint("mini")
    parts.settings = replace(parts.settings, step_guess=True)
    mini, rng = DreamWorld(parts, sigmas=(1.0,)), np.random.default_rng(0)
    smooth = rng.uniform(1, 5, (3, 8, 12)).repeat(8, axis=1).repeat(8, axis=2)
    starts = [Start(rgb=rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), depth=metres) for metres in smooth]
    state, _ = mini.start(starts, [0, 1, 2])
    alone, _ = mini.start(starts[1:2], [1])
    for step in range(HISTORY):
        state, _ = mini.advance(state, path(3, step))
        alone, _ = mini.advance(alone, path(3, step)[1:2])
    torch.testing.assert_close(alone.history[0], state.history[1], atol=1e-5, rtol=0)


def test_the_windows_of_one_state_are_the_same_to_the_bit_alone_and_in_a_batch(world, walked):
    state, _ = walked
    together = world._window(state, wanted_of(state, turned=[1]))
    for row in range(3):
        alone = world._window(state[[row]], wanted_of(state, turned=[1])[[row]])
        for name in ("known", "mask", "guessed"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_with_one_row_at_once_a_dream_is_the_same_to_the_bit():
    one, starts = make_world(rows_at_once=1), [start(i, depth=i != 1) for i in range(3)]
    state, _ = walk(one, starts, 4)
    alone, _ = one.start(starts[1:2], [1])
    for step in range(4):
        alone, _ = one.advance(alone, path(3, step)[1:2])
    same(alone, state[[1]])


@pytest.mark.parametrize("steps", [0, 3, HISTORY + 2])
def test_going_on_from_a_snapshot_is_the_same_as_never_having_stopped(world, steps):
    state, _ = walk(world, [start(0), start(1, depth=False)], steps)
    thawed = world.thaw(*world.freeze(state))
    for step in range(steps, steps + 2):
        same(thawed, state)
        state, frames = world.advance(state, path(2, step))
        thawed, again = world.advance(thawed, path(2, step))
        assert np.array_equal(frames.rgb, again.rgb) and np.array_equal(frames.depth, again.depth)


def test_a_snapshot_of_a_dream_without_guesses_is_of_another_world(world, walked, tiny_checkpoint):
    state, _ = walked
    arrays, about = DreamWorld(load_checkpoint(tiny_checkpoint)).freeze(state)
    with pytest.raises(ValueError, match="checkpoint"):
        world.thaw(arrays, about)


def test_a_long_dream_stays_finite_and_in_range(world):
    _, seen = walk(world, [start(0), start(1, depth=False)], 2 * MEMORY)
    for frames in seen:
        assert np.isfinite(frames.depth).all() and (frames.depth > 0).all() and (frames.depth <= FAR_DEPTH).all()
