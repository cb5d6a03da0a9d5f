"""Agents of Stable-Baselines3 learn in the simulator to reach a pose.

The answer is known: go where the goal is and turn as it is turned. Goals are 0.5 to 1 m away and turned by at most 30
degrees, a step goes 0.3 m along each axis and 15 degrees: two or three steps are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC, HerReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecExtractDictObs, VecMonitor

from aether_env import PoseGoal, Potential, Sparse
from policies.sb3 import SB3VecEnv
from tests.rooms import BoxRoom

GAMMA = 0.9
GOAL_KEYS = ("achieved_goal", "desired_goal")
# The smallest pictures that show which goals are free to go to: these agents look at the goal alone.
SMALL = dict(height=8, width=12, frames_per_step=1, action_mode="planar", max_episode_steps=12)
ROWS = 32


def near_goals(reward) -> PoseGoal:
    return PoseGoal(reward=reward, distance=(0.5, 1.0))


def rows(count: int, split: str) -> VecEnv:
    """Return many cameras whose observation is `goal`: the goal's pose in the axes of the camera now."""
    envs = gym.make_vec(
        "AetherSim-v0", count, task=near_goals(Potential(gamma=GAMMA)), split=split, autoreset_mode="same_step", **SMALL
    )
    return VecMonitor(VecExtractDictObs(SB3VecEnv(envs), "goal"), info_keywords=("success",))


class GoalsAlone(VecEnvWrapper):
    """Leaves the pictures out of goal observations."""

    def __init__(self, envs: VecEnv) -> None:
        super().__init__(envs, gym.spaces.Dict({key: envs.observation_space[key] for key in GOAL_KEYS}))

    def reset(self) -> dict[str, np.ndarray]:
        return self._goals(self.venv.reset())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._goals(info["terminal_observation"])
        return self._goals(observations), rewards, dones, infos

    def _goals(self, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: seen[key] for key in GOAL_KEYS}


def goal_rows(count: int, split: str) -> VecEnv:
    """Return many cameras with `achieved_goal` and `desired_goal` alone, for the very goals that `rows` has."""
    envs = gym.make_vec(
        "AetherSimGoal-v0", count, task=near_goals(Sparse()), split=split, autoreset_mode="same_step", **SMALL
    )
    return VecMonitor(GoalsAlone(SB3VecEnv(envs)), info_keywords=("success",))


def judged(envs: VecEnv, act: Callable[[Any], np.ndarray]) -> tuple[float, float]:
    """Return the share of successes and the mean number of steps of each row's first episode, in scenes kept for tests.

    All agents meet the same scenes and goals.
    """
    envs.seed(1000)
    observations = envs.reset()
    ends: dict[int, tuple[bool, int]] = {}
    while len(ends) < envs.num_envs:
        observations, _, dones, infos = envs.step(act(observations))
        for row in np.flatnonzero(dones).tolist():
            ends.setdefault(row, (infos[row]["episode"]["success"], infos[row]["episode"]["l"]))
    successes, steps = zip(*ends.values(), strict=True)
    return float(np.mean(successes)), float(np.mean(steps))


def known_answer(goal_B9: np.ndarray) -> np.ndarray:
    """Return forward, strafe and yaw (B, 3) that lead straight to goals seen from the camera."""
    x, z, yaw = goal_B9[:, 0], goal_B9[:, 2], np.arctan2(-goal_B9[:, 5], goal_B9[:, 3])
    return np.clip(np.stack([z / 0.3, x / 0.3, yaw / math.radians(15)], axis=-1), -1, 1)


def random_actions() -> Callable[[Any], np.ndarray]:
    rng = np.random.default_rng(0)
    return lambda _: rng.uniform(-1, 1, (ROWS, 3)).astype(np.float32)


@pytest.mark.slow
def test_ppo_learns_to_reach_a_pose():
    test = rows(ROWS, "test")
    best_share, best_steps = judged(test, known_answer)
    assert best_share == 1 and best_steps < 3
    assert judged(test, random_actions())[0] < 0.4

    agent = PPO(
        "MlpPolicy",
        rows(64, "train"),
        n_steps=8,
        batch_size=128,
        learning_rate=2e-3,
        gamma=GAMMA,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[32, 32], log_std_init=-0.5),
    )

    def trained(goals):
        return agent.predict(goals, deterministic=True)[0]

    assert judged(test, trained)[0] < 0.4, "what is learned is not there before"
    agent.learn(4096)
    share, steps = judged(test, trained)
    assert share >= 0.9 and steps < best_steps + 1
    test.close()
    agent.get_env().close()


@pytest.mark.slow
def test_sac_with_hindsight_learns_to_reach_a_pose_from_a_sparse_reward():
    test = goal_rows(ROWS, "test")
    assert judged(test, random_actions())[0] < 0.4

    agent = SAC(
        "MultiInputPolicy",
        goal_rows(32, "train"),
        replay_buffer_class=HerReplayBuffer,
        buffer_size=2000,
        learning_starts=200,
        gradient_steps=20,
        batch_size=128,
        learning_rate=2e-3,
        tau=0.02,
        gamma=GAMMA,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[64, 64]),
    )

    def trained(seen):
        return agent.predict(seen, deterministic=True)[0]

    assert judged(test, trained)[0] < 0.4, "what is learned is not there before"
    agent.learn(1600)
    share, steps = judged(test, trained)
    assert share >= 0.9 and steps < 4
    test.close()
    agent.get_env().close()


@pytest.mark.parametrize("form", [{}, {"depth_format": "inverse_uint8"}])
@pytest.mark.parametrize("task", ["pose", "image", "depth"])
def test_sac_with_hindsight_takes_the_env_as_it_is(task, form):
    env = gym.make("AetherGoal-v0", world=BoxRoom(36, 48), task=task, max_episode_steps=5, **form)
    agent = SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        buffer_size=50,
        learning_starts=10,
        batch_size=8,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[8]),
    )
    before = [weights.detach().clone() for weights in agent.actor.parameters()]
    agent.learn(12)
    assert any((a != b).any() for a, b in zip(before, agent.actor.parameters(), strict=True))

    # Four of five sampled steps have another goal than the agent had, and are worth what the task says of that goal.
    sample = agent.replay_buffer.sample(50)
    wanted = sample.next_observations["desired_goal"].numpy()
    own = agent.replay_buffer.observations["desired_goal"][:12, 0]
    assert sum(not (goal == own).all(axis=-1).any() for goal in wanted) == 40
    rewards = env.unwrapped.task.compute_reward(sample.next_observations["achieved_goal"].numpy(), wanted)
    np.testing.assert_array_equal(sample.rewards.numpy()[:, 0], rewards)
    assert set(rewards.tolist()) == {0.0, -1.0}
