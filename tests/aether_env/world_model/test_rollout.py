"""Dreaming step by step: seeds, batches, immutability, memory, scale, errors. The weights are random."""

from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from aether_env.conventions import FAR_DEPTH
from aether_env.envs.snapshots import pack, unpack
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.conditions import HISTORY
from aether_env.world_model.promise import BRANCHES, Start
from aether_env.world_model.quantised import QuantisedPrediction
from aether_env.world_model.rollout import MEMORY, VIEWS, DreamWorld

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


@pytest.mark.parametrize("size", [1, 3])
def test_with_rows_at_once_every_call_has_as_many_rows_and_a_dream_is_the_same_to_the_bit(tiny_checkpoint, world, size):
    parted = DreamWorld(load_checkpoint(tiny_checkpoint), rows_at_once=size)
    parts, asked = parted.codec.parts, {"network": set(), "decoder": set()}
    for name, module in (("network", parts.transformer.patch_embed), ("decoder", parts.vae.from_latents)):
        module.register_forward_hook(lambda module, inputs, output, name=name: asked[name].add(len(output)))
    starts, seeds = [start(i, depth=i != 1) for i in range(4)], [11, 12, 13, 14]
    state, seen = walk(parted, starts, seeds, 2)
    # The decoders' convolutions round large batches otherwise on a CPU, so that they get single rows there; int8 is
    # rounded by the range of a call.
    quick = isinstance(parted._predict, QuantisedPrediction)
    assert asked == {"network": {1 if quick else size}, "decoder": {1}}
    whole, _ = walk(world, starts, seeds, 2)
    torch.testing.assert_close(state.history, whole.history, atol=1e-5, rtol=0)
    for row in range(4):
        alone_state, alone = walk(parted, starts[row : row + 1], seeds[row : row + 1], 2)
        for field in fields(alone_state):
            assert torch.equal(getattr(alone_state, field.name)[0], getattr(state, field.name)[row]), field.name
        for a, b in zip(alone, seen, strict=True):
            assert np.array_equal(a.rgb[0], b.rgb[row]) and np.array_equal(a.depth[0], b.depth[row])


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
    wall = replace(start(0), depth=np.full((HEIGHT, WIDTH), 4.0))
    state, _ = walk(world, [wall], [3], 5)
    here = torch.eye(4, dtype=torch.float64).expand(1, 4, 4, 4)
    turned = here @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))
    assert world._window(state, here).mask[0, 0].tolist() == [1, 1, 1]
    assert world._window(state, turned).mask[0, 0].tolist() == [0, 0, 0]
    # Memory 0 is the wall. From 2.4 m aside it is shifted by 20 * 2.4 / 4 = 12 pixels: half of the picture.
    aside = torch.eye(4, dtype=torch.float64)[None]
    aside[:, 0, 3] = 2.4
    points = state.memory_points[:, :1].expand(-1, 2, -1, -1)
    overlap = world._overlap(points, torch.tensor([[True, False]]), state.intrinsics, aside)
    assert overlap.tolist() == [[0.5, 0.0]]  # what is not kept is not there


def test_long_dreams_stay_finite_and_in_range_and_can_be_frozen(world):
    state, seen = walk(world, [start(0), start(1, depth=False)], [1, 2], 40)
    for frames in seen:
        assert np.isfinite(frames.depth).all() and (frames.depth > 0).all() and (frames.depth <= FAR_DEPTH).all()
    assert (state.memory_count > MEMORY).all()
    assert_same_states(world.thaw(*world.freeze(state)), state)


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


@pytest.mark.parametrize(
    "bad", [{"height": 32}, {"width": 32}, {"frames_per_step": 3}, {"fps": 0.5}, {"rows_at_once": 0}]
)
def test_settings_that_the_checkpoint_does_not_have_are_named(tiny_checkpoint, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DreamWorld(load_checkpoint(tiny_checkpoint), **bad)


def through_bytes(world, state):
    arrays, about = world.freeze(state)
    return unpack(pack(arrays, {"world": about}))[0], about


def assert_same_states(a, b):
    for f in fields(a):
        assert torch.equal(getattr(a, f.name), getattr(b, f.name)), f.name
        assert getattr(a, f.name).dtype == getattr(b, f.name).dtype, f.name


@pytest.fixture(scope="module")
def walked(world):
    """Two dreams after four steps, the first without scale."""
    return walk(world, [start(0, depth=False), start(1)], [1, 2], 4)[0]


@pytest.fixture
def frozen(world, walked):
    return lambda: world.freeze(walked)


@pytest.mark.parametrize(("batch", "steps"), [(1, 0), (1, HISTORY + 3), (3, HISTORY + 3)])
def test_going_on_from_a_snapshot_is_the_same_as_never_having_stopped(world, batch, steps):
    state, _ = walk(world, [start(i, depth=i != 1) for i in range(batch)], list(range(batch)), steps)
    thawed = world.thaw(*through_bytes(world, state))
    assert_same_states(thawed, state)
    for step in range(steps, steps + 2):
        state, frames = world.advance(state, forward(batch, step))
        thawed, again = world.advance(thawed, forward(batch, step))
        assert_same_states(thawed, state)
        for f in fields(frames):
            np.testing.assert_array_equal(getattr(again, f.name), getattr(frames, f.name), strict=True)


def test_another_world_of_the_same_checkpoint_goes_on_from_a_snapshot(world, tiny_checkpoint):
    state, _ = walk(world, [start(0)], [3], 2)
    other = DreamWorld(load_checkpoint(tiny_checkpoint))
    _, frames = world.advance(state, forward(1, 2))
    _, again = other.advance(other.thaw(*through_bytes(world, state)), forward(1, 2))
    np.testing.assert_array_equal(again.rgb, frames.rgb)


def test_frozen_arrays_states_and_thawed_arrays_do_not_share_memory(world):
    state, _ = walk(world, [start(0)], [3], 1)
    arrays, about = world.freeze(state)
    thawed = world.thaw(arrays, about)
    for array in arrays.values():
        array[...] = 0
    assert_same_states(thawed, state)
    assert_same_states(thawed, walk(world, [start(0)], [3], 1)[0])


def test_a_snapshot_of_mini_takes_less_than_a_mebibyte():
    """As users take it, with env and task. Nothing in it is compressed: its size does not depend on the dream."""
    world, sizes = DreamWorld.from_checkpoint("mini", sigmas=(1.0,)), {}
    for task in ("explore", "pose", "image", "depth"):
        env = gym.make("Aether-v0", world=world, task=task).unwrapped
        env.reset(seed=0)
        sizes[task] = len(env.snapshot())
    assert max(sizes.values()) < 2**20, sizes


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.prompt_embeds[0, 0, :1],
        lambda parts: parts.transformer.proj_out.weight.data[0, :1],
        lambda parts: parts.vae.frame_out.bias.data[:1],
        lambda parts: parts.vae.mean[-1:],
        lambda parts: parts.disparity_vae.std[-1:],
    ],
)
def test_one_other_number_in_the_weights_makes_another_checkpoint_which_is_named(frozen, tiny_checkpoint, change):
    parts = load_checkpoint(tiny_checkpoint)
    change(parts).add_(1e-3)
    arrays, about = frozen()
    theirs = about["checkpoint"]
    with pytest.raises(ValueError, match=f"checkpoint is '{theirs}', but this world's is '(?!{theirs})[0-9a-f]{{64}}'"):
        DreamWorld(parts).thaw(arrays, about)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "sim"}, "kind is 'sim', but this world's is 'dream'"),
        ({"height": 64}, "height is 64, but this world's is 16"),
        ({"fps": 10.0}, "fps"),
        ({"frames_per_step": 1}, "frames_per_step"),
        ({"sigmas": [1.0]}, "sigmas"),
        ({"checkpoint": None}, "checkpoint"),
        ({"more": 1}, "'more'"),
    ],
)
def test_a_snapshot_of_another_world_is_refused_by_what_differs(world, frozen, change, named):
    arrays, about = frozen()
    with pytest.raises(ValueError, match=named):
        world.thaw(arrays, about | change)
    for name in change:
        about.pop(name, None)
    if "more" not in change:
        with pytest.raises(ValueError, match=f"{next(iter(change))} is not given"):
            world.thaw(arrays, about)
    with pytest.raises(ValueError, match="which world"):
        world.thaw(arrays, None)


def test_other_noise_levels_are_another_world(frozen, tiny_checkpoint):
    other = DreamWorld(load_checkpoint(tiny_checkpoint), sigmas=[1.0, 0.4])
    with pytest.raises(ValueError, match=r"sigmas is \[1.0, 0.5\], but this world's is \[1.0, 0.4\]"):
        other.thaw(*frozen())


def test_each_array_that_is_missing_or_of_another_kind_is_named(world, frozen):
    arrays, about = frozen()
    assert set(arrays) == {
        *("history", "history_pose", "history_filled", "history_points"),
        *("memory", "memory_pose", "memory_points", "memory_count"),
        *("view_rgb", "view_depth", "view_pose", "view_points"),
        *("intrinsics", "unit", "metric", "nonce", "branch", "step"),
    }
    for name, array in arrays.items():
        others = [
            None,
            array.tolist(),
            array[:1],
            array[:0],
            array[..., None],
            array[0, 0] if array.ndim > 1 else array[0],
            array.astype("float64" if array.dtype != "float64" else "float32"),
            array.astype(array.dtype.newbyteorder()) if array.dtype.itemsize > 1 else array.view(np.int8),
        ]
        if array.ndim > 1:
            others.append(array[:, 1:])
        if array.dtype.kind == "f":
            for wrong in (np.nan, np.inf):
                damaged = array.copy()
                damaged.reshape(-1)[-1] = wrong
                others.append(damaged)
        for other in others:
            # One array may also be blamed for another: of three lengths nobody knows which is right.
            with pytest.raises(ValueError, match="snapshot" if other is not None else repr(name)):
                world.thaw(arrays | {name: other}, about)
        with pytest.raises(ValueError, match=f"no array '{name}'"):
            world.thaw({key: value for key, value in arrays.items() if key != name}, about)
    with pytest.raises(ValueError, match="'another'"):
        world.thaw(arrays | {"another": arrays["unit"]}, about)
    world.thaw(arrays, about)


@pytest.mark.parametrize(
    ("name", "place", "value", "named"),
    [
        ("history_pose", (1, 0, 0, 0, 0), 3.0, "history_pose must be rigid"),
        ("memory_pose", (1, MEMORY - 1, 3, 3, 3), 2.0, "memory_pose must have the bottom row"),
        ("view_pose", (1, 0, 0, 0), 3.0, "view_pose must be rigid"),
        ("view_pose", (1, VIEWS - 1, 3, 3), 2.0, "view_pose must have the bottom row"),
        ("intrinsics", (1, 0, 0), -20.0, "intrinsics must have positive"),
        ("unit", 1, 0.0, "unit must be in"),
        ("unit", 1, 1e30, "unit must be in"),
        ("unit", 0, 2.0, "unit must be 1 where"),
        ("nonce", 1, -1, "nonce"),
        ("branch", 1, -1, "branch"),
        ("branch", 1, BRANCHES, "branch"),
        ("step", 1, -1, "step must be in"),
        ("step", 1, BRANCHES, "step must be in"),
        ("step", 1, np.iinfo(np.int64).max, "step must be in"),
        ("step", 1, 1, "history_filled"),
        ("step", 1, 5, "memory_count"),
        ("history_filled", (1, 0), False, "history_filled"),
        ("memory_count", 1, -1, "memory_count"),
        ("memory_count", 1, MEMORY + 5, "memory_count"),
    ],
)
def test_a_state_that_no_dream_comes_to_is_refused(world, frozen, name, place, value, named):
    arrays, about = frozen()
    world.thaw(arrays, about)
    arrays[name][place] = value
    with pytest.raises(ValueError, match=f"the snapshot's {named}"):
        world.thaw(arrays, about)


def test_branches_with_one_number_dream_alike_and_with_another_otherwise(world, walked):
    state, before = walked, {name: value.clone() for name, value in vars(walked).items()}
    branches = world.branch(state, [1, 0, 1, 1, 1], [7, 0, 7, 8, 0])
    after, _ = world.advance(branches, forward(5, 4))
    reference, _ = world.advance(state, forward(2, 4))
    new = after.history[:, -1]
    torch.testing.assert_close(new[2], new[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(new[[1, 4]], reference.history[:, -1], atol=1e-5, rtol=0)
    for a, b in ((0, 3), (0, 4), (3, 4)):
        assert (new[a] - new[b]).abs().max() > 0.1
    for name, value in before.items():
        assert torch.equal(getattr(state, name), value), name


def test_branches_without_numbers_keep_the_noise_of_their_rows(world, walked):
    state = world.branch(walked, [0, 1], [5, 2**32 - 1])
    picked = world.branch(state, np.array([1, 1, 0]), None)
    assert_same_states(picked, state[[1, 1, 0]])
    assert picked.branch.tolist() == [2**32 - 1, 2**32 - 1, 5]
    assert_same_states(world.thaw(*through_bytes(world, picked)), picked)


@pytest.mark.parametrize(
    ("rows", "numbers", "named"),
    [
        ([], None, "rows must name at least one"),
        ([2], None, r"rows must be whole numbers in 0..1, got 2"),
        ([-1], None, "rows"),
        ([True], None, "rows"),
        ([0.0], None, "rows"),
        ([0, 1], [1], "numbers must be one for each of 2 rows, or None, got 1"),
        ([0], [2**32], "numbers"),
        ([0], [-1], "numbers"),
    ],
)
def test_branches_that_there_are_not_are_named(world, walked, rows, numbers, named):
    with pytest.raises(ValueError, match=named):
        world.branch(walked, rows, numbers)
