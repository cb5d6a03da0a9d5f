"""Dreams that are shown what the frames so far look like from the wanted poses. The weights are random."""

from collections import deque
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
from aether_env.world_model.rollout import MEMORY, MIN_OVERLAP, VIEW_EVERY, VIEWS, DreamWorld
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


LONG = 2 * VIEW_EVERY + 1


@pytest.fixture(scope="module")
def walked(world):
    """Three dreams, one without scale, after nine steps, and their frames: the last of steps 4 and 8 are kept."""
    return walk(world, [start(0), start(1, depth=False), start(2)], LONG)


def steps_kept(state, row, seen):
    """Return of which step each kept frame is, by its pose: no two steps end at one place."""
    ends = np.stack([frames.world_from_camera[row, -1] for frames in seen])
    found = (ends[None] == state.view_pose[row].numpy()[:, None]).all(axis=(2, 3))
    assert (found.sum(axis=1) == 1).all()
    return found.argmax(axis=1).tolist()


@pytest.mark.parametrize("guess", [True, False])
def test_the_newest_frame_the_first_picture_and_the_last_of_every_fourth_step_are_kept_as_they_were_returned(guess):
    """Over 30 steps, in which the oldest of every fourth are given up again."""
    world, starts = make_world(guess), [start(0), start(1, depth=False)]
    state, frames = world.start(starts, [0, 1])
    seen, fourth = [frames], deque(maxlen=VIEWS - 2)
    for step in range(31):
        for row in range(2):
            newest, first, *old = steps_kept(state, row, seen)
            assert (newest, first) == (step, 0)
            assert sorted(old) == sorted([*fourth, *[0] * (fourth.maxlen - len(fourth))])
            for place, number in enumerate((newest, first, *old)):
                last = seen[number]
                assert np.array_equal(state.view_rgb[row, place], last.rgb[row, -1])
                assert np.array_equal(state.view_depth[row, place], last.depth[row, -1].astype(np.float16))
        state, frames = world.advance(state, path(2, step))
        seen.append(frames)
        if (step + 1) % VIEW_EVERY == 0:
            fourth.append(step + 1)
    assert VIEW_EVERY not in fourth


def looked_at(frames, row):
    """Return the points (48, 3), world axes, of a grid of pixels of the last frame."""
    rows, columns = np.meshgrid((np.arange(6) + 0.5) * HEIGHT / 6, (np.arange(8) + 0.5) * WIDTH / 8, indexing="ij")
    ray = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(frames.intrinsics[row, 0]).T
    camera = ray * frames.depth[row, -1][rows.astype(int), columns.astype(int)][..., None]
    pose = frames.world_from_camera[row, -1]
    return camera.reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]


def test_a_frame_is_kept_with_where_its_pixels_look(walked):
    state, seen = walked
    for row in range(3):
        for place, number in enumerate(steps_kept(state, row, seen)):
            points = looked_at(seen[number], row)
            np.testing.assert_allclose(state.view_points[row, place], points, rtol=1e-5, atol=1e-4)


def test_steps_leave_the_history_for_their_place_in_memory_with_their_poses(world):
    state, frames = world.start([start(0)], [0])
    latents, seen = [state.history[0, -1]], [frames]
    for step in range(MEMORY + HISTORY + 2):
        state, frames = world.advance(state, path(1, step))
        latents.append(state.history[0, -1])
        seen.append(frames)
    remembered = len(seen) - HISTORY
    assert remembered > MEMORY
    # The first stays, the others are overwritten in turn.
    held = {0: 0} | {1 + (number - 1) % (MEMORY - 1): number for number in range(1, remembered)}
    assert len(held) == MEMORY and max(held.values()) == remembered - 1
    for place, number in held.items():
        assert torch.equal(state.memory[0, place], latents[number].half())
        assert np.array_equal(state.memory_pose[0, place, -1], seen[number].world_from_camera[0, -1])


def test_dreams_of_different_ages_in_one_batch_keep_what_they_keep_alone():
    one = make_world(rows_at_once=1)
    states = [walk(one, [start(index)], steps)[0] for index, steps in enumerate((0, 3, 26))]
    together = one.join(states)
    for step in range(6):
        wanted = path(3, step)
        together, _ = one.advance(together, wanted)
        states = [one.advance(state, wanted[[row]])[0] for row, state in enumerate(states)]
        same(together, one.join(states))
    # Not only parted into rows, as the world does it: by the whole batch too.
    shapes = (3, HEIGHT, WIDTH, 3), (3, HEIGHT, WIDTH), (3, 4, 4), (3, 48, 3)
    kept = [100 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    alone = [one._keep_view(state, *(part[[row]] for part in kept)) for row, state in enumerate(states)]
    same(one._keep_view(together, *kept), one.join(alone))


def wanted_of(state, turned=()):
    wanted = path(len(state), int(state.step[0]))
    for row in turned:
        wanted[row] = wanted[row] @ se3_exp(np.array([0, 0, 0, 0, np.pi, 0]))
    return torch.tensor(wanted)


def shown_by(state, seen, numbers):
    """Return the last frames of steps as they were returned, laid one under the other; None stands for no frame."""
    order = [0 if number is None else number for number in numbers]
    return Views(
        rgb=torch.tensor(np.stack([seen[number].rgb[:, -1] for number in order], axis=1)),
        depth=torch.tensor(np.stack([seen[number].depth[:, -1] for number in order], axis=1)).half(),
        world_from_camera=torch.tensor(
            np.stack([path(3, n - 1)[:, -1] if n else np.tile(np.eye(4), (3, 1, 1)) for n in order], axis=1)
        ),
        there=torch.tensor([number is not None for number in numbers]).expand(len(state), len(numbers)),
    )


def hide_kept(state, seen, but):
    """Return a state of whose views of every fourth step only that of `but` would be seen again."""
    points = state.view_points.clone()
    for row in range(len(state)):
        for place, number in enumerate(steps_kept(state, row, seen)):
            if place >= 2 and number not in (0, but):
                points[row, place] = torch.tensor([0.0, 0.0, -9.0])
    return replace(state, view_points=points)


@pytest.mark.parametrize("kept", [4, 8, None])
def test_the_new_slot_holds_the_first_picture_over_the_kept_frame_over_the_newest_from_the_wanted_poses(
    world, walked, kept
):
    """The expected is of the frames as they were returned and of poses of the world at reset, not of the state."""
    state, seen = walked
    state, wanted = hide_kept(state, seen, kept), torch.tensor(path(3, LONG))
    k = torch.tensor(seen[-1].intrinsics[:, 0])
    with torch.inference_mode():
        window = world._window(state, wanted)
        guess = reproject(shown_by(state, seen, [0, kept, LONG]), k, wanted)
        latents, share = guess_latents(world.codec, guess, state.unit.float())
    assert window.mask[:, -1].tolist() == [[0, 0, 1]] * 3
    torch.testing.assert_close(window.guessed, share, atol=1e-6, rtol=0)
    torch.testing.assert_close(window.known[:, -1, : RAY.start], latents, atol=1e-4, rtol=0)
    # Another choice or another order would be another guess here.
    others = [[0, 8 if kept == 4 else 4, LONG], [LONG, kept, 0], [None, kept, LONG]]
    for other in [*others, [kept, 0, LONG], [0, LONG, kept]] if kept else others:
        rgb = reproject(shown_by(state, seen, other), k, wanted).rgb
        assert ((rgb != guess.rgb).any(dim=2) & guess.seen).any(dim=(1, 2, 3)).all(), other


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5])
def test_the_first_picture_is_shown_from_the_first_step_on_and_a_kept_frame_from_the_fourth(world, step):
    state, _ = walk(world, [start(0), start(2)], step)
    there = world._views(state, wanted_of(state)).there
    assert there.tolist() == [[step >= 1, step >= VIEW_EVERY, True]] * 2


def share_in_sight(frames, row, wanted):
    """Return which share of what a step's last frame looked at the wanted camera would have in its picture."""
    points = (looked_at(frames, row) - wanted[:3, 3]) @ wanted[:3, :3] @ frames.intrinsics[row, 0].T
    x, y, z = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2], points[:, 2]
    return ((z > 0) & (x > 0) & (x < WIDTH) & (y > 0) & (y < HEIGHT)).mean()


def yaw(degrees):
    return se3_exp(np.array([0, 0, 0, 0, np.deg2rad(degrees), 0]))


def test_of_the_kept_frames_the_one_is_shown_of_which_most_is_in_sight_if_that_is_enough(world):
    """A camera that looks around, 6 degrees a step: the frames that are kept lie 24 degrees apart."""
    starts = [start(0), start(2)]
    state, frames = world.start(starts, [0, 1])
    seen = [frames]
    for step in range((VIEWS - 2) * VIEW_EVERY + 2):
        angles = 6 * (step + np.arange(1, 5) / 4)
        state, frames = world.advance(state, np.tile(np.stack([yaw(angle) for angle in angles]), (2, 1, 1, 1)))
        seen.append(frames)
    kept, chosen = [VIEW_EVERY * turn for turn in range(1, VIEWS - 1)], set()
    for degrees in range(-30, 360, 10):
        wanted = yaw(degrees)
        way = np.stack([yaw(degrees + 180)] * 3 + [wanted])  # where it ends is what counts
        views = world._views(state, torch.tensor(np.stack([way] * 2)))
        for row in range(2):
            shares = [share_in_sight(seen[number], row, wanted) for number in kept]
            enough = max(shares) >= MIN_OVERLAP
            assert bool(views.there[row, 1]) == enough, degrees
            if not enough:
                continue
            ends = [seen[number].world_from_camera[row, -1] for number in kept]
            index = [np.array_equal(views.world_from_camera[row, 1], end) for end in ends].index(True)
            assert shares[index] == max(shares), degrees
            last = seen[kept[index]]
            assert np.array_equal(views.rgb[row, 1], last.rgb[row, -1])
            assert np.array_equal(views.depth[row, 1], last.depth[row, -1].astype(np.float16))
            chosen.add(kept[index])
    assert chosen == set(kept)


def test_what_a_dream_no_longer_looks_at_is_not_guessed_from_and_the_newest_frame_always_is_shown(world, walked):
    state, _ = walked
    wanted = wanted_of(state, turned=[0])
    window, there = world._window(state, wanted), world._views(state, wanted).there
    assert there.tolist() == [[True, False, True], [True, True, True], [True, True, True]]
    assert (window.guessed[0] == 0).all() and (window.guessed[1:].mean(dim=(1, 2)) > 0.5).all()
    rgb, depth = state.view_rgb.clone(), state.view_depth.clone()
    rgb[:, 2:], depth[:, 2:] = 255 - rgb[:, 2:], depth[:, 2:] + 1
    other = world._window(replace(state, view_rgb=rgb, view_depth=depth), wanted)
    assert torch.equal(other.known[0], window.known[0]) and torch.equal(other.guessed[0], window.guessed[0])
    assert (other.known[1:, -1] != window.known[1:, -1]).any(dim=(1, 2, 3)).all()


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
    after, _ = world.advance(state, path(3, LONG))
    other, _ = world.advance(replace(state, view_rgb=255 - state.view_rgb), path(3, LONG))
    plain, _ = make_world(guess=False).advance(state, path(3, LONG))
    for changed in (other, plain):
        assert (changed.history[:, -1] - after.history[:, -1]).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    blind, _ = make_world(guess=False).advance(replace(state, view_rgb=255 - state.view_rgb), path(3, LONG))
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


@pytest.mark.parametrize("steps", [0, 3, LONG])
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
