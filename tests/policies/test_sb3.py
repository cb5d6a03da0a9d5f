"""The batched env as Stable-Baselines3 sees it: the truth is its own DummyVecEnv over single envs."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers import vector as wrappers
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from aether_env import AetherEnv, AetherGoalEnv, AetherGoalVectorEnv, AetherVectorEnv, Judgement, PoseGoal, Task
from policies.sb3 import SB3VecEnv
from tests.rooms import BoxRoom

ROWS, LIMIT = 3, 5


class Timed(Task):
    """Ends after a number of steps that is drawn at the start, which reset may give too; only its end has a score."""

    options = frozenset({"end"})

    def start(self, opening):
        drawn = int(opening.np_random.integers(1, 9))
        end = opening.options.get("end", drawn)
        return {"count": 0, "end": end}, {"end": end}

    def judge(self, state, moment):
        count = state["count"] + 1
        done = count == state["end"]
        score = {"score": count, "where": np.arange(2) + count} if done else {}
        info = {"flag": done, "moved": moment.moved} | score
        return state | {"count": count}, Judgement(reward=count + moment.moved, terminated=done, info=info)


def batched(rows=ROWS, limit=LIMIT, **settings) -> SB3VecEnv:
    settings = {"world": BoxRoom(8, 12), "task": Timed()} | settings
    return SB3VecEnv(AetherVectorEnv(rows, max_episode_steps=limit, autoreset_mode="same_step", **settings))


def dummy(rows=ROWS, limit=LIMIT, **settings) -> DummyVecEnv:
    settings = {"world": BoxRoom(8, 12), "task": Timed()} | settings
    return DummyVecEnv([lambda: TimeLimit(AetherEnv(**settings), limit)] * rows)


def assert_same(a, b, where=""):
    """The same types, shapes and bits."""
    assert isinstance(a, type(b)) or isinstance(b, type(a)), f"{where}: {type(a)} is not {type(b)}"  # OrderedDict
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, tuple | list):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, strict=True, err_msg=where)
    else:
        assert a == b, where


def walk(env: VecEnv, steps: int, seed: int) -> list[Any]:
    """Return what a reset and steps give, and what the last resets told."""
    env.action_space.seed(seed)
    results = [env.reset(), list(env.reset_infos)]
    for _ in range(steps):
        results += [env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)])), list(env.reset_infos)]
    return results


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(
    "form",
    [{}, {"obs_mode": "rgbd_uint8", "action_mode": "discrete"}, {"depth_format": "inverse_uint8", "task": "pose"}],
    ids=["timed", "discrete", "pose"],
)
def test_rows_are_what_single_envs_are_under_dummy_vec_env(form, seed):
    ours, truth = batched(**form), dummy(**form)
    assert ours.observation_space == truth.observation_space and ours.action_space == truth.action_space
    assert ours.seed(seed) == truth.seed(seed)
    results, expected = walk(ours, 25, seed), walk(truth, 25, seed)
    assert_same(results, expected)
    infos = [info for result in results[2::2] for info in result[3]]
    assert any(info["TimeLimit.truncated"] for info in infos) and any("terminal_observation" in info for info in infos)
    if "task" not in form:
        assert any("score" in info for info in infos), "the test shows nothing unless episodes end by themselves"


def test_seeds_and_options_are_used_once():
    ours, truth = batched(), dummy()
    for env in (ours, truth):
        env.seed(3)
        env.set_options([{"end": 2}, {"end": 1, "scene_seed": 7}, {}])
    first, second = ([env.reset(), env.reset_infos, env.step(np.zeros((3, 6), np.float32))] for env in (ours, truth))
    assert_same(first, second)
    assert first[2][2].tolist()[:2] == [False, True]
    assert_same(walk(ours, 3, 0), walk(truth, 3, 0))
    for env in (ours, truth):
        env.set_options({"scene_seed": 4})
        env.reset()
        assert [info["scene_seed"] for info in env.reset_infos] == [4, 4, 4]


def test_a_reset_that_fails_keeps_seeds_and_options_for_the_next_one():
    env, truth = batched(), dummy()
    env.seed(3)
    env.set_options([{}, {}, {"picture": 1}])
    with pytest.raises(ValueError, match="picture"):
        env.reset()
    env.set_options()
    truth.seed(3)
    assert_same(env.reset(), truth.reset())


def test_the_monitor_counts_episodes_by_their_rewards():
    env = VecMonitor(batched(), info_keywords=("moved",))
    env.seed(1)
    env.reset()
    env.action_space.seed(1)
    returns, lengths, count = np.zeros(ROWS, np.float32), np.zeros(ROWS, int), 0
    for _ in range(20):
        _, rewards, dones, infos = env.step(np.stack([env.action_space.sample() for _ in range(ROWS)]))
        returns, lengths = returns + rewards, lengths + 1
        for row in range(ROWS):
            assert ("episode" in infos[row]) == dones[row]
            if dones[row]:
                episode = infos[row]["episode"]
                assert (episode["r"], episode["l"]) == (returns[row], lengths[row])
                assert episode["moved"] == infos[row]["moved"]
                count += 1
        returns[dones], lengths[dones] = 0, 0
    assert env.episode_count == count > ROWS


def test_methods_and_attributes_are_those_of_the_batched_env():
    envs = AetherGoalVectorEnv(ROWS, BoxRoom(8, 12), autoreset_mode="same_step", render_mode="rgb_array")
    env = SB3VecEnv(envs)
    observation = env.reset()
    achieved, desired = observation["achieved_goal"], observation["desired_goal"]
    rewards = AetherGoalEnv(BoxRoom(8, 12)).compute_reward(achieved, desired, [{}] * ROWS)
    (said,) = env.env_method("compute_reward", achieved, desired, [{}] * ROWS, indices=[0])
    np.testing.assert_array_equal(said, rewards)
    assert env.env_method("compute_reward", desired[0], desired[0], {}, indices=0) == [0.0]
    assert env.get_attr("max_episode_steps") == [None] * ROWS and env.get_attr("num_envs", [0, 2]) == [ROWS] * 2
    assert env.has_attr("num_envs") and not env.has_attr("fps_of_mars")
    env.set_attr("max_episode_steps", 1)
    assert env.step(np.zeros((ROWS, 6), np.float32))[2].all()
    with pytest.raises(ValueError, match="indices"):
        env.set_attr("max_episode_steps", 2, indices=[0])
    assert env.env_is_wrapped(Monitor, [0, 1]) == [False, False]
    pictures = env.get_images()
    assert len(pictures) == ROWS and pictures[0].shape == (8, 24, 3)
    assert env.render().shape == (2 * 8, 2 * 24, 3)
    env.close()
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset()


def test_goal_tasks_need_no_goal_env():
    envs = AetherVectorEnv(2, BoxRoom(8, 12), task=PoseGoal(), autoreset_mode="same_step")
    assert set(SB3VecEnv(envs).reset()) == {"rgb", "depth", "goal"}


def test_an_env_that_is_wrapped_or_resets_in_another_way_is_refused():
    for mode in ("next_step", "disabled"):
        with pytest.raises(ValueError, match="autoreset_mode='same_step'"):
            SB3VecEnv(AetherVectorEnv(2, BoxRoom(8, 12), autoreset_mode=mode))
    inner = AetherVectorEnv(2, BoxRoom(8, 12), autoreset_mode="same_step")
    for wrong in (wrappers.RecordEpisodeStatistics(inner), SyncVectorEnv([lambda: AetherEnv(BoxRoom(8, 12))]), None):
        with pytest.raises(ValueError, match="without wrappers"):
            SB3VecEnv(wrong)


def test_an_agent_with_two_pictures_learns():
    env = batched(2, limit=4, world=BoxRoom(36, 36), task="pose", depth_format="inverse_uint8", action_mode="planar")
    agent = PPO("MultiInputPolicy", VecMonitor(env), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(16)
    assert agent.num_timesteps == 16 and len(agent.ep_info_buffer) >= 2
    assert any((value != before[name]).any() for name, value in agent.policy.state_dict().items())
