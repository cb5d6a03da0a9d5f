import json
import math
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_with_gymnasium
from PIL import Image
from stable_baselines3.common.env_checker import check_env as check_with_sb3

import aether_env
from aether_env.envs import starts
from aether_env.envs.aether import AetherEnv
from aether_env.envs.starts import write_start
from aether_env.envs.tasks import Judgement, Task
from aether_env.world_model.promise import Start
from tests.rooms import HALF_SIZE, BoxRoom
from tests.same import assert_same

FORWARD = np.array([0, 0, 1, 0, 0, 0], np.float32)
STILL = np.zeros(6, np.float32)


@pytest.fixture
def env() -> AetherEnv:
    return AetherEnv(BoxRoom())


@pytest.fixture
def dream(tmp_path, monkeypatch) -> AetherEnv:
    """A dream-like world with three bundled pictures, numbered by their colour."""
    for number in range(3):
        write_start(
            f"start{number}",
            Start(
                rgb=np.full((96, 128, 3), number, np.uint8),
                depth=np.full((96, 128), 2.0, np.float32),
                intrinsics=np.array([[100.0, 0, 64], [0, 100, 48], [0, 0, 1]]),
                scene_seed=number,
            ),
            tmp_path,
        )
    monkeypatch.setattr(starts, "FOLDER", tmp_path)
    return AetherEnv(BoxRoom(needs_picture=True))


def warnings_of(check, env) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env)
    return [str(warning.message) for warning in caught]


FORMS = [{}, {"depth_format": "inverse_uint8"}, {"obs_mode": "rgbd_uint8"}]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("needs_picture", [False, True])
def test_gymnasium_has_nothing_to_say(form, needs_picture, dream):
    env = gym.make("Aether-v0", world=BoxRoom(needs_picture=needs_picture), **form)
    assert warnings_of(lambda env: check_with_gymnasium(env.unwrapped), env) == []


def test_gymnasium_has_nothing_to_say_when_everything_is_switched_on():
    env = AetherEnv(BoxRoom(), frames_in_info=True, render_mode="rgb_array_list")
    assert warnings_of(lambda env: check_with_gymnasium(env, skip_render_check=True), env) == []


def test_sb3_warns_twice_about_float_depth_and_never_about_bytes():
    messages = warnings_of(check_with_sb3, AetherEnv(BoxRoom()))
    assert len(messages) == 2 and all("depth" in message for message in messages)
    for form in FORMS[1:]:
        assert warnings_of(check_with_sb3, AetherEnv(BoxRoom(), **form)) == []


def test_the_observation_is_the_last_frame_of_the_step(env):
    observation, _ = env.reset(seed=0)
    assert observation["rgb"].shape == (48, 64, 3) and observation["rgb"].dtype == np.uint8
    assert observation["depth"].shape == (48, 64, 1) and observation["depth"].dtype == np.float32
    # The wall ahead is 6 m away at the start, and 0.3 m nearer after a step towards it.
    assert observation["depth"][24, 32, 0] == pytest.approx(HALF_SIZE[2])
    observation, *_ = env.step(FORWARD)
    assert observation["depth"][24, 32, 0] == pytest.approx(HALF_SIZE[2] - 0.3)


def test_an_action_moves_the_camera_along_its_own_axes(env):
    env.reset(seed=0)
    *_, info = env.step(np.array([0, 0, 0.5, 0, 0, 0], np.float32))
    np.testing.assert_allclose(info["world_from_camera"][:3, 3], [0, 0, 0.5 * env.max_translation], atol=1e-12)
    for _ in range(6):  # six times 15 degrees to the right: now it looks along the world's x
        *_, info = env.step(np.array([0, 0, 0, 0, 1, 0], np.float32))
    *_, info = env.step(FORWARD)
    np.testing.assert_allclose(info["world_from_camera"][:3, 3], [0.3, 0, 0.15], atol=1e-9)


def test_the_frames_of_a_step_lie_evenly_on_the_way():
    env = AetherEnv(BoxRoom(), frames_in_info=True, max_rotation=0.4)
    _, info = env.reset(seed=0)
    assert "poses" not in info and "rgb_frames" not in info
    observation, *_, info = env.step(np.array([0, 0, 1, 0, 1, 0], np.float32))
    turned = [math.acos((np.trace(pose[:3, :3]) - 1) / 2) for pose in info["poses"]]
    np.testing.assert_allclose(turned, [0.1, 0.2, 0.3, 0.4], atol=1e-7)
    assert info["rgb_frames"].shape == (4, 48, 64, 3) and info["depth_frames"].shape == (4, 48, 64, 1)
    np.testing.assert_array_equal(info["rgb_frames"][-1], observation["rgb"])
    np.testing.assert_array_equal(info["depth_frames"][-1], observation["depth"])
    np.testing.assert_allclose(info["poses"][-1], info["world_from_camera"], atol=1e-12)


def test_info_holds_numbers_and_arrays_only(env):
    _, info = env.reset(seed=0, options={"scene_seed": 5})
    assert info["world_from_camera"].shape == (4, 4) and info["world_from_camera"].dtype == np.float64
    assert info["intrinsics"].shape == (3, 3) and info["intrinsics"].dtype == np.float64
    assert info["metric"] is True and info["unit"] == 1.0 and info["step"] == 0 and info["scene_seed"] == 5
    *_, info = env.step(FORWARD)
    assert info["step"] == 1
    assert all(isinstance(value, bool | int | float | np.ndarray) for value in info.values())


def test_what_is_handed_out_belongs_to_the_caller():
    env, untouched = (AetherEnv(BoxRoom(), frames_in_info=True) for _ in range(2))
    results = [env.reset(seed=0), untouched.reset(seed=0)]
    for _ in range(3):
        observation, info = results[0]
        for array in (*observation.values(), *(value for value in info.values() if isinstance(value, np.ndarray))):
            array[...] = 0
        results = [(step[0], step[-1]) for step in (env.step(FORWARD), untouched.step(FORWARD))]
        assert_same(*results)


def test_a_seed_repeats_all_following_episodes():
    first, second = AetherEnv(BoxRoom()), AetherEnv(BoxRoom())
    episodes = []
    for env in (first, second):
        episodes.append([env.reset(seed=3), env.step(FORWARD)[0], env.reset(), env.step(FORWARD)[0]])
    assert_same(*map(tuple, episodes))
    assert (episodes[0][0][0]["rgb"] != episodes[0][2][0]["rgb"]).any(), "every episode has a nonce of its own"


@pytest.mark.slow
def test_pose_stays_rigid_over_ten_thousand_steps():
    class Blind(BoxRoom):
        """Shows always the same, so that only the pose takes time."""

        frames = None

        def _look(self, state, world_from_camera_BT44):
            self.frames = self.frames or super()._look(state, world_from_camera_BT44)
            return replace(self.frames, world_from_camera=world_from_camera_BT44)

    env = AetherEnv(Blind(4, 4))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(10_000):
        *_, info = env.step(env.action_space.sample())
    rotation = info["world_from_camera"][:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-12)


def test_depth_ends_at_far():
    observation, _ = AetherEnv(BoxRoom(), far=3.0).reset(seed=0)
    assert observation["depth"].max() == 3.0
    assert AetherEnv(BoxRoom(), far=3.0).observation_space["depth"].high.max() == 3.0


def test_bytes_carry_the_square_root_of_inverse_depth():
    metres, _ = AetherEnv(BoxRoom()).reset(seed=0)
    levels, _ = AetherEnv(BoxRoom(), depth_format="inverse_uint8", near=1.0).reset(seed=0)
    np.testing.assert_array_equal(levels["depth"], np.rint(255 * np.sqrt(1.0 / metres["depth"])))
    stacked, _ = AetherEnv(BoxRoom(), obs_mode="rgbd_uint8", near=1.0).reset(seed=0)
    np.testing.assert_array_equal(stacked, np.concatenate([levels["rgb"], levels["depth"]], axis=-1))


# What goes wrong.


def test_step_and_render_before_reset_ask_for_reset():
    env = AetherEnv(BoxRoom(), render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(STILL)
    with pytest.raises(gym.error.ResetNeeded):
        env.render()


@pytest.mark.parametrize("action", [np.full(6, np.nan), np.zeros(5), np.zeros((1, 6)), None, "left"])
def test_a_bad_action_is_named_and_changes_nothing(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    *_, info = env.step(FORWARD)
    assert info["step"] == 1
    np.testing.assert_allclose(info["world_from_camera"][:3, 3], [0, 0, 0.3], atol=1e-12)


def test_a_step_that_fails_in_world_or_task_leaves_the_env_where_it_was():
    class Fragile(BoxRoom):
        broken = False

        def advance(self, state, world_from_camera_BT44):
            if self.broken:
                raise MemoryError
            return super().advance(state, world_from_camera_BT44)

    class Counting(Task):
        broken = False

        def start(self, opening):
            return 0, {}

        def judge(self, state, moment):
            if self.broken:
                raise ArithmeticError
            return state + 1, Judgement(reward=state + 1.0, terminated=state == 2, info={"count": state + 1})

    world, task = Fragile(), Counting()
    env = AetherEnv(world, task=task)
    env.reset(seed=0)
    env.step(FORWARD)
    for part, error in ((world, MemoryError), (task, ArithmeticError)):
        part.broken = True
        with pytest.raises(error):
            env.step(FORWARD)
        part.broken = False
    _, reward, terminated, truncated, info = env.step(FORWARD)
    assert (reward, terminated, truncated) == (2.0, False, False)
    assert info["step"] == 2 and info["count"] == 2
    np.testing.assert_allclose(info["world_from_camera"][:3, 3], [0, 0, 0.6], atol=1e-12)
    assert env.step(FORWARD)[2] is True


def test_a_reset_that_fails_leaves_the_env_and_its_random_numbers_where_they_were():
    class Choosy(Task):
        broken = False

        def start(self, opening):
            draw = float(opening.np_random.random())
            if self.broken:
                raise ArithmeticError
            return None, {"draw": draw}

    draws = []
    for fails in (False, True):
        task = Choosy()
        env = AetherEnv(BoxRoom(), task=task)
        env.reset(seed=3)
        env.step(FORWARD)
        if fails:
            task.broken = True
            for seed in (None, 8):
                with pytest.raises(ArithmeticError):
                    env.reset(seed=seed)
            task.broken = False
            assert env.step(FORWARD)[-1]["step"] == 2
        draws.append(env.reset()[1]["draw"])
    assert draws[0] == draws[1]


def test_a_task_reads_the_options_it_names():
    class Goal(Task):
        options = frozenset({"goal"})

        def start(self, opening):
            return opening.options["goal"], {"goal": float(opening.options["goal"])}

        def judge(self, state, moment):
            return state, Judgement(reward=state)

    env = AetherEnv(BoxRoom(), task=Goal())
    _, info = env.reset(seed=0, options={"goal": 4.0})
    assert info["goal"] == 4.0 and env.step(STILL)[1] == 4.0
    with pytest.raises(ValueError, match="'image'.*goal, scene_seed"):
        env.reset(options={"image": np.zeros((64, 64, 3), np.uint8)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"picture": 1}, "unknown key 'picture'; this env takes depth, image, intrinsics, scene_seed"),
        ({"image": "/no/such/file.png"}, "no file"),
        ({"image": np.zeros((1, 1, 3), np.uint8)}, "at least 16 x 16"),
        ({"image": np.zeros((32, 32, 3))}, "uint8"),
        ({"image": np.zeros((32, 32, 3), np.uint8), "depth": np.ones((8, 8))}, "depth"),
        ({"image": np.zeros((32, 32, 3), np.uint8), "intrinsics": np.eye(2)}, "intrinsics"),
        ({"image": np.zeros((32, 32, 3), np.uint8), "scene_seed": -1}, "scene_seed"),
        ({"depth": np.ones((8, 8))}, "belongs to a picture"),
    ],
)
def test_bad_options_are_named_and_leave_the_episode_alone(dream, options, message):
    dream.reset(seed=0)
    dream.step(FORWARD)
    with pytest.raises(ValueError, match=message):
        dream.reset(options=options)
    assert dream.step(FORWARD)[-1]["step"] == 2


@pytest.mark.parametrize(
    "kwargs",
    [
        {"height": 0},
        {"width": 2.5},
        {"frames_per_step": 0},
        {"fps": math.nan},
        {"horizontal_fov": 180},
        {"far": math.inf},
        {"near": 0},
        {"max_translation": -1},
        {"max_rotation": 15},
        {"obs_mode": "rgb"},
        {"depth_format": "feet"},
        {"render_mode": "human"},
        {"world": "mars"},
        {"world": 3},
    ],
)
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        AetherEnv(**{"world": BoxRoom(), **kwargs})


# Pictures to start from.


def test_a_dream_without_a_picture_starts_from_a_bundled_one(dream):
    seen = set()
    for seed in range(12):
        observation, info = dream.reset(seed=seed)
        assert (observation["rgb"] == info["scene_seed"]).all()
        assert info["metric"] is True
        # 128 x 96 became 64 x 48: the same view with half the pixels.
        np.testing.assert_allclose(info["intrinsics"], [[50, 0, 32], [0, 50, 24], [0, 0, 1]])
        seen.add(info["scene_seed"])
    assert seen == {0, 1, 2}
    assert dream.step(STILL)[-1]["scene_seed"] == info["scene_seed"]


def test_a_dream_starts_from_the_picture_it_is_given(dream, tmp_path):
    picture = np.full((60, 80, 3), 200, np.uint8)
    Image.fromarray(picture).save(tmp_path / "mine.png")
    for image in (picture, tmp_path / "mine.png", str(tmp_path / "mine.png")):
        observation, info = dream.reset(seed=0, options={"image": image})
        assert (observation["rgb"] == 200).all()
        assert info["metric"] is False and "scene_seed" not in info
        assert 2 * math.degrees(math.atan(32 / info["intrinsics"][0, 0])) == pytest.approx(70)
    depth = np.full((60, 80), 3.0)
    intrinsics = np.array([[80.0, 0, 40], [0, 80, 30], [0, 0, 1]])
    _, info = dream.reset(options={"image": picture, "depth": depth, "intrinsics": intrinsics, "scene_seed": 9})
    assert info["metric"] is True and info["scene_seed"] == 9
    np.testing.assert_allclose(info["intrinsics"], [[64, 0, 32], [0, 64, 24], [0, 0, 1]])
    assert dream.core.world.starts[-1].depth.shape == (48, 64)


def test_a_dream_without_any_picture_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="options"):
        AetherEnv(BoxRoom(needs_picture=True)).reset()


# Rendering and the end.


def test_render_shows_colour_beside_coloured_depth():
    env = AetherEnv(BoxRoom(), render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (48, 128, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:, :64], observation["rgb"])
    assert env.metadata["render_fps"] == 3.0


def test_a_render_list_holds_each_frame_once():
    env = AetherEnv(BoxRoom(), render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(FORWARD)
    env.step(FORWARD)
    assert len(env.render()) == 9
    assert env.render() == []
    observation, *_ = env.step(FORWARD)
    frames = env.render()
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[-1][:, :64], observation["rgb"])
    assert env.metadata["render_fps"] == 12.0


def test_close_may_be_called_twice_and_ends_the_env(env):
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.step(STILL)


def test_a_world_of_ones_own_is_left_open():
    world = BoxRoom()
    AetherEnv(world).close()
    assert world.closed == 0


# Gymnasium around it.


def test_the_registered_ids_end_after_two_hundred_steps():
    env = gym.make("aether_env:AetherSim-v0", world=BoxRoom(4, 6))
    env.reset(seed=0)
    ends = [env.step(STILL)[3] for _ in range(200)]
    assert ends == [False] * 199 + [True]


@pytest.mark.parametrize("name", ["Aether-v0", "AetherSim-v0"])
def test_specs_survive_pickle_and_json(name):
    spec = gym.spec(name)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["kwargs"]["world"] == ("dream" if name == "Aether-v0" else "sim")


def test_importing_the_package_is_quick_and_loads_no_engine():
    code = (
        "import sys, time; import gymnasium; begin = time.perf_counter(); import aether_env; "
        "took = time.perf_counter() - begin; import aether_env.envs.aether; "
        "loaded = {'torch', 'mujoco', 'mujoco_warp', 'diffusers'} & set(sys.modules); "
        "assert not loaded, loaded; assert took < 1, took; assert 'AetherEnv' in dir(aether_env)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there():
    for name in aether_env.__all__:
        assert getattr(aether_env, name).__name__ == name
    with pytest.raises(AttributeError, match="AetherEnv"):
        _ = aether_env.Aether


def test_a_camera_that_a_wall_has_stopped_can_move_along_it():
    env = AetherEnv(BoxRoom(64, 96), camera_radius=0.7)  # the room itself keeps the camera 0.6 m from this wall
    env.reset(seed=0)
    for _ in range(30):
        *_, info = env.step(FORWARD)
    assert info["collided"] and 0.7 <= HALF_SIZE[2] - info["world_from_camera"][2, 3] < 0.75
    stopped = info["world_from_camera"][:3, 3]
    for _ in range(5):
        *_, info = env.step(np.array([1, 0, 0, 0, 0, 0], np.float32))
        assert not info["collided"]
    np.testing.assert_allclose(info["world_from_camera"][:3, 3] - stopped, [1.5, 0, 0], atol=1e-9)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "7"])
def test_a_bad_seed_is_named_and_numpys_numbers_are_good_ones(env, seed):
    first, _ = env.reset(seed=np.int64(3))
    with pytest.raises(ValueError, match="seed must be a whole number >= 0"):
        env.reset(seed=seed)
    assert_same(first, env.reset(seed=3)[0])
