"""Seed-exact: a row of a vector env is the lone env of its seed, whatever happens beside it and to it.

The dream's weights are random: one layer, 16 x 24 pictures. Batches round otherwise than single rows, so a dream is
the same within tolerances; the simulator computes every row by itself and is the same to the last bit.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.envs.aether import AetherEnv
from aether_env.envs.vector import AetherVectorEnv

LATENTS = 1e-5
"""Largest difference of normalised latents, float32."""
LEVELS = 1
"""Largest difference of 8-bit colours."""
DEPTH = 1e-3
"""Largest relative difference of depth, and of the surfaces that follow from it."""
LIMIT = 3
"""Steps of an episode where episodes follow one another."""
SIM = {"world": "sim", "height": 16, "width": 24}


@pytest.fixture(scope="module")
def dream(tiny_checkpoint):
    """A lone env and vector envs of 2, 3 and 16 rows, each with weights that it loaded itself."""
    model = str(tiny_checkpoint)
    return AetherEnv(model=model), {
        size: AetherVectorEnv(size, autoreset_mode="disabled", model=model) for size in (2, 3, 16)
    }


@pytest.fixture(scope="module")
def simulation():
    envs = AetherEnv(**SIM), {size: AetherVectorEnv(size, autoreset_mode="disabled", **SIM) for size in (2, 5)}
    yield envs
    envs[0].close()


# What the same means.


def assert_same_pictures(seen, expected):
    assert seen.keys() == expected.keys()
    for name, picture in expected.items():
        if picture.dtype == np.uint8:
            assert np.abs(seen[name].astype(int) - picture).max() <= LEVELS, name
        else:
            np.testing.assert_allclose(seen[name], picture, rtol=DEPTH, atol=0, err_msg=name)


def assert_same_dreams(vec, row, seen, lone, expected):
    assert_same_pictures(seen, expected)
    now, wanted = vec._episodes[[row]], lone._episode
    for name in ("nonce", "branch", "step", "history_filled", "memory_count", "metric"):
        assert torch.equal(getattr(now.state, name), getattr(wanted.state, name)), name
    torch.testing.assert_close(now.state.history, wanted.state.history, atol=LATENTS, rtol=0)
    # Memory is float16: what differs by a rounding error may be rounded to the next number, 2^-10 of it away.
    torch.testing.assert_close(now.state.memory, wanted.state.memory, atol=LATENTS, rtol=2**-10)
    np.testing.assert_allclose(now.world_from_camera, wanted.world_from_camera, rtol=0, atol=1e-5)
    np.testing.assert_allclose(now.surfaces, wanted.surfaces, rtol=DEPTH, atol=DEPTH)


def assert_same_bits(vec, row, seen, lone, expected):
    now, wanted = vec._episodes[[row]], lone._episode
    arrays, about = vec.core.world.freeze(now.state)
    wanted_arrays, wanted_about = lone.core.world.freeze(wanted.state)
    arrays |= seen | {"camera": now.world_from_camera, "surfaces": now.surfaces}
    wanted_arrays |= expected | {"camera": wanted.world_from_camera, "surfaces": wanted.surfaces}
    assert arrays.keys() == wanted_arrays.keys() and about == wanted_about
    for name, array in wanted_arrays.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


# What happens to a row between two of its steps; each returns where the row goes on.


def nothing(vec, row, rng):
    return row


def some_neighbours_begin_anew(vec, row, rng):
    mask = rng.random(vec.num_envs) < 0.5
    mask[row] = False
    if mask.any():
        # The row's own seed is not asked for, since the row is not reset.
        seed = rng.integers(2**31, size=vec.num_envs).tolist() if rng.random() < 0.5 else None
        vec.reset(seed=seed, options={"reset_mask": mask})
    return row


def it_goes_astray_and_is_restored_in_any_row(vec, row, rng):
    data = vec.snapshot(row)
    if rng.random() < 0.5:
        vec.reset(seed=int(rng.integers(2**31)))
    vec.step(random_actions(rng, vec))
    place = int(rng.integers(vec.num_envs))
    vec.restore(place, data)
    return place


def it_is_branched(vec, row, rng):
    branches = vec.branch(row, 2, reseed=bool(rng.random() < 0.5))
    branches.step(random_actions(rng, branches))
    branches.reset(seed=0)
    branches.close()
    return row


def a_step_and_a_reset_fail(vec, row, rng):
    with pytest.raises(ValueError):
        vec.step(np.full(vec.action_space.shape, np.nan, np.float32))
    with pytest.raises(ValueError):
        vec.reset(seed=5, options={"image": "missing.png"})
    return row


EVENTS = [
    nothing,
    some_neighbours_begin_anew,
    it_goes_astray_and_is_restored_in_any_row,
    it_is_branched,
    a_step_and_a_reset_fail,
]


def random_actions(rng, vec):
    """Return own actions for every row, some of them beyond the space's bounds."""
    return (rng.choice([0.3, 1.2]) * rng.uniform(-1, 1, vec.action_space.shape)).astype(np.float32)


def random_start(rng):
    """Return options: a bundled picture, or a picture of our own without depth, or with depth that has holes."""
    kind = rng.integers(3)
    if kind == 0:
        return {}
    height, width = rng.integers(16, 40, size=2)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == 1:
        return {"image": image}
    depth = rng.uniform(0.5, 6.0, (height, width)).astype(np.float32)
    depth[rng.random((height, width)) < rng.uniform(0, 0.9)] = np.nan
    return {"image": image, "depth": depth}


def compare_lives(lone, vec, row, seed, events, rng, starts, assert_same):
    """Let a row live through events, with a step after each, and then through the beginning of its next episode."""
    seeds = rng.integers(2**31, size=vec.num_envs).tolist()
    seeds[row] = seed

    def compare(observations, expected):
        assert_same(vec, row, {name: array[row] for name, array in observations.items()}, lone, expected)

    compare(vec.reset(seed=seeds, options={"each": starts})[0], lone.reset(seed=seed, options=starts[row])[0])
    for event in events:
        row = event(vec, row, rng)
        actions = random_actions(rng, vec)
        compare(vec.step(actions)[0], lone.step(actions[row])[0])
    compare(vec.reset(options={"reset_mask": np.arange(vec.num_envs) == row})[0], lone.reset()[0])


lives = {"place": st.integers(0, 15), "seed": st.integers(0, 2**40), "luck": st.integers(0, 2**32 - 1)}


@pytest.mark.parametrize("size", [2, 3, 16])
@settings(max_examples=3, deadline=None)
@given(events=st.permutations(2 * EVENTS), **lives)
def test_a_dreaming_row_is_the_lone_env_of_its_seed(dream, size, place, seed, luck, events):
    lone, vecs = dream
    rng = np.random.default_rng(luck)
    starts = [random_start(rng) for _ in range(size)]
    compare_lives(lone, vecs[size], place % size, seed, events, rng, starts, assert_same_dreams)


@pytest.mark.parametrize("size", [2, 5])
@settings(max_examples=2, deadline=None)
@given(events=st.permutations(EVENTS), **lives)
def test_a_simulated_row_is_the_lone_env_of_its_seed_to_the_last_bit(simulation, size, place, seed, luck, events):
    lone, vecs = simulation
    rng = np.random.default_rng(luck)
    compare_lives(lone, vecs[size], place % size, seed, events, rng, [{}] * size, assert_same_bits)


# Episodes after the first.


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@settings(max_examples=2, deadline=None)
@given(size=st.sampled_from([2, 3]), **lives)
def test_later_episodes_are_those_of_the_lone_env_too(tiny_checkpoint, mode, size, place, seed, luck):
    made = {"model": str(tiny_checkpoint), "task": "image"}  # whose goal is drawn as well, and dreamed
    lone, row, rng = AetherEnv(**made), place % size, np.random.default_rng(luck)
    vec = AetherVectorEnv(size, max_episode_steps=LIMIT, autoreset_mode=mode, **made)
    seeds = rng.integers(2**31, size=size).tolist()
    seeds[row] = seed
    vec.reset(seed=seeds)
    lone.reset(seed=seed)
    nonces, steps, over = {int(lone._episode.state.nonce)}, 0, False
    for _ in range(2 * LIMIT + 3):
        some_neighbours_begin_anew(vec, row, rng)  # so that rows do not end together
        actions = random_actions(rng, vec)
        observations, _, terminated, truncated, infos = vec.step(actions)
        seen = {name: array[row] for name, array in observations.items()}
        if over:
            expected, over, steps = lone.reset()[0], False, 0
        else:
            expected, _, ended, *_ = lone.step(actions[row])
            steps += 1
            over = ended or steps == LIMIT
            assert (terminated[row], truncated[row]) == (ended, steps == LIMIT)
        if over and mode == "same_step":
            assert_same_pictures(infos["final_obs"][row], expected)
            expected, over, steps = lone.reset()[0], False, 0
        assert_same_dreams(vec, row, seen, lone, expected)
        nonces.add(int(lone._episode.state.nonce))
    assert len(nonces) >= 3  # every episode had luck of its own


def test_rows_are_seeded_by_a_list_or_by_the_first_of_successive_seeds(dream):
    _, vecs = dream
    vec, other = vecs[2], vecs[3]
    listed, _ = vec.reset(seed=[8, 7])
    counted, _ = other.reset(seed=7)
    state, counted_state = vec._episodes.state, other._episodes.state
    assert state.nonce.tolist() == counted_state.nonce[[1, 0]].tolist()
    assert len(set(counted_state.nonce.tolist())) == 3
    assert_same_pictures(listed, {name: array[[1, 0]] for name, array in counted.items()})


# Another process.


def dream_on(model, seed, data, action_T6):
    """Dream from a seed and from a snapshot in whatever process this runs; return latents and pictures of each step."""
    env = AetherEnv(model=model)
    seen = []
    for begin in (lambda: env.reset(seed=seed), lambda: env.restore(data)):
        begin()
        for action in action_T6:
            observation, *_ = env.step(action)
            seen.append((env._episode.state.history.numpy(), observation))
    return seen


def test_a_new_process_dreams_the_same_from_a_seed_and_from_a_snapshot_of_a_row(tiny_checkpoint, dream, elsewhere):
    _, vecs = dream
    vec, row, rng = vecs[3], 1, np.random.default_rng(0)
    here = []
    action_T6 = rng.uniform(-1, 1, (5, 6)).astype(np.float32)
    vec.reset(seed=[1, 2, 3])
    data = None
    for _ in range(2):
        data = vec.snapshot(row)  # the second one is of a row that has already walked, and remembers
        for action in action_T6:
            observations, *_ = vec.step(np.stack([-action, action, 0 * action]))
            latents = vec._episodes.state.history[[row]].numpy()
            here.append((latents, {name: array[row] for name, array in observations.items()}))
    there = elsewhere.apply(dream_on, (str(tiny_checkpoint), 2, data, action_T6))
    for (latents, seen), (expected_latents, expected) in zip(there, here, strict=True):
        np.testing.assert_allclose(latents, expected_latents, rtol=0, atol=LATENTS)
        assert_same_pictures(seen, expected)
