"""The shipped model as users meet it: it fits, it keeps the contracts, and it knows more than standing still."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3_env

import aether_env  # noqa: F401
from aether_env.envs.starts import load_start, start_names
from aether_env.sim import SimWorld
from aether_env.world_model.checkpoint import load_checkpoint, resolve
from aether_env.world_model.rollout import MEMORY, DreamWorld
from tests.tiny import tiny_components


@pytest.fixture(scope="module")
def world():
    return DreamWorld(load_checkpoint("mini"))


@pytest.fixture(scope="module")
def quick(world):
    """Other weights in the same spaces: what Stable-Baselines3 says of an env follows from these alone."""
    quick = DreamWorld(tiny_components(world.height, world.width))
    one, other = (gym.make("Aether-v0", world=each) for each in (world, quick))
    assert one.observation_space == other.observation_space and one.metadata == other.metadata
    return quick


def test_the_shipped_checkpoint_takes_at_most_32_mebibytes():
    assert sum(f.stat().st_size for f in resolve("mini").rglob("*") if f.is_file()) <= 32 * 2**20


def test_gymnasiums_checker_passes_without_a_warning(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("Aether-v0", world=world, render_mode="rgb_array").unwrapped)


def test_sb3s_checker_gives_exactly_its_two_warnings_about_depth(quick):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_sb3_env(gym.make("Aether-v0", world=quick))
    assert len(caught) == 2 and all("depth" in str(w.message) or "image" in str(w.message) for w in caught)


@pytest.mark.parametrize("form", [{"depth_format": "inverse_uint8"}, {"obs_mode": "rgbd_uint8"}])
def test_sb3s_checker_is_silent_about_the_byte_forms(quick, form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3_env(gym.make("Aether-v0", world=quick, **form))


def first_rgb():
    env = gym.make("aether_env:Aether-v0")
    observation, _ = env.reset(seed=3)
    observation, *_ = env.step(np.array([0, 0, 0.5, 0, 0.2, 0], np.float32))
    return observation["rgb"]


def test_a_spawned_process_dreams_the_same(world, elsewhere):
    env = gym.make("Aether-v0", world=world)
    env.reset(seed=3)
    here = env.step(np.array([0, 0, 0.5, 0, 0.2, 0], np.float32))[0]["rgb"]
    there = elsewhere.apply(first_rgb)
    assert np.abs(here.astype(int) - there).max() <= 1


def test_the_dream_beats_standing_still_against_the_truth(world):
    """Two steps forward and turning from every bundled start: nearer to the simulator than the first picture is."""
    names = start_names()[::2]
    starts = [load_start(name) for name in names]
    assert all(s.rgb is not None and s.rgb.shape == (world.height, world.width, 3) for s in starts)
    sim = SimWorld(split="test")
    state, frames = world.start(starts, range(len(starts)))
    path = np.tile(np.eye(4), (8, 1, 1))
    angle = np.deg2rad(1.5) * np.arange(1, 9)
    path[:, 0, 0] = path[:, 2, 2] = np.cos(angle)
    path[:, 0, 2], path[:, 2, 0] = np.sin(angle), -np.sin(angle)
    path[:, 2, 3] = 0.05 * np.arange(1, 9)
    for step in range(2):
        state, frames = world.advance(state, np.tile(path[4 * step : 4 * step + 4], (len(starts), 1, 1, 1)))
    won = 0
    for row, start in enumerate(starts):
        truth = sim.scene_frames(start.scene_seed, np.concatenate([np.eye(4)[None], path])).rgb[0, -1].astype(float)
        dreamed = np.mean((frames.rgb[row, -1] - truth) ** 2)
        still = np.mean((start.rgb.astype(float) - truth) ** 2)
        won += dreamed < 0.6 * still
    assert won >= 0.75 * len(starts)


def test_random_steps_stay_in_their_spaces_when_memory_is_full_too(world):
    env = gym.make("Aether-v0", world=world)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(MEMORY + 8):
        observation, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert observation["rgb"].std() > 10, "and do not fade"
