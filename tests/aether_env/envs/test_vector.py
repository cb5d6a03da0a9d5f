import inspect
import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers import vector as wrappers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import aether_env  # noqa: F401
from aether_env.camera import make_pose
from aether_env.envs.aether import AetherEnv
from aether_env.envs.keeping import snapshot
from aether_env.envs.tasks import Judgement, Task
from aether_env.envs.vector import AetherGoalVectorEnv, AetherVectorEnv
from tests.rooms import BoxRoom
from tests.same import assert_same

MODES = ["next_step", "same_step", "disabled"]
SIZE = (8, 12)
LIMIT = 5


class Timed(Task):
    """Ends after a number of steps that is drawn at the start; infos of every type, some of them rare."""

    def start(self, opening):
        end = int(opening.np_random.integers(1, 9))
        return {"count": 0, "end": end}, {"end": end, "first": np.array([end, 1.0])}

    def judge(self, state, moment):
        count = state["count"] + 1
        done = count == state["end"]
        info = {"moved": moment.moved, "small": np.float32(count / 3), "flag": np.bool_(done), "ends": [count]}
        # A batched info has the type that the first row's has.
        info["mixed"] = count if state["end"] % 2 else count / 2
        if done:
            info |= {"score": count, "nested": {"path": np.arange(3) * count}}
        return state | {"count": count}, Judgement(reward=count + moment.moved, terminated=done, info=info)


def everything(env: AetherVectorEnv) -> list[bytes]:
    """Return all that the rows are, of ended ones too."""
    return [snapshot(env.core, env._episodes, row, env._generators[row]) for row in range(env.num_envs)]


def make(num_envs=3, *, mode="disabled", world=None, task=None, limit=LIMIT, **settings) -> AetherVectorEnv:
    return AetherVectorEnv(
        num_envs,
        world or BoxRoom(*SIZE),
        task=task or Timed(),
        autoreset_mode=mode,
        max_episode_steps=limit,
        **settings,
    )


def single(*, world=None, task=None, limit=LIMIT, **settings) -> gym.Env:
    return TimeLimit(AetherEnv(world or BoxRoom(*SIZE), task=task or Timed(), **settings), limit)


def sync(num_envs=3, *, mode="disabled", **settings) -> SyncVectorEnv:
    """Gymnasium's own vector env over single envs: the truth here."""
    return SyncVectorEnv([lambda: single(**settings)] * num_envs, autoreset_mode=AutoresetMode[mode.upper()])


def actions_of(env, steps: int, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def walk(env, actions: Sequence[Any], *, seed=0, mode="disabled"):
    """Return what every reset and step gave; without autoreset, ended rows are reset before the next step."""
    results: list[tuple[Any, ...]] = [env.reset(seed=seed)]
    for action in actions:
        results.append(env.step(action))
        ended = results[-1][2] | results[-1][3]
        if mode == "disabled" and ended.any():
            results.append(env.reset(options={"reset_mask": ended}))
    return results


# The same as Gymnasium's vector env over single envs.


FORMS: list[dict[str, Any]] = [
    {"max_translation": 1.5, "frames_in_info": True, "on_collision": "end"},
    {"obs_mode": "rgbd_uint8", "action_mode": "discrete"},
    {"depth_format": "inverse_uint8", "action_mode": "absolute", "task": "pose"},
]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("form", FORMS, ids=["collisions", "discrete", "goal"])
@pytest.mark.parametrize("mode", MODES)
def test_rows_are_what_single_envs_are_under_gymnasiums_own_vector_env(mode, form, seed):
    ours, truth = make(mode=mode, **form), sync(mode=mode, **form)
    assert ours.observation_space == truth.observation_space and ours.action_space == truth.action_space
    assert ours.single_observation_space == truth.single_observation_space
    actions = actions_of(truth, 26, seed)
    results = walk(ours, actions, seed=seed, mode=mode)
    assert_same(results, walk(truth, actions, seed=seed, mode=mode))
    steps = [result for result in results if len(result) == 5]
    terminated, truncated = (np.array([step[index] for step in steps]) for index in (2, 3))
    assert truncated.any() and (terminated.any() or "task" in form), "the test shows nothing unless episodes end"
    assert ours.observation_space.contains(steps[-1][0])


def test_all_rows_may_end_in_the_same_step():
    for mode in MODES:
        ours, truth = (build(mode=mode, task="explore", limit=2) for build in (make, sync))
        actions = actions_of(truth, 7)
        results = walk(ours, actions, mode=mode)
        assert_same(results, walk(truth, actions, mode=mode))
        assert results[2][3].all()


def test_an_action_for_a_row_that_begins_anew_is_not_even_looked_at():
    env, truth = make(mode="next_step", task="explore", limit=1), sync(mode="next_step", task="explore", limit=1)
    action = np.full(env.action_space.shape, np.nan)
    results = []
    for each in (env, truth):
        each.reset(seed=0)
        each.step(np.zeros_like(action))
        results.append(each.step(action))
    assert_same(*results)
    assert results[0][1].tolist() == [0.0, 0.0, 0.0]


def test_one_row_is_a_vector_env_as_well():
    for mode in MODES:
        ours, truth = make(1, mode=mode), sync(1, mode=mode)
        actions = actions_of(truth, 12)
        assert_same(walk(ours, actions, mode=mode), walk(truth, actions, mode=mode))


# Gymnasium's wrappers around it.


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_count_right(mode):
    env = wrappers.RecordEpisodeStatistics(make(mode=mode))
    returns, lengths, ended = np.zeros(3), np.zeros(3, int), np.zeros(3, bool)
    expected = []
    env.reset(seed=0)
    for action in actions_of(env, 30):
        if mode == "disabled" and ended.any():
            env.reset(options={"reset_mask": ended.copy()})
        _, rewards, terminated, truncated, infos = env.step(action)
        counts = ~ended if mode == "next_step" else np.ones(3, bool)
        returns, lengths = returns + rewards, lengths + counts
        ended = terminated | truncated
        assert ("episode" in infos) == ended.any()
        if ended.any():
            np.testing.assert_array_equal(infos["_episode"], ended)
            np.testing.assert_array_equal(infos["episode"]["r"], np.where(ended, returns, 0))
            np.testing.assert_array_equal(infos["episode"]["l"], np.where(ended, lengths, 0))
        expected += list(zip(returns[ended].tolist(), lengths[ended].tolist(), strict=True))
        returns[ended], lengths[ended] = 0, 0
    assert len(expected) > 10
    assert list(zip(env.return_queue, env.length_queue, strict=True)) == expected


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "FlattenObservation": wrappers.FlattenObservation,
    "FilterObservation": lambda env: wrappers.FilterObservation(env, ["depth"]),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
    "ClipReward": lambda env: wrappers.ClipReward(env, 1.0, 2.0),
    "NormalizeReward": wrappers.NormalizeReward,
    "ClipAction": wrappers.ClipAction,
    "RescaleAction": lambda env: wrappers.RescaleAction(env, np.float32(-2), np.float32(2)),
    "DictInfoToList": wrappers.DictInfoToList,
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(env, (SIZE[1], SIZE[0] * 4)),
    "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.float32),
    "NormalizeObservation": wrappers.NormalizeObservation,
}
OF_ONE_PICTURE = ("ReshapeObservation", "DtypeObservation", "NormalizeObservation")


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("mode", MODES)
def test_wrappers_show_what_they_show_around_gymnasiums_own_vector_env(mode, name):
    form = {"obs_mode": "rgbd_uint8"} if name in OF_ONE_PICTURE else {}
    truth, ours = sync(2, mode=mode, **form), make(2, mode=mode, **form)
    try:
        truth = WRAPPERS[name](truth)
    except ValueError as error:
        assert mode != "next_step" and "autoreset_mode" in str(error)
        with pytest.raises(ValueError, match="autoreset_mode"):
            WRAPPERS[name](ours)
        return
    ours = WRAPPERS[name](ours)
    assert ours.observation_space == truth.observation_space and ours.action_space == truth.action_space
    actions = actions_of(truth, 8)
    assert_same(walk(ours, actions, mode=mode), walk(truth, actions, mode=mode))


def test_videos_show_all_rows(tmp_path):
    recorded = []
    for build in (make, sync):
        env = build(2, mode="next_step", world=BoxRoom(16, 24), render_mode="rgb_array")
        frames = env.reset(seed=0)[0]["rgb"]
        pictures = env.render()
        assert isinstance(pictures, tuple) and len(pictures) == 2
        np.testing.assert_array_equal(np.stack(pictures)[:, :, :24], frames)
        folder = tmp_path / build.__name__
        env = wrappers.RecordVideo(env, str(folder), episode_trigger=lambda episode: episode == 0)
        env.reset(seed=0)
        for action in actions_of(env, 3):
            env.step(action)
        recorded.append([frame.copy() for frame in env.recorded_frames])
        env.close()
        assert [file.name for file in folder.iterdir()] == ["rl-video-episode-0.mp4"]
    assert len(recorded[0]) == 4
    assert_same(*recorded)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", [{"frames_in_info": True, "task": "image"}, {"obs_mode": "rgbd_uint8"}])
def test_what_is_handed_out_belongs_to_the_caller(form, mode):
    def clear(value):
        if isinstance(value, np.ndarray) and value.dtype != object:
            value[...] = 0
        elif isinstance(value, np.ndarray | tuple | dict):
            for each in value.values() if isinstance(value, dict) else value:
                clear(each)

    env, twin = (make(mode=mode, limit=2, render_mode="rgb_array", **form) for _ in range(2))
    results = [env.reset(seed=0), twin.reset(seed=0)]
    for action in actions_of(env, 6):
        clear(results[0])
        clear(env.render())
        assert_same(env.render(), twin.render())
        assert everything(env) == everything(twin)
        if mode == "disabled" and np.any(results[1][2:4]):
            assert_same(env.reset(), twin.reset())
        results = [each.step(action) for each in (env, twin)]
        assert_same(*results)


# One call of the world a step.


class Counting(BoxRoom):
    def __init__(self):
        super().__init__(*SIZE)
        self.calls: list[tuple[str, int]] = []

    def start(self, starts_B, seeds_B):
        self.calls.append(("start", len(starts_B)))
        return super().start(starts_B, seeds_B)

    def advance(self, state, world_from_camera_BT44):
        self.calls.append(("advance", len(state)))
        return super().advance(state, world_from_camera_BT44)


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("mode", MODES)
def test_the_world_is_called_once_a_step_and_once_a_reset(mode, rows):
    world = Counting()
    env = make(rows, mode=mode, world=world)
    env.reset(seed=0)
    assert world.calls == [("start", rows)]
    ended = np.zeros(rows, bool)
    for action in actions_of(env, 10):
        if mode == "disabled" and ended.any():
            world.calls.clear()
            env.reset(options={"reset_mask": ended})
            assert world.calls == [("start", ended.sum())]
        world.calls.clear()
        waiting = int(ended.sum())
        _, _, terminated, truncated, _ = env.step(action)
        ended = terminated | truncated
        expected = [("advance", rows - waiting if mode == "next_step" else rows)]
        expected += [("start", {"next_step": waiting, "same_step": int(ended.sum()), "disabled": 0}[mode])]
        assert world.calls == [(name, count) for name, count in expected if count]


class Looking(Task):
    """Looks from as far as an option says, or not at all."""

    options = frozenset({"far"})

    def look_from(self, opening):
        return make_pose(np.eye(3), [0, 0, opening.options["far"]]) if "far" in opening.options else None

    def start(self, opening):
        seen = opening.seen
        return None, {} if seen is None else {"at": seen.world_from_camera[0, -1, :3, 3], "depth": seen.depth.mean()}


def test_rows_that_look_around_at_reset_do_it_together():
    world, alone = Counting(), AetherEnv(BoxRoom(*SIZE), task=Looking())
    env = make(4, world=world, task=Looking())
    each = [{"far": 1.1}, {}, {"far": 0.2}, {"far": 0.6}]  # 4, 0, 1 and 2 steps of at most 0.3
    _, infos = env.reset(seed=0, options={"each": each})
    assert world.calls == [("start", 4), ("advance", 3), ("advance", 2), ("advance", 1), ("advance", 1)]
    assert infos["_at"].tolist() == [True, False, True, True]
    for row, options in enumerate(each):
        _, info = alone.reset(seed=row, options=options)
        if options:
            np.testing.assert_allclose(infos["at"][row], [0, 0, options["far"]], atol=1e-12)
            np.testing.assert_array_equal(info["at"], infos["at"][row])
            assert info["depth"] == infos["depth"][row]


# Resetting some rows.


def test_resetting_some_rows_leaves_the_others_alone():
    env, untouched = make(limit=None, task="explore"), make(limit=None, task="explore")
    for each in (env, untouched):
        each.reset(seed=5)
    actions = actions_of(env, 6)
    others = [0, 2]
    last = [each.step(actions[0]) for each in (env, untouched)][0][0]
    for index, action in enumerate(actions[1:]):
        options = {"reset_mask": np.array([False, True, False]), "scene_seed": 3}
        kept = dict(options)
        observations, infos = env.reset(seed=[1, index, 2], options=options)
        assert options.keys() == kept.keys() and all(options[key] is kept[key] for key in kept)
        assert options["reset_mask"].tolist() == [False, True, False]
        begun = AetherEnv(BoxRoom(*SIZE)).reset(seed=index, options={"scene_seed": 3})
        for key in last:
            np.testing.assert_array_equal(observations[key][others], last[key][others])
            np.testing.assert_array_equal(observations[key][1], begun[0][key])
        assert all(infos[name].tolist() == [False, True, False] for name in infos if name.startswith("_"))
        assert infos["scene_seed"][1] == 3 and infos["step"][1] == 0
        (last, *_, told), (expected, *_, truth) = env.step(action), untouched.step(action)
        for key in last:
            np.testing.assert_array_equal(last[key][others], expected[key][others])
        for name in told:
            np.testing.assert_array_equal(told[name][others], truth[name][others])
        assert told["step"].tolist() == [index + 2, 1, index + 2]


def test_a_mask_of_all_rows_resets_all_of_them_also_at_first():
    mask = {"reset_mask": np.ones(3, bool)}
    assert_same(make().reset(seed=4, options=mask), make().reset(seed=4))


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros(3, bool),
        np.ones(2, bool),
        np.ones((3, 1), bool),
        np.array([1, 0, 1]),
        np.array([1.0, 0, 1]),
        np.array([True, None, False]),
        True,
        "all",
        [[True], [True, False]],
    ],
)
def test_a_bad_mask_is_named_and_changes_nothing(mask):
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=1)
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(seed=9, options={"reset_mask": mask})
    action = actions_of(env, 1)[0]
    assert_same(env.step(action), twin.step(action))


def test_some_rows_cannot_be_reset_before_all_were():
    env = make()
    with pytest.raises(gym.error.ResetNeeded):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(actions_of(env, 1)[0])
    with pytest.raises(gym.error.ResetNeeded):
        env.snapshot(0)


def test_a_row_that_ended_waits_for_its_reset():
    env, twin = make(limit=2, task="explore"), make(limit=2, task="explore")
    actions = actions_of(env, 4)
    for each in (env, twin):
        each.reset(seed=3)
        each.step(actions[0])
        each.reset(options={"reset_mask": np.array([True, False, False])})
        assert each.step(actions[1])[3].tolist() == [False, True, True]
    for mask in ([False, True, False], [False, False, True]):
        for _ in range(2):
            with pytest.raises(gym.error.ResetNeeded, match="rows .*2.* have ended"):
                env.step(actions[2])
        for each in (env, twin):
            results = each.reset(options={"reset_mask": np.array(mask)})
    assert results[1]["_step"].tolist() == [False, False, True]
    assert_same(env.step(actions[3]), twin.step(actions[3]))


def test_each_row_may_have_options_of_its_own():
    env = make(task="explore")
    options = {"scene_seed": 5, "each": [{}, {"scene_seed": 6}, {"scene_seed": None}]}
    observations, infos = env.reset(seed=[3, 3, 3], options=options)
    assert infos["scene_seed"][:2].tolist() == [5, 6]
    for row, given_options in enumerate([{"scene_seed": 5}, {"scene_seed": 6}, {}]):
        expected, info = AetherEnv(BoxRoom(*SIZE)).reset(seed=3, options=given_options)
        assert infos["scene_seed"][row] == info["scene_seed"]
        np.testing.assert_array_equal(observations["rgb"][row], expected["rgb"])
    assert options == {"scene_seed": 5, "each": [{}, {"scene_seed": 6}, {"scene_seed": None}]}
    mask = np.array([False, True, False])
    _, infos = env.reset(options={"scene_seed": 5, "reset_mask": mask, "each": [{}, {"scene_seed": 8}, {}]})
    assert infos["scene_seed"].tolist() == [0, 8, 0] and infos["_scene_seed"].tolist() == mask.tolist()


@pytest.mark.parametrize("each", [{}, [{}], [{}, {}, None], "abc", 3, [{}, {}, {"picture": 1}]])
def test_bad_options_of_rows_are_named(each):
    env = make()
    with pytest.raises(ValueError, match="each|picture"):
        env.reset(options={"each": each})


# Seeds.


@pytest.mark.parametrize(
    "seed, of_rows",
    [(11, [11, 12, 13]), (np.int64(11), [11, 12, 13]), ([4, 0, 4], [4, 0, 4]), (np.array([4, 0, 4]), [4, 0, 4])],
)
def test_rows_with_seeds_go_through_the_episodes_of_single_envs_with_these_seeds(seed, of_rows):
    env = make()
    episodes = [env.reset(seed=seed), env.step(np.zeros((3, 6))), env.reset(), env.reset(options={"scene_seed": 1})]
    assert env.np_random_seed == tuple(of_rows)
    for row, number in enumerate(of_rows):
        alone = single()
        expected = [alone.reset(seed=number), alone.step(np.zeros(6)), alone.reset()]
        expected.append(alone.reset(options={"scene_seed": 1}))
        for (observations, *_, infos), (observation, *_, info) in zip(episodes, expected, strict=True):
            for key, value in observation.items():
                np.testing.assert_array_equal(observations[key][row], value)
            assert infos["scene_seed"][row] == info["scene_seed"]
        assert env.np_random[row].bit_generator.state == alone.unwrapped.np_random.bit_generator.state


def test_a_row_without_a_seed_goes_on_with_its_own_random_numbers():
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0)
    partly, infos = env.reset(seed=[None, 8, None])
    _, expected = twin.reset()
    _, new = make(1).reset(seed=8)
    assert infos["scene_seed"].tolist() == [expected["scene_seed"][0], new["scene_seed"][0], expected["scene_seed"][2]]


@pytest.mark.parametrize(
    "seed",
    [
        -1,
        1.0,
        True,
        "1",
        {1, 2, 3},
        [1, 2],
        [1, 2, -3],
        [1, 2, 3.0],
        [1, 2, True],
        [[1, 2, 3]],
        np.ones(3),
        np.array(1.5),
    ],
)
def test_a_bad_seed_is_named_and_changes_nothing(seed):
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=1)
    with pytest.raises(ValueError, match="seed"):
        env.reset(seed=seed)
    assert_same(env.reset(), twin.reset())


def test_without_a_seed_every_env_is_another():
    numbers = {int(make(1).reset()[1]["scene_seed"][0]) for _ in range(8)}
    assert len(numbers) > 1


# Snapshots and branches.


def test_a_row_goes_on_wherever_its_snapshot_is_restored():
    env, other = make(mode="next_step"), make(2, mode="next_step")
    actions = actions_of(env, 14)
    for each, seed in ((env, 3), (other, 40)):
        each.reset(seed=seed)
    for action in actions[:2]:
        before, _, terminated, *_ = env.step(action)
        assert not terminated[1], "the snapshot has to be of an episode that goes on"
    data = env.snapshot(1)
    shown = env.restore(0, data)
    for key in shown:
        np.testing.assert_array_equal(shown[key][0], before[key][1])
        np.testing.assert_array_equal(shown[key][1:], before[key][1:])
    other.step(actions[0][:2])
    other.restore(1, data)
    alone = AetherEnv(BoxRoom(*SIZE), task=Timed())
    observation, info = alone.restore(data)
    assert info["step"] == 2
    np.testing.assert_array_equal(observation["rgb"], before["rgb"][1])

    begun = False
    for action in actions[2:]:
        action = action[[1, 1, 2]]
        ours, *rest, infos = env.step(action)
        theirs, *others, _ = other.step(action[:2])
        for key in ours:
            np.testing.assert_array_equal(ours[key][0], ours[key][1])
            np.testing.assert_array_equal(ours[key][0], theirs[key][1])
        for one, two in zip(rest, others, strict=True):
            assert one[0] == one[1] == two[1]
        if begun:  # autoreset: the random numbers came along, so the next episode is the same as well
            observation, info = alone.reset()
        else:
            observation, _, terminated, _, info = alone.step(action[0])
        begun = bool(rest[1][1] | rest[2][1])
        np.testing.assert_array_equal(observation["rgb"], ours["rgb"][0])
        assert info["step"] == infos["step"][0]
    assert infos["step"][1] != len(actions), "the test shows nothing unless an episode ended"


def test_a_single_env_hands_its_episode_to_a_row():
    alone, env = AetherEnv(BoxRoom(*SIZE)), make(task="explore", limit=4, mode="same_step")
    alone.reset(seed=9)
    env.reset(seed=0)
    action = actions_of(alone, 1)[0]
    for _ in range(3):
        alone.step(action)
    env.restore(2, alone.snapshot())
    observations, _, _, truncated, infos = env.step(np.stack([action] * 3))
    assert truncated.tolist() == [False, False, True], "the count of steps comes along"
    observation = alone.step(action)[0]
    np.testing.assert_array_equal(infos["final_obs"][2]["rgb"], observation["rgb"])
    np.testing.assert_array_equal(observations["rgb"][2], alone.reset()[0]["rgb"])


def test_restoring_lets_an_ended_row_go_on():
    env = make(limit=2, task="explore")
    env.reset(seed=0)
    action = np.zeros((3, 6))
    env.step(action)
    saved = [env.snapshot(row) for row in range(3)]
    env.step(action)
    for row in range(3):
        with pytest.raises(gym.error.ResetNeeded, match=str(row)):
            env.step(action)
        env.restore(row, saved[row])
    assert env.step(action)[3].all()
    assert env.np_random_seed == (-1, -1, -1), "a generator from a snapshot has no seed that is known"


def test_what_is_no_snapshot_of_this_env_is_refused_and_changes_nothing():
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0)
    data = env.snapshot(0)
    small = AetherEnv(BoxRoom(4, 6), task=Timed())
    small.reset(seed=0)
    explorer = AetherEnv(BoxRoom(*SIZE))
    explorer.reset(seed=0)
    for bad in (b"", data[:-1], data[:50] + b"x" + data[51:], None, small.snapshot(), explorer.snapshot()):
        with pytest.raises(ValueError, match="snapshot"):
            env.restore(0, bad)
    for row in (-1, 3, True, 0.0, None, "0", np.array([0])):
        for call in (env.snapshot, lambda row: env.restore(row, data), lambda row: env.branch(row, 2)):
            with pytest.raises(ValueError, match="row"):
                call(row)
    action = actions_of(env, 1)[0]
    assert_same(env.step(action), twin.step(action))


@pytest.mark.parametrize("reseed", [False, True])
def test_branches_go_on_from_a_row_and_leave_it_alone(reseed):
    env, twin = make(mode="same_step"), make(mode="same_step")
    for each in (env, twin):
        each.reset(seed=6)
    actions = actions_of(env, 6)
    before, *_ = [each.step(actions[0]) for each in (env, twin)][0]
    branches = env.branch(1, 4, reseed=reseed)
    assert isinstance(branches, AetherVectorEnv) and branches.num_envs == 4
    assert branches.autoreset_mode == branches.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    shown = branches.step(np.stack([actions[1][1]] * 4))[0]
    pictures = {picture.tobytes() for picture in shown["rgb"]}
    assert len(pictures) == (4 if reseed else 1)
    assert len({branches.snapshot(row) for row in range(4)}) == (4 if reseed else 1)
    branches.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        branches.reset()
    results = [each.step(actions[1]) for each in (env, twin)]
    assert_same(*results)
    assert (shown["rgb"][0] == results[0][0]["rgb"][1]).all() == (not reseed)
    for action in actions[2:]:
        assert_same(env.step(action), twin.step(action))


def test_branches_of_a_single_env_are_the_single_env():
    alone = AetherEnv(BoxRoom(*SIZE), task=Timed())
    alone.reset(seed=1)
    branches = alone.branch(3)
    actions = actions_of(branches, 2)
    for row in range(3):
        data = alone.snapshot()
        expected = alone.step(actions[0][row])
        alone.restore(data)
        np.testing.assert_array_equal(expected[0]["rgb"], make_copy(branches).step(actions[0])[0]["rgb"][row])
    for count in (0, -1, True, 1.5, None):
        with pytest.raises(ValueError, match="n must be"):
            alone.branch(count)
    alone.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        branches.step(actions[0])


def make_copy(env: AetherVectorEnv) -> AetherVectorEnv:
    """Return an env that is where another one is, by snapshots."""
    copy = make(env.num_envs, limit=env.max_episode_steps)
    copy.reset(seed=0)
    for row in range(env.num_envs):
        copy.restore(row, env.snapshot(row))
    return copy


def test_a_branch_outlives_episodes_that_end_and_reset():
    alone = AetherEnv(BoxRoom(*SIZE), task=Timed())
    alone.reset(seed=1)
    alone.step(np.zeros(6))
    branches = alone.branch(2)
    while not (ended := branches.step(np.zeros((2, 6)))[2]).any():
        alone.step(np.zeros(6))
    assert ended.all()
    with pytest.raises(gym.error.ResetNeeded):
        branches.step(np.zeros((2, 6)))
    observations, _ = branches.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(observations["rgb"][0], alone.reset()[0]["rgb"])


# Failures.


class Fuse:
    """Raises at a chosen call."""

    def __init__(self, error: type[BaseException]):
        self.error, self.left = error, -1

    def burn(self):
        self.left -= 1
        if self.left == 0:
            raise self.error


def fragile(fuse: Fuse, mode: str) -> AetherVectorEnv:
    """An env whose world and task may fail at every single call, also after drawing random numbers."""

    class World(BoxRoom):
        def start(self, starts_B, seeds_B):
            fuse.burn()
            return super().start(starts_B, seeds_B)

        def advance(self, state, world_from_camera_BT44):
            fuse.burn()
            return super().advance(state, world_from_camera_BT44)

        def join(self, states):
            fuse.burn()
            return super().join(states)

        def describe(self, state):
            fuse.burn()
            return super().describe(state)

    class Brittle(Timed):
        def start(self, opening):
            begun = super().start(opening)
            fuse.burn()
            return begun

        def observe(self, state, frames):
            fuse.burn()
            return super().observe(state, frames)

        def judge(self, state, moment):
            judged = super().judge(state, moment)
            fuse.burn()
            return judged

    return make(mode=mode, world=World(*SIZE), task=Brittle())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", MODES)
def test_wherever_a_step_or_a_reset_fails_nothing_has_changed(mode, error):
    fuse = Fuse(error)
    env, twin = fragile(fuse, mode), make(mode=mode)
    failures = 0

    def insist(call):
        """Let the call fail at the first thing that it calls, at the second and so on, until nothing is left."""
        nonlocal failures
        for number in range(1, 100):
            fuse.left = number
            try:
                return call()
            except error:
                failures += 1
            finally:
                fuse.left = -1

    def state():
        return everything(env), env._ended.tolist()

    results = [insist(lambda: env.reset(seed=3))]
    expected = [twin.reset(seed=3)]
    for action in actions_of(env, 9):
        before = state()
        fuse.left = 2
        with pytest.raises(error):
            env.reset(seed=5)
        fuse.left = -1
        assert state() == before
        results.append(insist(lambda action=action: env.step(action)))
        expected.append(twin.step(action))
        ended = expected[-1][2] | expected[-1][3]
        if mode == "disabled" and ended.any():
            results.append(insist(lambda ended=ended: env.reset(options={"reset_mask": ended})))
            expected.append(twin.reset(options={"reset_mask": ended}))
    assert_same(results, expected)
    assert failures > 90


@pytest.mark.parametrize("action", [np.full((3, 6), np.nan), np.zeros((2, 6)), np.zeros((3, 5)), None, 0.0, "abc", {}])
def test_a_bad_action_is_named_and_changes_nothing(action):
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    good = actions_of(env, 1)[0]
    one_bad = good.copy()
    one_bad[1, 3] = np.inf
    with pytest.raises(ValueError, match="action"):
        env.step(one_bad)
    assert_same(env.step(good), twin.step(good))


def test_bad_actions_of_structured_spaces_are_named():
    class Named:
        space = gym.spaces.Dict({"turn": gym.spaces.Discrete(3), "go": gym.spaces.Box(0, 1, (1,))})

        def target(self, action, world_from_camera_44):
            pose = world_from_camera_44.copy()
            pose[2, 3] += 0.1 * float(action["go"][0])
            return pose

    env = make(2, action_mode=Named())
    env.reset(seed=0)
    good = {"turn": np.array([0, 1]), "go": np.array([[0.0], [1.0]])}
    for bad in (np.zeros((2, 6)), {"turn": [0, 1]}, {"turn": 3, "go": 4}, [], good | {"go": np.zeros((1, 1))}):
        with pytest.raises(ValueError, match="actions"):
            env.step(bad)
    *_, infos = env.step(good)
    np.testing.assert_allclose(infos["world_from_camera"][:, 2, 3], [0.0, 0.1], atol=1e-12)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.just(object)
    | st.builds(object)
    | npst.arrays(
        st.sampled_from(["?", "i1", "i8", "u1", "f4", "c16", "O", "U2"]), npst.array_shapes(min_dims=0, max_side=3)
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=5,
)
PICTURE = np.full((16, 24, 3), 90, np.uint8)
DOCUMENTED = (ValueError, gym.error.Error)


def rows_of(value, count=2):
    return st.lists(value, min_size=count, max_size=count)


OPTION = st.dictionaries(
    st.sampled_from(["scene_seed", "image", "depth", "intrinsics", "goal_pose", "goal_image", "bogus", "each"]),
    JUNK | st.just(PICTURE) | st.integers(0, 9) | st.just(np.eye(4)) | st.just(np.ones((16, 24), np.float32)),
    max_size=3,
)
MASKS = JUNK | rows_of(st.booleans()) | rows_of(st.booleans()).map(np.array)
SEEDS = JUNK | st.integers(0, 2**40) | rows_of(st.none() | st.integers(0, 2**40)) | rows_of(JUNK)
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def assert_usable(env: AetherVectorEnv, call: Callable[[], Any]) -> None:
    """A call raises only documented errors and changes nothing then; the env goes on."""
    before = [env.snapshot(row) for row in range(env.num_envs)]
    try:
        call()
    except DOCUMENTED:
        assert [env.snapshot(row) for row in range(env.num_envs)] == before
    observations, *_ = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
    assert env.observation_space.contains(observations)


@pytest.fixture(scope="module")
def dreams() -> AetherVectorEnv:
    env = make(2, world=BoxRoom(16, 24, needs_picture=True), task="image", limit=None)
    env.reset(seed=0, options={"image": PICTURE})
    return env


@QUICK
@given(seed=SEEDS, options=st.one_of(JUNK, OPTION), mask=st.none() | MASKS)
def test_whatever_reset_is_given_the_env_stays_usable(dreams, seed, options, mask):
    if isinstance(options, dict) and mask is not None:
        options = options | {"reset_mask": mask}
    assert_usable(dreams, lambda: dreams.reset(seed=seed, options=options))
    assert_usable(dreams, lambda: dreams.reset(options={"image": PICTURE, "reset_mask": mask}))
    assert_usable(dreams, lambda: dreams.reset(seed=seed, options={"image": PICTURE}))


@QUICK
@given(options=rows_of(st.one_of(JUNK, OPTION)))
def test_whatever_options_rows_are_given_the_env_stays_usable(dreams, options):
    assert_usable(dreams, lambda: dreams.reset(options={"image": PICTURE, "each": options}))


@QUICK
@given(
    actions=JUNK
    | rows_of(JUNK)
    | npst.arrays(st.sampled_from(["f4", "f8", "i8"]), (2, 6))
    | rows_of(npst.arrays("f8", 6, elements=st.floats(-1e300, 1e300)))
)
def test_whatever_actions_are_given_the_env_stays_usable(dreams, actions):
    assert_usable(dreams, lambda: dreams.step(actions))


ARGUMENTS = """num_envs world max_episode_steps autoreset_mode render_mode model height width fps frames_per_step
horizontal_fov max_translation max_rotation far near obs_mode depth_format frames_in_info task action_mode on_collision
camera_radius split device dtype rows_at_once""".split()


@QUICK
@given(name=st.sampled_from(ARGUMENTS), value=JUNK | st.floats(0, 3) | st.integers(1, 4))
def test_whatever_argument_is_given_it_is_named_or_used(name, value):
    # As many rows as memory holds may be asked for: that is no mistake.
    if name == "num_envs" and isinstance(value, int | np.integer) and value > 4:
        value = 4
    arguments = {"num_envs": 2, "world": BoxRoom(4, 6), **{name: value}}
    try:
        env = AetherVectorEnv(**arguments)
    except DOCUMENTED as error:
        assert name in str(error)
        return
    env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape))


@pytest.mark.parametrize(
    "argument",
    [
        {"far": "100"},
        {"far": 0.1, "near": 0.2},
        {"camera_radius": 1j},
        {"frames_in_info": np.array([True, False])},
        {"render_mode": np.array(["rgb_array", "human"])},
        {"obs_mode": np.array(["rgbd", "rgbd"])},
        {"world": BoxRoom},
        {"max_translation": "1", "action_mode": SimpleNamespace(space=gym.spaces.Discrete(2), target=None)},
        {"num_envs": 0},
        {"num_envs": True},
        {"max_episode_steps": 0},
        {"autoreset_mode": "never"},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_bad_arguments_are_named(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        AetherVectorEnv(**{"num_envs": 2, "world": BoxRoom(*SIZE), **argument})


@pytest.mark.parametrize("scene_seed", [2**63, -1, True, 1.0, "3"])
def test_a_bad_scene_is_named(scene_seed):
    with pytest.raises(ValueError, match="scene_seed"):
        make().reset(options={"scene_seed": scene_seed})
    make().reset(options={"scene_seed": 2**63 - 1})


@pytest.mark.parametrize(
    "world, argument",
    [("dream", {"model": 3}), ("dream", {"device": "mars"}), ("dream", {"rows_at_once": 0}), ("sim", {"split": []})]
    + [("sim", {"split": "all"}), ("sim", {"device": "mars"}), ("sim", {"device": 1.5})],
)
def test_bad_arguments_for_the_worlds_of_the_package_are_named(world, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        AetherVectorEnv(2, world, **argument)


@pytest.mark.parametrize(
    "world, arguments",
    [
        ("dream", {"split": "train"}),
        ("sim", {"model": "mini", "dtype": "float32", "rows_at_once": 16}),
        (
            BoxRoom(*SIZE),
            {"height": 8, "width": 12, "fps": 12.0, "frames_per_step": 4, "model": "mini", "split": "train"}
            | {"device": "cpu", "dtype": "float32", "rows_at_once": 16},
        ),
    ],
    ids=["dream", "sim", "object"],
)
def test_settings_that_a_world_has_not_are_refused_and_not_ignored(world, arguments):
    for name, value in arguments.items():
        for make_env in (AetherEnv, AetherVectorEnv):
            with pytest.raises(ValueError, match=f"{name} must be left out"):
                make_env(world=world, **{name: value})


def test_the_signature_names_every_setting_and_a_wrong_name_is_met_with_the_right_one():
    for made in (AetherEnv, AetherVectorEnv, AetherGoalVectorEnv):
        assert {"world", "task", "far", "rows_at_once"} <= set(inspect.signature(made).parameters)
        assert "goal_keys" not in inspect.signature(made).parameters
        with pytest.raises(TypeError, match=f"{made.__name__} has no argument 'frame_per_step'.*frames_per_step"):
            made(frame_per_step=4)


def test_an_unknown_argument_is_a_type_error():
    for name in ("frame_per_step", "goal_keys", "num_env"):
        with pytest.raises(TypeError, match=name):
            AetherVectorEnv(2, BoxRoom(*SIZE), **{name: 1})


# What Gymnasium asks of a vector env.


def test_metadata_belong_to_the_env():
    kept = dict(AetherVectorEnv.metadata)
    for name, mode in zip(MODES, AutoresetMode, strict=True):
        for given_mode in (name, name.upper(), mode, mode.value):
            env = make(mode=given_mode, world=BoxRoom(4, 6, fps=8.0))
            assert env.metadata["autoreset_mode"] is mode and env.autoreset_mode is mode
            assert env.metadata["render_fps"] == 2.0 and env.metadata["render_modes"] == ["rgb_array"]
    assert AetherVectorEnv.metadata == kept and "autoreset_mode" not in kept


def test_pictures_are_a_tuple_of_one_a_row():
    env = make(mode="next_step", render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    alone = [AetherEnv(BoxRoom(*SIZE), render_mode="rgb_array") for _ in range(3)]
    for row, each in enumerate(alone):
        each.reset(seed=row)
    assert_same(env.render(), tuple(each.render() for each in alone))
    action = np.zeros((3, 6), np.float32)
    env.step(action)
    for each in alone:
        each.step(action[0])
    assert_same(env.render(), tuple(each.render() for each in alone))
    with pytest.warns(UserWarning, match="render_mode"):
        assert make().render() is None


@pytest.mark.parametrize("world", [BoxRoom(*SIZE), "sim"], ids=["ours", "own"])
def test_close_may_be_called_twice_and_ends_the_env(world):
    size = {"height": 8, "width": 12} if world == "sim" else {}
    env = AetherVectorEnv(2, world, **size, render_mode="rgb_array")
    if world != "sim":
        env.reset(seed=0)
    for _ in range(2):
        env.close()
    assert env.closed
    steps = [env.reset, env.render, lambda: env.step(np.zeros((2, 6)))]
    for call in (*steps, lambda: env.snapshot(0), lambda: env.restore(0, b""), lambda: env.branch(0, 2)):
        with pytest.raises(gym.error.ClosedEnvironmentError):
            call()
    assert getattr(world, "closed", 0) == 0, "a world of one's own is left open"


def test_the_registered_ids_make_it_and_their_specs_survive():
    for name in ("Aether-v0", "AetherSim-v0", "AetherGoal-v0", "AetherSimGoal-v0"):
        env = gym.make_vec(name, num_envs=2, world=BoxRoom(*SIZE), autoreset_mode="same_step")
        assert isinstance(env, AetherGoalVectorEnv if "Goal" in name else AetherVectorEnv)
        assert env.max_episode_steps == 200 and env.autoreset_mode == AutoresetMode.SAME_STEP
        assert name in repr(env)
        assert gym.make_vec(name, world=BoxRoom(*SIZE), max_episode_steps=7).max_episode_steps == 7
        spec = gym.spec(name)
        assert spec.vector_entry_point is not None
        assert pickle.loads(pickle.dumps(spec)) == spec
        assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec
        again = gym.make_vec(pickle.loads(pickle.dumps(spec)), num_envs=3, world=BoxRoom(*SIZE))
        assert again.num_envs == 3


@pytest.mark.parametrize(
    "way",
    [
        {"vectorization_mode": "sync"},
        pytest.param(
            {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}},
            marks=pytest.mark.slow,  # each process imports MuJoCo and PyTorch anew
        ),
    ],
    ids=["sync", "async"],
)
def test_all_ways_to_vectorise_show_the_same_frames(way):
    size = {"height": 8, "width": 12, "frames_per_step": 1, "max_episode_steps": 3}
    results = []
    for how in ({}, way):
        env = gym.make_vec("AetherSim-v0", num_envs=2, **size, **how)
        results.append([env.reset(seed=4), *(env.step(action) for action in actions_of(env, 1))])
        env.close()
    assert_same(*results)


def test_a_row_that_has_ended_has_nothing_to_go_on_with():
    env = AetherVectorEnv(2, world=BoxRoom(8, 12), max_episode_steps=1, autoreset_mode="disabled")
    env.reset(seed=0)
    env.step(np.zeros((2, 6)))
    for call in (lambda: env.snapshot(0), lambda: env.branch(1, 2)):
        with pytest.raises(gym.error.ResetNeeded, match="has ended"):
            call()
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.branch(0, 2).num_envs == 2 and env.snapshot(0)


@pytest.mark.parametrize("copied", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"])
def test_copies_go_on_the_same_and_leave_the_env_alone(copied):
    env = AetherVectorEnv(2, "sim", height=8, width=12, frames_per_step=1, max_episode_steps=3)
    env.reset(seed=3)
    actions = list(actions_of(env, 4))
    env.step(actions[0])
    twin = copied(env)
    told = [twin.step(action) for action in actions[1:]]
    twin.close()
    assert_same(told, [env.step(action) for action in actions[1:]])
    env.close()
