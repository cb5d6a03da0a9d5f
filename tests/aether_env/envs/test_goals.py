import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

import aether_env  # noqa: F401
from aether_env.camera import interpolate_pose, make_pose
from aether_env.envs.goal_vectors import pose_from_vector, vector_from_pose
from aether_env.envs.goals import DepthGoal, GoalTask, ImageGoal, PoseGoal, make_task, sample_pose
from aether_env.envs.rewards import Dense, Potential, Sparse
from aether_env.envs.tasks import Explore, Moment, Opening
from aether_env.sim import SimWorld
from aether_env.world_model.promise import Frames, Start
from tests.rooms import BoxRoom

HEIGHT, WIDTH = 16, 24
TASKS = [PoseGoal, ImageGoal, DepthGoal]
PAGE = Path(__file__).parents[3] / "docs" / "goals.md"


def pose_at(x=0.0, y=0.0, z=0.0, yaw=0.0) -> np.ndarray:
    """A camera at (x, y, z), turned right by `yaw` degrees."""
    return make_pose(Rotation.from_euler("y", yaw, degrees=True).as_matrix(), [x, y, z])


def frames_at(pose=None, *, rgb=128, depth=5.0, metric=True) -> Frames:
    """One frame of one camera with a field of view of 90 degrees; `rgb` and `depth` fill it."""
    intrinsics = np.array([[WIDTH / 2, 0, WIDTH / 2], [0, WIDTH / 2, HEIGHT / 2], [0, 0, 1.0]])
    return Frames(
        rgb=np.broadcast_to(np.asarray(rgb, np.uint8), (1, 1, HEIGHT, WIDTH, 3)).copy(),
        depth=np.broadcast_to(np.asarray(depth, np.float32), (1, 1, HEIGHT, WIDTH)).copy(),
        world_from_camera=(np.eye(4) if pose is None else pose)[None, None].copy(),
        intrinsics=intrinsics[None, None],
        metric=np.array([metric]),
    )


def refuse(pose):
    raise AssertionError("nothing was to be looked at")


@dataclass(frozen=True, kw_only=True)
class OpeningWithLook(Opening):
    look: Callable[[np.ndarray], Frames] = refuse


def opening_of(frames=None, *, look=refuse, seed=0, **options) -> OpeningWithLook:
    frames = frames_at() if frames is None else frames
    return OpeningWithLook(frames=frames, options=options, np_random=np.random.default_rng(seed), look=look)


def start(task, opening):
    """Begin as an env does: the task sees what it wants to see."""
    pose = task.look_from(opening)
    return task.start(opening if pose is None else replace(opening, seen=opening.look(pose)))


def room_opening(*, seed=0, needs_picture=False, **options) -> Opening:
    """In an analytic room; looking goes there in one step."""
    room = BoxRoom(HEIGHT, WIDTH, frames_per_step=1, needs_picture=needs_picture)
    picture = Start(rgb=np.zeros((HEIGHT, WIDTH, 3), np.uint8)) if needs_picture else Start()
    state, frames = room.start([picture], [3])
    return opening_of(frames, look=lambda pose: room.advance(state, pose[None, None])[1], seed=seed, **options)


def walk(task, state, poses, *, collided=False):
    """Judge a walk of one frame a step; return the judgements and the last state."""
    judgements, here = [], np.zeros(3)
    for pose in poses:
        there = pose[:3, 3]
        moment = Moment(frames=frames_at(pose), collided=collided, moved=float(np.linalg.norm(there - here)))
        state, judgement = task.judge(state, moment)
        judgements.append(judgement)
        here = there
    return judgements, state


def random_vectors(task: GoalTask, count: int, seed=0) -> np.ndarray:
    """Goal vectors that a task could have met."""
    rng = np.random.default_rng(seed)
    if isinstance(task, PoseGoal):
        rotations = Rotation.random(count, random_state=seed).as_matrix()
        return vector_from_pose(make_pose(rotations, rng.normal(size=(count, 3))))
    return rng.uniform(0.05, 1.0, (count, *task.goal_space.shape)).astype(np.float32)


# Goal vectors and gaps


def test_pose_gaps_are_the_distance_and_scipys_angle_each_in_its_tolerance():
    one, other = Rotation.random(200, random_state=0), Rotation.random(200, random_state=1)
    rng = np.random.default_rng(2)
    here, there = rng.normal(size=(2, 200, 3))
    task = PoseGoal(max_distance=0.5, max_angle=math.radians(10))
    gaps = task.gaps(
        vector_from_pose(make_pose(one.as_matrix(), here)), vector_from_pose(make_pose(other.as_matrix(), there))
    )
    np.testing.assert_allclose(gaps[:, 0], np.linalg.norm(there - here, axis=-1) / 0.5, rtol=1e-5)
    np.testing.assert_allclose(gaps[:, 1], (one.inv() * other).magnitude() / math.radians(10), rtol=1e-5)


def test_a_pose_comes_back_from_its_vector():
    poses = make_pose(Rotation.random(50, random_state=0).as_matrix(), np.random.default_rng(0).normal(size=(50, 3)))
    np.testing.assert_allclose(pose_from_vector(vector_from_pose(poses)), poses, atol=1e-6)


finite = st.floats(allow_nan=False, allow_infinity=False)
few = st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e308])  # parallel, zero and huge columns come up often
nine = st.one_of(arrays(np.float64, 9, elements=finite), arrays(np.float64, 9, elements=few))


@settings(max_examples=150, deadline=None)
@given(nine, nine)
def test_any_nine_finite_numbers_are_a_pose_with_finite_symmetric_gaps(one, other):
    rotation = pose_from_vector(one)[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    gaps = PoseGoal().gaps(one, other)
    assert np.isfinite(gaps).all() and (gaps >= 0).all()
    np.testing.assert_allclose(gaps, PoseGoal().gaps(other, one), rtol=1e-9, atol=1e-9)


def test_columns_of_any_length_mean_the_same_rotation():
    vector = vector_from_pose(pose_at(1, 2, 3, yaw=40))
    scaled = vector * np.array([1, 1, 1, 7, 7, 7, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(PoseGoal().gaps(vector, scaled), 0, atol=1e-6)


@pytest.mark.parametrize("task", [kind() for kind in TASKS])
def test_gaps_are_zero_at_the_goal_and_the_same_both_ways(task):
    one, other = random_vectors(task, 20), random_vectors(task, 20, seed=1)
    np.testing.assert_allclose(task.gaps(one, one), 0, atol=1e-7)
    np.testing.assert_array_equal(task.gaps(one, other), task.gaps(other, one))
    assert task.gaps(one, other).dtype == np.float64 and (task.gaps(one, other) > 0).all()


def test_any_direction_will_do_where_max_angle_is_half_a_turn():
    half_turns = Rotation.from_rotvec(math.pi * Rotation.random(200, random_state=0).as_matrix()[:, 0]).as_matrix()
    vectors = np.concatenate([np.zeros((200, 3)), half_turns[:, :, 0], half_turns[:, :, 1]], axis=-1)
    assert (PoseGoal(max_angle=math.pi).compute_reward(vectors, vector_from_pose(np.eye(4))) == 0.0).all()


def test_a_pictures_vector_is_the_mean_colour_of_each_cell():
    rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    vector = ImageGoal().achieved(frames_at(rgb=rgb))
    means = rgb.reshape(8, 2, 12, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(vector.reshape(8, 12, 3), means, atol=1e-6)
    assert vector in ImageGoal().goal_space


def test_a_picture_brighter_by_a_tenth_everywhere_is_a_tenth_away():
    task = ImageGoal(tolerance=0.05)
    gaps = task.gaps(*(task.achieved(frames_at(rgb=level)) for level in (51, 102)))
    np.testing.assert_allclose(gaps, [0.2 / 0.05], rtol=1e-5)


def test_a_depths_vector_is_the_root_of_near_over_depth():
    task = DepthGoal(near=0.25, tolerance=0.1)
    four, nine, touching = (task.achieved(frames_at(depth=depth)) for depth in (4.0, 9.0, 0.1))
    np.testing.assert_allclose(four, 0.25, rtol=1e-6)
    np.testing.assert_allclose(touching, 1.0)
    np.testing.assert_allclose(task.gaps(four, nine), [(0.5 / 2 - 0.5 / 3) / 0.1], rtol=1e-5)
    assert touching in task.goal_space and task.achieved(frames_at(depth=100.0)) in task.goal_space


# Rewards


def test_sparse_and_dense_rewards_are_what_a_hand_computes():
    gaps = np.array([[0.5, 1.0], [0.2, 1.2], [3.0, 0.0]])
    np.testing.assert_array_equal(Sparse()(gaps), [0.0, -1.0, -1.0])
    np.testing.assert_allclose(Dense(scale=0.2)(gaps), [-0.15, -0.14, -0.3])


def test_a_potential_reward_is_what_a_hand_computes():
    reward = Potential(gamma=0.9, scale=0.5, bonus=2.0)
    far, near, there = np.array([3.0, 1.0]), np.array([2.0, 0.0]), np.array([0.9, 0.1])
    assert reward(near, far) == pytest.approx(0.9 * -0.5 + 1.0)
    assert reward(there, near) == pytest.approx(0.0 + 0.5 + 2.0)


@pytest.mark.parametrize("arrives", [False, True])
def test_shaping_adds_up_to_the_discounted_difference_whatever_the_way(arrives):
    reward = Potential(gamma=0.9, scale=0.3, bonus=5.0)
    gaps = np.random.default_rng(0).uniform(1.1, 4, (12, 2))
    last = 0.9**11 * -0.3 * gaps[-1].mean()
    if arrives:
        gaps[-1] = [0.5, 0.5]
        last = 0.9**10 * 5.0  # nothing comes after the goal but its bonus
    total = sum(0.9**t * reward(after, before) for t, (before, after) in enumerate(itertools.pairwise(gaps)))
    assert total == pytest.approx(last + 0.3 * gaps[0].mean())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("reward", [Sparse(), Dense(scale=0.3)])
def test_rewards_computed_again_are_exactly_those_of_the_steps(kind, reward):
    task = kind(reward=reward).for_relabelling()
    for seed in range(4):
        state, _ = start(task, room_opening(seed=seed))
        look = room_opening(seed=seed).look
        steps = [look(pose_at(0.1 * t, 0, 0.3 * t, yaw=5 * t)) for t in range(5)] + [look(state["pose"])]
        rewards = []
        for frames in steps:
            _, judgement = task.judge(state, Moment(frames=frames, collided=False, moved=0.0))
            assert task.compute_reward(task.achieved(frames), task.desired(state)) == judgement.reward
            rewards.append(judgement.reward)
        achieved = np.stack([task.achieved(frames) for frames in steps])
        desired = np.repeat(task.desired(state)[None], len(steps), axis=0)
        together = task.compute_reward(achieved, desired)
        assert together.shape == (6,) and together.tolist() == rewards
        assert max(rewards) == rewards[-1]  # the last frame is the goal's own
        np.testing.assert_array_equal(task.compute_reward(achieved[None], desired[None]), together[None])


def test_what_cannot_be_relabelled_is_refused_with_the_way_out():
    vector = vector_from_pose(np.eye(4))
    with pytest.raises(ValueError, match=r"Potential.*Sparse"):
        PoseGoal(reward=Potential()).compute_reward(vector, vector)
    with pytest.raises(ValueError, match=r"Potential.*Sparse"):
        PoseGoal(reward=Potential()).for_relabelling()
    with pytest.raises(ValueError, match="collision_penalty.*on_collision"):
        PoseGoal(collision_penalty=1.0).for_relabelling()
    with pytest.raises(ValueError, match="success_by"):
        ImageGoal(success_by="pose").for_relabelling()
    assert ImageGoal().for_relabelling().success_by == "vector"


# Episodes


def test_success_ends_the_episode_and_nothing_else_does():
    task = PoseGoal(max_distance=0.3, max_angle=math.radians(15))
    state, info = start(task, opening_of(goal_pose=pose_at(z=1.0, yaw=20)))
    assert info["distance"] == pytest.approx(1) and info["angle"] == pytest.approx(math.radians(20))
    assert info["gap"] == pytest.approx(1 / 0.3)
    np.testing.assert_array_equal(info["goal_pose"], pose_at(z=1.0, yaw=20))
    poses = [pose_at(z=0.5), pose_at(z=0.9), pose_at(z=0.9, yaw=6)]  # far; near but 20 degrees off; there
    judgements, _ = walk(task, state, poses, collided=True)
    assert [judgement.terminated for judgement in judgements] == [False, False, True]
    assert [judgement.info["success"] for judgement in judgements] == [False, False, True]
    assert judgements[1].info["gap"] == pytest.approx(20 / 15, rel=1e-5)
    assert judgements[2].info["distance"] == pytest.approx(0.1)
    assert judgements[2].info["angle"] == pytest.approx(math.radians(14))


def test_spl_is_the_straight_way_over_the_way_that_was_gone():
    task = PoseGoal()
    state, _ = start(task, opening_of(goal_pose=pose_at(x=0.9, z=1.2)))  # 1.5 straight
    detour = [pose_at(z=0.6), pose_at(z=1.2), pose_at(x=0.9, z=1.2)]  # 0.6 + 0.6 + 0.9 = 2.1
    judgements, _ = walk(task, state, detour)
    assert [judgement.info["spl"] for judgement in judgements] == [0.0, 0.0, pytest.approx(1.5 / 2.1)]
    # Within the tolerance a walk is shorter than the straight way: no better than perfect.
    (arrived,), _ = walk(task, state, [pose_at(x=0.78, z=1.04)])
    assert arrived.info["spl"] == 1.0


def test_a_goal_to_turn_to_is_perfect_without_a_step_aside():
    task = PoseGoal()
    state, _ = start(task, opening_of(goal_pose=pose_at(yaw=90)))
    (turned,), _ = walk(task, state, [pose_at(yaw=90)])
    (strayed,), _ = walk(task, state, [pose_at(x=0.1, yaw=90)])
    assert turned.info["spl"] == 1.0 and strayed.info["spl"] == 0.0


def test_a_collision_costs_the_penalty():
    state, _ = (task := PoseGoal(collision_penalty=0.25)).start(opening_of(goal_pose=pose_at(z=3)))
    (free,), _ = walk(task, state, [pose_at(z=0.3)])
    (hit,), _ = walk(task, state, [pose_at(z=0.3)], collided=True)
    assert (free.reward, hit.reward) == (-1.0, -1.25)


def test_a_walk_with_shaping_earns_the_discounted_difference():
    reward = Potential(gamma=0.9, scale=0.3)
    state, _ = (task := PoseGoal(reward=reward)).start(opening_of(goal_pose=pose_at(z=3)))
    judgements, _ = walk(task, state, [pose_at(z=0.4 * t, yaw=3 * t) for t in range(1, 6)])
    total = sum(0.9**t * judgement.reward for t, judgement in enumerate(judgements))
    first, last = (3 / 0.3 + 0) / 2, (1 / 0.3 + 15 / 15) / 2
    assert total == pytest.approx(-0.3 * (0.9**5 * last - first), rel=1e-5)


def test_the_goal_is_seen_from_the_camera_now():
    state, _ = (task := PoseGoal()).start(opening_of(goal_pose=pose_at(x=2.0, yaw=90)))
    # After turning right by 90 degrees it lies straight ahead, turned as the camera is.
    seen = task.observe(state, frames_at(pose_at(yaw=90)))["goal"]
    np.testing.assert_allclose(seen, [0, 0, 2, 1, 0, 0, 0, 1, 0], atol=1e-6)
    assert seen in task.observation_space(HEIGHT, WIDTH, 10.0)["goal"]
    far_away = task.observe(state, frames_at(pose_at(x=-100, y=100)))["goal"]
    assert far_away in task.observation_space(HEIGHT, WIDTH, 10.0)["goal"]


@pytest.mark.parametrize("kind", TASKS)
def test_states_stay_as_they_were_and_survive_bytes(kind):
    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        return value is None or type(value) in (bool, int, float, str, np.ndarray)

    task = kind(reward=Potential())
    state, _ = start(task, room_opening())
    assert plain(state)
    before = copy.deepcopy(state)
    judgement_before, later = walk(task, state, [pose_at(z=0.2)])
    np.testing.assert_equal(state, before)
    assert plain(later) and later["travelled"] == pytest.approx(0.2)
    again, _ = walk(pickle.loads(pickle.dumps(task)), pickle.loads(pickle.dumps(state)), [pose_at(z=0.2)])
    assert again == judgement_before


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_handed_out_is_the_callers_own(kind):
    state, info = start(task := kind(), room_opening())
    before = copy.deepcopy(state)
    info["goal_pose"][:] = 0
    task.desired(state)[:] = 0
    for array in task.observe(state, frames_at()).values():
        array[:] = 0
    np.testing.assert_equal(state, before)


@pytest.mark.parametrize("kind", TASKS)
def test_infos_are_finite_numbers_and_observations_lie_in_their_space(kind):
    task = kind()
    state, info = start(task, room_opening())
    (judgement,), state = walk(task, state, [pose_at(z=0.2)])
    for value in [*info.values(), *judgement.info.values()]:
        assert isinstance(value, bool | float | np.ndarray) and np.isfinite(value).all()
    observation = task.observe(state, frames_at())
    assert observation in gym.spaces.Dict(task.observation_space(HEIGHT, WIDTH, 100.0))
    assert task.achieved(frames_at()) in task.goal_space and task.desired(state) in task.goal_space


# Goals that are given


@pytest.mark.parametrize("ending", [".png", None])
def test_a_picture_is_cropped_and_resized_to_the_frames(tmp_path, ending):
    rgb = np.zeros((64, 120, 3), np.uint8)  # 24 columns too wide for 2 : 3
    rgb[:, :60], rgb[:, 60:] = (255, 0, 0), (0, 0, 255)
    image = rgb
    if ending:
        image = tmp_path / f"goal{ending}"
        cv2.imwrite(str(image), rgb[..., ::-1])
    state, info = (task := ImageGoal()).start(opening_of(goal_image=image))
    goal = task.observe(state, frames_at())["goal_rgb"]
    assert (
        goal.shape == (HEIGHT, WIDTH, 3) and (goal[:, :12] == (255, 0, 0)).all() and (goal[:, 12:] == (0, 0, 255)).all()
    )
    assert set(info) == {"gap"}


def test_a_picture_without_a_pose_is_reached_by_looking_like_it():
    task = ImageGoal(tolerance=0.1)
    state, _ = start(task, opening_of(goal_image=np.full((HEIGHT, WIDTH, 3), 153, np.uint8)))
    infos = []
    for level in (102, 140):  # 0.2 and 0.05 darker
        state, judgement = task.judge(state, Moment(frames=frames_at(rgb=level), collided=False, moved=0.3))
        infos.append(judgement.info)
    assert infos[0] == {"success": False, "gap": pytest.approx(2.0, rel=1e-5)}
    assert infos[1] == {"success": True, "gap": pytest.approx(13 / 25.5, rel=1e-5)}


@pytest.mark.parametrize("success_by, succeeds", [("auto", True), ("pose", True), ("vector", False)])
def test_a_picture_with_a_pose_is_reached_by_being_there_unless_asked_otherwise(success_by, succeeds):
    task = ImageGoal(success_by=success_by)
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    state, info = start(task, opening_of(goal_image=white, goal_pose=pose_at(z=1)))
    assert info["distance"] == pytest.approx(1)
    (there,), _ = walk(task, state, [pose_at(z=1)])  # where everything is grey
    assert there.info["success"] is succeeds and there.info["spl"] == float(succeeds)


@pytest.mark.parametrize("kind", [ImageGoal, DepthGoal])
def test_a_pose_alone_is_the_view_from_there(kind):
    pose = pose_at(x=0.5, z=1.0, yaw=10)
    state, info = start(task := kind(), room_opening(goal_pose=pose))
    np.testing.assert_array_equal(info["goal_pose"], pose)
    np.testing.assert_array_equal(task.desired(state), task.achieved(room_opening().look(pose)))


def test_the_goal_is_where_the_world_let_the_camera_go():
    # The room's walls are 6 m ahead; its camera stops at 5.4.
    _, info = start(ImageGoal(), room_opening(goal_pose=pose_at(z=20)))
    assert info["goal_pose"][2, 3] == pytest.approx(5.4) and info["distance"] == pytest.approx(5.4)


def test_depth_that_is_not_known_takes_no_part():
    depth = np.full((HEIGHT, WIDTH), 4.0)
    depth[:, :10] = np.nan  # 5 of 12 columns of cells
    state, info = (task := DepthGoal(tolerance=0.1)).start(opening_of(frames_at(depth=9.0), goal_depth=depth))
    assert info == {"gap": pytest.approx((0.5 / 2 - 0.5 / 3) / 0.1, rel=1e-5)}
    seen = task.observe(state, frames_at())["goal_depth"]
    assert (seen[:, :10] == 0).all() and (seen[:, 10:] == 4).all()
    behind = np.full((HEIGHT, WIDTH), 9.0)
    behind[:, :10] = 0.5  # only what is unknown differs
    np.testing.assert_array_equal(
        task.gaps(task.achieved(frames_at(depth=behind)), task.desired(state)),
        task.gaps(task.achieved(frames_at(depth=9.0)), task.desired(state)),
    )


def test_a_cell_is_as_deep_as_its_known_half():
    depth = np.full((HEIGHT, WIDTH), 4.0)
    depth[::2] = -1.0
    state, _ = (task := DepthGoal(near=0.25)).start(opening_of(goal_depth=depth))
    np.testing.assert_allclose(task.desired(state), 0.25, rtol=1e-6)


def test_vectors_with_nothing_in_common_are_as_far_apart_as_can_be():
    task, known = DepthGoal(tolerance=0.1), np.full(96, 0.5, np.float32)
    assert task.gaps(known, np.zeros(96, np.float32)).tolist() == [10.0]


BAD_OPTIONS = [
    (PoseGoal, {"goal_pose": np.eye(3)}, "goal_pose.*shape"),
    (PoseGoal, {"goal_pose": np.eye(4)[None]}, r"goal_pose.*\(4, 4\)"),
    (PoseGoal, {"goal_pose": np.diag([2.0, 2.0, 2.0, 1.0])}, "goal_pose.*rigid"),
    (PoseGoal, {"goal_pose": "there"}, "goal_pose.*'there'"),
    (PoseGoal, {"goal_pose": pose_at(z=101)}, "goal_pose.*100"),
    (ImageGoal, {"goal_image": np.zeros((32, 32, 3))}, "goal_image.*uint8"),
    (ImageGoal, {"goal_image": "nowhere.png"}, "goal_image.*nowhere.png"),
    (ImageGoal, {"goal_image": np.zeros((32, 32, 3), np.uint8), "goal_pose": np.zeros((4, 4))}, "goal_pose"),
    (DepthGoal, {"goal_depth": np.full((32, 48), 1500)}, "goal_depth.*millimetres"),
    (DepthGoal, {"goal_depth": 2.0}, "goal_depth.*shape"),
    (DepthGoal, {"goal_depth": "depth.png"}, "goal_depth"),
    (DepthGoal, {"goal_depth": np.full((32, 48), np.nan)}, "goal_depth.*finite"),
    (DepthGoal, {"goal_depth": np.where(np.arange(48) < 20, 2.0, np.nan) + np.zeros((32, 1))}, "goal_depth.*42%"),
]


@pytest.mark.parametrize("kind, options, named", BAD_OPTIONS)
def test_unusable_goals_are_named_before_anything_is_drawn_or_looked_at(kind, options, named):
    opening = opening_of(**options)
    before = opening.np_random.bit_generator.state
    with pytest.raises(ValueError, match=named):
        start(kind(), opening)
    assert opening.np_random.bit_generator.state == before


def test_success_by_pose_needs_a_pose():
    with pytest.raises(ValueError, match="goal_pose"):
        start(ImageGoal(success_by="pose"), opening_of(goal_image=np.zeros((32, 32, 3), np.uint8)))


# Goals that are sampled


@pytest.fixture(scope="module")
def sim() -> SimWorld:
    return SimWorld(HEIGHT, WIDTH, frames_per_step=1, supersample=1, shadows=False, split="validation")


def sim_opening(sim: SimWorld, seed: int):
    state, frames = sim.start([Start()], [seed])
    return state, opening_of(frames, look=lambda pose: sim.advance(state, pose[None, None])[1], seed=seed)


def test_sampled_goals_can_be_reached_straight_through_the_true_world(sim):
    clearances, distances, angles = [], [], []
    for seed in range(40):
        state, opening = sim_opening(sim, seed)
        goal = sample_pose(opening, (0.5, 1.5), math.radians(30))
        way = interpolate_pose(np.eye(4), make_pose(np.eye(3), goal[:3, 3]), np.linspace(0, 1, 31))
        clearances.append(sim.clearance(state, way[None])[0].min())
        distances.append(np.linalg.norm(goal[:3, 3]))
        angles.append(Rotation.from_matrix(goal[:3, :3]).as_rotvec())
    # 40 of 40 when this was written; things may hide beside the picture and between its pixels.
    assert (np.array(clearances) >= 0).mean() >= 0.95
    assert (np.array(distances) >= 0.5).mean() >= 0.9 and max(distances) <= 1.5
    np.testing.assert_allclose(np.array(angles)[:, [0, 2]], 0, atol=1e-12)  # about the vertical only
    assert np.abs(angles).max() <= math.radians(30) and np.ptp(np.array(angles)[:, 1]) > math.radians(40)


def test_the_same_generator_gives_the_same_goal_and_another_another(sim):
    _, opening = sim_opening(sim, 5)
    first, again, other = (
        start(ImageGoal(), opening_of(opening.frames, look=opening.look, seed=seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_equal(first, again)
    assert not np.allclose(first[0]["pose"], other[0]["pose"])


def test_a_sampled_picture_is_what_the_world_shows_from_the_goals_pose(sim):
    state, opening = sim_opening(sim, 2)
    task_state, info = start(ImageGoal(), opening)
    _, truth = sim.advance(state, info["goal_pose"][None, None])
    np.testing.assert_array_equal(ImageGoal().observe(task_state, truth)["goal_rgb"], truth.rgb[0, 0])
    assert ImageGoal().gaps(ImageGoal().achieved(truth), ImageGoal().desired(task_state)) == 0


def test_before_a_wall_a_goal_keeps_its_distance_and_is_nearer_than_wanted():
    for seed in range(20):
        goal = sample_pose(opening_of(frames_at(depth=0.9), seed=seed), (2.0, 3.0))
        # The wall is seen at points; between two of them a ball of 0.3 comes a little nearer.
        assert 0 < goal[2, 3] <= 0.6 + 0.02


@pytest.mark.parametrize("depth", [0.01, 0.2])
def test_in_the_tightest_place_the_goal_is_a_turn_on_the_spot(depth):
    goal = sample_pose(opening_of(frames_at(depth=depth)), angle=math.radians(30))
    assert np.linalg.norm(goal[:3, 3]) < 0.05
    np.testing.assert_allclose(goal[:3, :3] @ goal[:3, :3].T, np.eye(3), atol=1e-12)
    state, info = start(PoseGoal(), opening_of(frames_at(depth=depth)))
    assert math.isfinite(info["gap"])


# Settings


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (PoseGoal, {"reward": 1.0}),
        (PoseGoal, {"reward": np.mean}),
        (PoseGoal, {"collision_penalty": -1.0}),
        (PoseGoal, {"max_distance": 0.0}),
        (PoseGoal, {"max_angle": 15.0}),
        (PoseGoal, {"distance": 1.0}),
        (PoseGoal, {"distance": (1.5, 0.5)}),
        (PoseGoal, {"angle": math.nan}),
        (ImageGoal, {"tolerance": 0.0}),
        (ImageGoal, {"success_by": "luck"}),
        (DepthGoal, {"near": 0.0}),
        (Dense, {"scale": 0.0}),
        (Potential, {"gamma": 1.5}),
        (Potential, {"bonus": math.inf}),
    ],
)
def test_settings_out_of_range_are_named(kind, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be"):
        kind(**arguments)


class ElbowRoom(GoalTask):
    """A goal of one's own: to be a metre from everything in view."""

    goal_space = gym.spaces.Box(0.0, 100.0, (1,), np.float32)

    def achieved(self, frames):
        return frames.depth[0, -1].min(keepdims=True)[0]

    def gaps(self, achieved, desired):
        return np.abs(np.asarray(achieved, np.float64) - desired) / 0.25

    def find_goal(self, opening):
        return {"goal": np.ones(1, np.float32), "pose": None}


def test_a_goal_of_ones_own_needs_a_space_a_vector_a_gap_and_a_goal():
    task = ElbowRoom(reward=Dense(scale=1.0)).for_relabelling()
    state, info = start(task, opening_of(frames_at(depth=2.0)))
    assert info == {"gap": 4.0}
    _, judgement = task.judge(state, Moment(frames=frames_at(depth=1.125), collided=False, moved=0.3))
    assert (judgement.reward, judgement.terminated) == (-0.5, True)
    assert judgement.info == {"success": True, "gap": 0.5}
    np.testing.assert_array_equal(task.compute_reward([[1.0], [2.0]], [[1.0], [1.0]]), [0.0, -4.0])


@pytest.mark.parametrize("kind", TASKS)
def test_a_tasks_repr_makes_it_again(kind):
    task = kind(reward=Dense(scale=0.5), distance=(0.2, 0.4))
    assert eval(repr(task)) == task != kind()


def test_tasks_can_be_asked_for_by_name():
    assert type(make_task(None)) is type(make_task("explore")) is Explore
    assert [make_task(name) for name in ("pose", "image", "depth")] == [PoseGoal(), ImageGoal(), DepthGoal()]
    mine = PoseGoal(max_distance=0.1)
    assert make_task(mine) is mine
    for wrong in ("fetch", 3, PoseGoal):
        with pytest.raises(ValueError, match="'pose'"):
            make_task(wrong)


# The page


def blocks() -> list[tuple[bool, str]]:
    """The page's Python and whether it is marked as needing an env."""
    found = re.findall(r"(<!-- env -->\n)?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return [(bool(marked), code) for marked, code in found]


def run(code: str) -> dict[str, Any]:
    exec(compile(code, "goals.md", "exec"), namespace := {"__name__": "__main__"})
    return namespace


def test_the_pages_own_reward_and_task_do_what_they_say():
    reward, task = (run(code) for marked, code in blocks() if not marked)
    vectors = vector_from_pose(np.stack([pose_at(), pose_at(z=0.3)]))
    np.testing.assert_allclose(reward["task"].compute_reward(vectors, vectors[:1]), [1, math.exp(-1)], rtol=1e-6)
    state, _ = (roam := task["Roam"]()).start(opening_of())
    judgements, _ = walk(roam, state, [pose_at(z=z) for z in (0.2, 0.4, 0.8, 0.4)])
    assert [judgement.reward for judgement in judgements] == [0.0, 1.0, 1.0, 0.0]
    assert judgements[-1].info == {"cubes": 3}


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for marked, code in blocks() if marked])
def test_the_pages_envs_run_as_written(code):
    run(code)
