import warnings
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_with_gymnasium
from stable_baselines3.common.env_checker import check_env as check_with_sb3

import aether_env  # noqa: F401

FORWARD = np.array([0, 0, 0.3, 0, 0, 0], np.float32)


@pytest.fixture(scope="module")
def env() -> Iterator[gym.Env]:
    env = gym.make("AetherSim-v0", height=48, width=64, split="test")
    yield env
    env.close()


def warnings_of(check, env) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env)
    return [str(warning.message) for warning in caught]


def roll(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make an env in whatever process this runs, and return what it shows after a step."""
    env = gym.make(name, height=48, width=64)
    env.reset(seed=seed)
    observation, *_ = env.step(FORWARD)
    env.close()
    return observation["rgb"], observation["depth"]


def test_gymnasium_has_nothing_to_say(env):
    assert warnings_of(lambda env: check_with_gymnasium(env.unwrapped, skip_render_check=True), env) == []


def test_sb3_warns_twice_about_float_depth_and_never_about_bytes(env):
    messages = warnings_of(check_with_sb3, env)
    assert len(messages) == 2 and all("depth" in message for message in messages)
    small = gym.make("AetherSim-v0", height=48, width=64, obs_mode="rgbd_uint8")
    assert warnings_of(check_with_sb3, small) == []
    small.close()


def test_lengths_are_metres_so_depth_ahead_shrinks_by_the_way_gone(env):
    shrunk = []
    for seed in range(5):
        before, info = env.reset(seed=seed)
        assert info["metric"] is True
        after, *_, info = env.step(FORWARD)
        np.testing.assert_allclose(info["world_from_camera"][:3, 3], [0, 0, 0.09], atol=1e-6)
        shrunk.append(before["depth"][24, 32, 0] - after["depth"][24, 32, 0])
    # The median, because an object may move through the middle of a picture.
    assert np.median(shrunk) == pytest.approx(0.09, abs=0.01)


def test_a_scene_seed_brings_the_same_scene_back(env):
    first, info = env.reset(seed=1)
    again, info_again = env.reset(seed=2, options={"scene_seed": info["scene_seed"]})
    assert info_again["scene_seed"] == info["scene_seed"]
    np.testing.assert_array_equal(first["rgb"], again["rgb"])
    np.testing.assert_array_equal(first["depth"], again["depth"])


def test_a_simulation_takes_no_picture(env):
    with pytest.raises(ValueError, match="'image'.*scene_seed"):
        env.reset(options={"image": np.zeros((64, 64, 3), np.uint8)})


def test_the_field_of_view_is_the_one_asked_for():
    env = gym.make("AetherSim-v0", height=48, width=64, horizontal_fov=60)
    _, info = env.reset(seed=0)
    assert 2 * np.degrees(np.arctan(32 / info["intrinsics"][0, 0])) == pytest.approx(60, abs=1e-3)
    env.close()


@pytest.mark.slow
def test_a_spawned_process_shows_the_same_from_the_id_alone(elsewhere):
    seen = elsewhere.apply(roll, ("aether_env:AetherSim-v0", 5))
    for here, there in zip(roll("AetherSim-v0", 5), seen, strict=True):
        np.testing.assert_array_equal(here, there)
