"""Dreaming step by step: seeds, batches, immutability, memory, scale, errors. The weights are random."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aether_env.conventions import FAR_DEPTH
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.conditions import HISTORY
from aether_env.world_model.promise import Start
from aether_env.world_model.rollout import MEMORY, DreamWorld

HEIGHT, WIDTH = 16, 24
INTRINSICS = np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]])


@pytest.fixture(scope="module")
def world(tiny_checkpoint):
    return DreamWorld(load_checkpoint(tiny_checkpoint))


def start(index, depth=True):
    rng = np.random.default_rng(index)
    rgb = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Start(rgb=rgb, depth=rng.uniform(1, 5, (HEIGHT, WIDTH)) if depth else None, intrinsics=INTRINSICS)


def forward(batch, step, metres=0.1):
    path = np.tile(np.eye(4), (batch, 4, 1, 1))
    path[..., 2, 3] = metres * (step + np.arange(1, 5) / 4)
    return path


def walk(world, starts, seeds, steps):
    state, frames = world.start(starts, seeds)
    seen = [frames]
    for step in range(steps):
        state, frames = world.advance(state, forward(len(starts), step))
        seen.append(frames)
    return state, seen


def test_a_dream_is_the_same_alone_and_in_any_place_of_a_batch(world):
    starts, seeds = [start(i, depth=i != 1) for i in range(4)], [11, 12, 13, 14]
    state, seen = walk(world, starts, seeds, 5)
    for row in range(4):
        alone_state, alone = walk(world, starts[row : row + 1], seeds[row : row + 1], 5)
        torch.testing.assert_close(alone_state.history[0], state.history[row], atol=1e-5, rtol=0)
        for a, b in zip(alone, seen, strict=True):
            assert np.abs(a.rgb[0].astype(int) - b.rgb[row]).max() <= 1
            np.testing.assert_allclose(a.depth[0], b.depth[row], rtol=1e-3)


def test_another_seed_dreams_another_dream(world):
    states = [walk(world, [start(0)], [seed], 1)[0] for seed in (1, 2)]
    assert (states[0].history[0, -1] - states[1].history[0, -1]).abs().max() > 0.1


@pytest.mark.parametrize(("steps", "share"), [(0, 0.0), (1, 1 / 3), (3, 1.0), (5, 1.0)])
def test_detail_moves_a_step_past_its_last_answer_as_far_as_the_history_was_dreamed(tiny_checkpoint, steps, share):
    parts = load_checkpoint(tiny_checkpoint)
    before, _ = walk(DreamWorld(parts), [start(0), start(1)], [1, 2], steps)
    latents = []
    for detail, sigmas in ((0.0, (1.0,)), (0.0, (1.0, 0.5)), (0.5, (1.0, 0.5))):
        parts.settings = replace(parts.settings, step_detail=detail, step_sigmas=sigmas)
        latents.append(DreamWorld(parts).advance(before, forward(2, steps))[0].history[:, -1])
    first, last, beyond = latents
    torch.testing.assert_close(beyond, last + share * 0.5 * (last - first), atol=1e-4, rtol=1e-4)
    assert (last - first).abs().max() > 1e-2


def test_advance_leaves_the_state_as_it_was(world):
    state, _ = walk(world, [start(0), start(1)], [1, 2], 4)
    before = {name: value.clone() for name, value in vars(state).items()}
    first, _ = world.advance(state, forward(2, 4))
    second, _ = world.advance(state, forward(2, 4))
    for name, value in before.items():
        assert torch.equal(getattr(state, name), value), name
    assert torch.equal(first.history, second.history)


def test_rows_taken_apart_and_joined_go_on_as_before(world):
    state, _ = walk(world, [start(i) for i in range(3)], [1, 2, 3], 5)
    joined = world.join([state[2:], state[:2]])
    together, _ = world.advance(joined, forward(3, 5))
    reference, _ = world.advance(state, forward(3, 5))
    torch.testing.assert_close(together.history, reference.history[[2, 0, 1]], atol=1e-5, rtol=0)


def test_depth_at_reset_makes_the_dream_metric_and_is_given_back(world):
    given = start(0)
    depth = given.depth.copy()
    depth[0, 0] = np.nan
    state, frames = world.start(
        [Start(rgb=given.rgb, depth=depth, intrinsics=INTRINSICS), start(1, depth=False)], [0, 0]
    )
    assert frames.metric.tolist() == [True, False]
    np.testing.assert_allclose(frames.depth[0, 0].ravel()[1:], depth.ravel()[1:], rtol=1e-6)
    assert 1 < frames.depth[0, 0, 0, 0] < 5  # a hole is filled from around it, it is no sky
    np.testing.assert_allclose(world.describe(state)[0]["unit"], np.quantile(depth[np.isfinite(depth)], 0.1), rtol=0.05)
    assert world.describe(state)[1]["unit"] == 1.0
    np.testing.assert_array_equal(frames.rgb[0, 0], given.rgb)


def test_a_scene_twice_as_large_walked_twice_as_far_looks_the_same(world):
    small = start(0)
    large = Start(rgb=small.rgb, depth=2 * small.depth, intrinsics=INTRINSICS)
    state, _ = world.start([small, large], [5, 5])
    path = np.concatenate([forward(1, 0, 0.1), forward(1, 0, 0.2)])
    state, frames = world.advance(state, path)
    torch.testing.assert_close(state.history[0], state.history[1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(2 * frames.depth[0], frames.depth[1], rtol=1e-3)


def test_what_leaves_the_history_is_remembered_and_memory_is_bounded(world):
    state, _ = walk(world, [start(0)], [3], 1)
    first = state.history[0, -2].clone()
    for step in range(1, MEMORY + HISTORY + 4):
        state, _ = world.advance(state, forward(1, step))
        assert int(state.memory_count[0]) == max(0, step + 2 - HISTORY)
    torch.testing.assert_close(state.memory[0, 0].float(), first, atol=2e-3, rtol=1e-3)
    assert state.memory.shape[1] == MEMORY


def test_memory_is_shown_only_where_it_would_be_seen_again(world):
    state, _ = walk(world, [start(0)], [3], 5)
    here = torch.eye(4, dtype=torch.float64)[None]
    away = here.clone()
    away[:, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
    assert world._overlap(state, here)[0, 0] == 1  # memory 0 is the first picture, seen from here
    assert world._overlap(state, away).max() == 0


def test_long_dreams_stay_finite_and_in_range(world):
    _, seen = walk(world, [start(0), start(1, depth=False)], [1, 2], 40)
    for frames in seen:
        assert np.isfinite(frames.depth).all() and (frames.depth > 0).all() and (frames.depth <= FAR_DEPTH).all()


def test_bad_starts_and_paths_are_named(world):
    with pytest.raises(ValueError, match=r"starts_B\[0\].rgb is None"):
        world.start([Start()], [0])
    with pytest.raises(ValueError, match=r"starts_B\[0\].rgb must be uint8"):
        world.start([Start(rgb=np.zeros((8, 8, 3), np.uint8))], [0])
    with pytest.raises(ValueError, match=r"starts_B\[0\].depth"):
        world.start([Start(rgb=start(0).rgb, depth=np.ones((3, 3)))], [0])
    state, _ = world.start([start(0)], [0])
    with pytest.raises(ValueError, match="world_from_camera_BT44"):
        world.advance(state, np.tile(np.eye(4), (1, 3, 1, 1)))


@pytest.mark.parametrize("bad", [{"height": 32}, {"width": 32}, {"frames_per_step": 3}, {"fps": 0.5}])
def test_settings_that_the_checkpoint_does_not_have_are_named(tiny_checkpoint, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DreamWorld(load_checkpoint(tiny_checkpoint), **bad)
