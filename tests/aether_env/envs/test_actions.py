import copy
import math
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aether_env.camera import (
    OPENCV_FROM_AXES,
    camera_path_from,
    check_poses,
    intrinsics_from_fov,
    make_pose,
    motion_from_action,
    poses_in_axes,
    quaternion_from_matrix,
    rotation_distance,
    se3_exp,
)
from aether_env.envs.actions import (
    MAX_BOUND,
    AbsoluteAction,
    DiscreteAction,
    PlanarAction,
    Se3Action,
    make_action_mode,
)

PAGE = Path(__file__).parents[3] / "docs" / "actions.md"
LIMITS = {"max_translation": 0.3, "max_rotation": math.radians(15)}
MODE = Se3Action(**LIMITS)
PLANAR = PlanarAction(**LIMITS)
DISCRETE = DiscreteAction(**LIMITS)
ABSOLUTE = AbsoluteAction(**LIMITS)
MODES = [MODE, Se3Action(axes="unreal"), PLANAR, DISCRETE, ABSOLUTE, AbsoluteAction(axes="ros")]
VECTOR_MODES = [mode for mode in MODES if mode is not DISCRETE]
INTRINSICS = intrinsics_from_fov(math.radians(70), 64, 96)

numbers = st.floats(-2, 2)
poses = st.lists(numbers, min_size=6, max_size=6).map(se3_exp)
modes = st.sampled_from(MODES)
seeds = st.integers(0, 2**32 - 1)
opposites = [("forward", "back"), ("left", "right"), ("turn left", "turn right"), ("look up", "look down")]


def act(name, pose, mode=DISCRETE):
    return mode.target(DiscreteAction.names.index(name), pose)


def elevation(pose):
    """Radians that the camera looks above level; y points down."""
    return math.asin(np.clip(-pose[1, 2], -1, 1))


def level_pose(turn, look_up):
    """A camera turned right, then tilted up: no roll. Built by SciPy's Euler angles."""
    return make_pose(Rotation.from_euler("YX", [turn, look_up]).as_matrix(), [1.0, 2.0, 3.0])


def from_user(pose, axes):
    return camera_path_from(pose[None], INTRINSICS, axes=axes).world_from_camera[0]


# "se3"


def test_a_translation_goes_along_the_cameras_own_axes():
    # A camera that was turned right by 90 degrees looks along the world's x.
    turned = make_pose([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], [1, 2, 3])
    np.testing.assert_allclose(MODE.target([0, 0, 1, 0, 0, 0], turned)[:3, 3], [1.3, 2, 3], atol=1e-12)


def test_a_rotation_about_down_turns_the_camera_to_its_right():
    forward = MODE.target([0, 0, 0, 0, 1, 0], np.eye(4))[:3, 2]
    np.testing.assert_allclose(forward, [math.sin(math.radians(15)), 0, math.cos(math.radians(15))], atol=1e-12)


def test_a_rotation_about_right_turns_the_camera_up():
    assert MODE.target([0, 0, 0, 1, 0, 0], np.eye(4))[1, 2] == pytest.approx(-math.sin(math.radians(15)))


def test_numbers_beyond_one_count_as_one():
    np.testing.assert_array_equal(
        MODE.target([0, 0, 5, 0, -9, 0], np.eye(4)), MODE.target([0, 0, 1, 0, -1, 0], np.eye(4))
    )
    np.testing.assert_array_equal(PLANAR.target([7, 10**30, -2], np.eye(4)), PLANAR.target([1, 1, -1], np.eye(4)))


@pytest.mark.parametrize("axes", OPENCV_FROM_AXES)
@settings(deadline=None, max_examples=30)
@given(poses, st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_an_action_in_other_axes_leads_where_it_leads_in_those_axes(axes, users_pose, action):
    translation, rotation = 0.3 * np.array(action[:3]), math.radians(15) * np.array(action[3:])
    users_target = users_pose @ motion_from_action(translation, rotation)
    target = Se3Action(axes=axes, **LIMITS).target(action, from_user(users_pose, axes))
    np.testing.assert_allclose(target, from_user(users_target, axes), atol=1e-9)


@pytest.mark.parametrize(
    "axes, column, seen",
    [
        ("opengl", 4, "left"),  # right-handed about up
        ("blender", 3, "up"),  # right-handed about right
        ("ros", 5, "left"),  # REP 103: yaw is counter-clockwise seen from above
        ("ros", 4, "down"),  # REP 103: about left
        ("unreal", 5, "right"),  # yaw is clockwise seen from above
    ],
)
def test_a_rotation_in_other_axes_has_the_sense_that_it_has_there(axes, column, seen):
    x, y, _ = Se3Action(axes=axes, **LIMITS).target(np.eye(6)[column], np.eye(4))[:3, 2]
    sine = math.sin(math.radians(15))
    want = {"left": (-sine, 0), "right": (sine, 0), "up": (0, -sine), "down": (0, sine)}[seen]
    np.testing.assert_allclose((x, y), want, atol=1e-12)


@pytest.mark.parametrize(
    "axes, forward", [("opencv", 2), ("ros", 0), ("unreal", 0), ("opengl", (2, -1)), ("blender", (2, -1))]
)
def test_forward_in_other_axes_is_forward(axes, forward):
    column, sign = forward if isinstance(forward, tuple) else (forward, 1)
    target = Se3Action(axes=axes, **LIMITS).target(sign * np.eye(6)[column], np.eye(4))
    np.testing.assert_allclose(target, make_pose(np.eye(3), [0, 0, 0.3]), atol=1e-12)


# "planar"


@settings(deadline=None, max_examples=30)
@given(st.floats(-math.pi, math.pi), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_a_planar_action_of_a_level_camera_is_the_se3_action_of_the_same_motion(turn, action):
    forward, strafe, yaw = action
    pose = level_pose(turn, 0.0)
    want = MODE.target([strafe, 0, forward, 0, yaw, 0], pose)
    np.testing.assert_allclose(PLANAR.target(action, pose), want, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(poses, seeds)
def test_planar_actions_keep_height_pitch_and_roll(start, seed):
    pose = start
    for action in np.random.default_rng(seed).uniform(-1, 1, (40, 3)):
        pose = PLANAR.target(action, pose)
    assert pose[1, 3] == start[1, 3]
    # The vertical as the camera sees it is all that pitch and roll are.
    np.testing.assert_allclose(pose[1, :3], start[1, :3], atol=1e-12)


@pytest.mark.parametrize("look_up", [-60, 0, 30, 89])
def test_a_pitched_camera_goes_forward_level_and_at_full_speed(look_up):
    turn = math.radians(40)
    pose = level_pose(turn, math.radians(look_up))
    way = PLANAR.target([1, 0, 0], pose)[:3, 3] - pose[:3, 3]
    np.testing.assert_allclose(way, [0.3 * math.sin(turn), 0, 0.3 * math.cos(turn)], atol=1e-12)


@pytest.mark.parametrize("look_up", [-90, 90])
def test_a_camera_that_looks_straight_up_or_down_goes_where_it_would_look_if_it_were_level(look_up):
    turn = math.radians(-70)
    pose = level_pose(turn, math.radians(look_up))
    way = PLANAR.target([1, 0, 0], pose)[:3, 3] - pose[:3, 3]
    np.testing.assert_allclose(way, [0.3 * math.sin(turn), 0, 0.3 * math.cos(turn)], atol=1e-9)


# "discrete"


@settings(deadline=None, max_examples=30)
@given(st.floats(-math.pi, math.pi), st.floats(-0.75, 0.75), st.sampled_from(opposites))
def test_opposite_discrete_actions_undo_each_other(turn, look_up, pair):
    pose = level_pose(turn, look_up)
    for first, second in (pair, pair[::-1]):
        assert np.abs(act(first, pose) - pose).max() > 0.01
        np.testing.assert_allclose(act(second, act(first, pose)), pose, atol=1e-9)


def test_stop_stays():
    pose = level_pose(0.3, -0.2)
    np.testing.assert_array_equal(act("stop", pose), pose)


def test_a_walk_around_a_square_ends_where_it_began():
    pose = start = level_pose(0.3, -0.4)
    corners = []
    for _ in range(4):
        pose = act("forward", act("forward", pose))
        corners.append(pose[:3, 3])
        for _ in range(6):  # of 15 degrees
            pose = act("turn right", pose)
    np.testing.assert_allclose(pose, start, atol=1e-9)
    sides = np.linalg.norm(np.diff([*corners, corners[0]], axis=0), axis=1)
    np.testing.assert_allclose(sides, 0.6)


def test_discrete_actions_do_what_they_are_called():
    for name, way in {"forward": (0, 0, 0.3), "back": (0, 0, -0.3), "left": (-0.3, 0, 0), "right": (0.3, 0, 0)}.items():
        np.testing.assert_allclose(act(name, np.eye(4)), make_pose(np.eye(3), way), atol=1e-12)
    sine = math.sin(math.radians(15))
    views = {"turn left": (-sine, 0), "turn right": (sine, 0), "look up": (0, -sine), "look down": (0, sine)}
    for name, view in views.items():
        np.testing.assert_allclose(act(name, np.eye(4))[:2, 2], view, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 8), max_size=60), st.floats(0, math.pi / 2))
def test_discrete_actions_from_level_never_roll_nor_climb_nor_look_beyond_max_pitch(actions, max_pitch):
    mode, pose = DiscreteAction(max_pitch=max_pitch), np.eye(4)
    for action in actions:
        pose = mode.target(action, pose)
        assert abs(pose[1, 0]) < 1e-12  # the camera's right stays level
        assert pose[1, 1] > -1e-12  # and its top above its bottom
        assert pose[1, 3] == 0
        # asin is as inaccurate as this near straight up.
        assert abs(elevation(pose)) <= max_pitch + 1e-7


@pytest.mark.parametrize("name, sign", [("look up", 1), ("look down", -1)])
def test_a_look_stops_at_max_pitch_exactly_and_comes_back_by_whole_steps(name, sign):
    mode, pose = DiscreteAction(max_pitch=math.radians(40), **LIMITS), level_pose(1.0, 0.0)
    seen = []
    for _ in range(5):
        pose = act(name, pose, mode)
        seen.append(math.degrees(elevation(pose)))
    np.testing.assert_allclose(seen, sign * np.array([15, 30, 40, 40, 40]), atol=1e-9)
    back = act("look down" if sign > 0 else "look up", pose, mode)
    assert math.degrees(elevation(back)) == pytest.approx(sign * 25)


@pytest.mark.parametrize("look_up", [80, 170])  # 170: upside down, over the top
def test_a_camera_beyond_max_pitch_is_not_thrown_back_but_may_come_back(look_up):
    pose = level_pose(0.2, math.radians(look_up))
    np.testing.assert_allclose(act("look up", pose), pose, atol=1e-12)
    np.testing.assert_allclose(act("look down", pose), level_pose(0.2, math.radians(look_up - 15)), atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(poses, st.sampled_from(["look up", "look down"]))
def test_a_look_never_leads_beyond_max_pitch_however_the_camera_is_rolled(pose, name):
    before = abs(elevation(pose))
    assume(before < math.radians(60) and pose[1, 1] > 0)
    assert abs(elevation(act(name, pose))) <= math.radians(60) + 1e-9


@pytest.mark.parametrize(
    "action", [3, np.int64(3), np.uint8(3), np.array(3), np.array([3]), np.array([[3]], np.int32), torch.tensor(3)]
)
def test_every_form_of_a_whole_number_is_a_discrete_action(action):
    np.testing.assert_array_equal(DISCRETE.target(action, np.eye(4)), act("left", np.eye(4)))


@pytest.mark.parametrize(
    "action",
    [-1, 9, 10**30, 3.0, np.float32(3), True, np.True_, np.array([True]), None, "3", "left", b"3", math.nan, 3j]
    + [np.array([1, 2]), np.array([], int), np.array([3.0]), [], [[], [1]], {}, {3}, object()],
)
def test_what_is_no_discrete_action_is_refused(action):
    with pytest.raises(ValueError, match=r"action must be a whole number in 0\.\.8"):
        DISCRETE.target(action, np.eye(4))


# "absolute"


def absolute_action(pose, axes="opencv"):
    """The action that names an OpenCV pose, in the user's axes."""
    users_pose = poses_in_axes(camera_path_from(pose[None], INTRINSICS), axes=axes)[0]
    return np.concatenate([users_pose[:3, 3], quaternion_from_matrix(users_pose[:3, :3])])


@settings(deadline=None, max_examples=30)
@given(poses, poses, st.floats(0.1, 1), st.floats(0.1, math.pi / 2), st.sampled_from(sorted(OPENCV_FROM_AXES)))
def test_an_absolute_action_comes_nearer_by_its_limits_until_it_is_there(
    start, goal, max_translation, max_rotation, axes
):
    mode = AbsoluteAction(max_translation=max_translation, max_rotation=max_rotation, axes=axes)
    action = absolute_action(goal, axes)
    distance = float(np.linalg.norm(goal[:3, 3] - start[:3, 3]))
    angle = float(rotation_distance(start, goal))
    num_steps = math.ceil(max(distance / max_translation, angle / max_rotation))
    pose = start
    for step in range(1, num_steps + 1):
        pose = mode.target(action, pose)
        left = np.linalg.norm(goal[:3, 3] - pose[:3, 3])
        assert left == pytest.approx(max(0.0, distance - step * max_translation), abs=1e-7)
        assert rotation_distance(pose, goal) == pytest.approx(max(0.0, angle - step * max_rotation), abs=1e-7)
    np.testing.assert_allclose(pose, goal, atol=1e-7)
    np.testing.assert_allclose(mode.target(action, pose), goal, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(poses, st.lists(st.floats(-20, 20), min_size=7, max_size=7), st.sampled_from(sorted(OPENCV_FROM_AXES)))
def test_an_absolute_action_never_goes_farther_than_its_limits(pose, action, axes):
    assume(np.abs(action[3:]).max() > 1e-3)
    target = AbsoluteAction(axes=axes, **LIMITS).target(action, pose)
    assert np.linalg.norm(target[:3, 3] - pose[:3, 3]) <= 0.3 + 1e-9
    assert rotation_distance(pose, target) <= math.radians(15) + 1e-9


@settings(deadline=None, max_examples=30)
@given(poses, poses, st.floats(1e-3, 1e200))
def test_a_quaternion_means_the_same_negated_and_at_any_length(start, goal, length):
    # Just half a turn has two shortest ways.
    assume(rotation_distance(start, goal) < math.pi - 1e-3)
    action = absolute_action(goal)
    want = ABSOLUTE.target(action, start)
    for factor in (-1.0, length):
        scaled = np.concatenate([action[:3], factor * action[3:]])
        np.testing.assert_allclose(ABSOLUTE.target(scaled, start), want, atol=1e-7)


def test_a_camera_that_may_only_turn_or_only_move_does_so():
    goal = level_pose(math.radians(10), 0.0)
    here = np.eye(4)
    turned = AbsoluteAction(max_translation=0).target(absolute_action(goal), here)
    np.testing.assert_allclose(turned, make_pose(goal[:3, :3], [0, 0, 0]), atol=1e-12)
    np.testing.assert_array_equal(
        AbsoluteAction(max_translation=0, max_rotation=0).target([0, 0, 0, 1, 0, 0, 0], here), here
    )
    moved = AbsoluteAction(max_translation=9, max_rotation=0).target(absolute_action(goal), here)
    np.testing.assert_allclose(moved, make_pose(np.eye(3), goal[:3, 3]), atol=1e-12)


def test_positions_beyond_the_bound_are_clipped():
    mode = AbsoluteAction(max_translation=100.0, bound=2.0)
    np.testing.assert_allclose(mode.target([9, -3, 1, 1, 0, 0, 0], np.eye(4))[:3, 3], [2, -2, 1])


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [0, 1e-9, 0, -1e-9], [-0.0, 5e-324, 0, 0]])
def test_a_quaternion_of_zero_is_refused(quaternion):
    with pytest.raises(ValueError, match="action must end in a quaternion"):
        ABSOLUTE.target([0, 0, 0, *quaternion], np.eye(4))


@pytest.mark.parametrize("bound", [0.5, 10.0, MAX_BOUND])
def test_the_absolute_space_holds_positions_to_the_bound_and_unit_quaternions(bound):
    space = AbsoluteAction(bound=bound).space
    assert space.dtype == np.float32
    np.testing.assert_array_equal(space.high, np.float32([bound] * 3 + [1] * 4))
    np.testing.assert_array_equal(space.low, -space.high)


# Every mode


@settings(deadline=None, max_examples=100)
@given(modes, poses, seeds)
def test_every_sample_of_a_space_leads_to_a_rigid_pose_and_modifies_nothing(mode, pose, seed):
    space = mode.space
    space.seed(seed)
    action = space.sample()
    kept_action, kept_pose = copy.deepcopy(action), pose.copy()
    target = mode.target(action, pose)
    assert target.dtype == np.float64 and target.shape == (4, 4)
    np.testing.assert_array_equal(target[3], [0, 0, 0, 1])
    np.testing.assert_allclose(target[:3, :3] @ target[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(target[:3, :3]) > 0
    np.testing.assert_array_equal(action, kept_action)
    np.testing.assert_array_equal(pose, kept_pose)
    assert not np.shares_memory(target, pose)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([MODE, PLANAR, DISCRETE]), poses, seeds)
def test_no_axis_moves_or_turns_farther_than_the_limits(mode, pose, seed):
    space = mode.space
    space.seed(seed)
    action = space.sample() if mode is DISCRETE else 3 * space.sample()
    way = np.linalg.inv(pose) @ mode.target(action, pose)
    axes = {MODE: 3, PLANAR: 2, DISCRETE: 1}[mode]
    assert np.linalg.norm(way[:3, 3]) <= math.sqrt(axes) * 0.3 + 1e-9
    turned = Rotation.from_matrix(way[:3, :3]).magnitude()
    assert turned <= math.sqrt(3 if mode is MODE else 1) * math.radians(15) + 1e-9


def test_neither_action_nor_pose_is_modified():
    for mode in VECTOR_MODES:
        action, pose = np.full(mode.space.shape, 20.0), np.eye(4)
        mode.target(action, pose)
        assert (action == 20).all() and (pose == np.eye(4)).all()


@pytest.mark.parametrize("mode", VECTOR_MODES, ids=repr)
def test_what_is_no_vector_of_numbers_is_refused(mode):
    length = mode.space.shape[0]
    wrong = [
        np.zeros(length - 1),
        np.zeros((1, length)),
        0.0,
        [0.5] * (length + 1),
        [],
        "left",
        None,
        [[], [1]],
        {},
        object(),
    ]
    wrong += [np.full(length, np.nan), [0.5] * (length - 1) + [np.inf], [None] * length, ["1"] * length, b"1" * length]
    wrong += [[1j] * length, np.ones(length, complex), np.ones(length, "m8[s]"), [10**400] * length]
    wrong += [torch.ones(length, requires_grad=True)]
    for action in wrong:
        with pytest.raises(ValueError, match="^action must"):
            mode.target(action, np.eye(4))


atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
anything = st.recursive(atoms, lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner))
vectors = st.lists(st.floats() | st.integers() | st.fractions(), min_size=3, max_size=7)


@settings(deadline=None, max_examples=150)
@given(modes, anything | vectors | vectors.map(tuple))
def test_anything_at_all_is_a_rigid_pose_or_a_value_error_about_the_action(mode, action):
    try:
        target = mode.target(action, np.eye(4))
    except ValueError as error:
        assert str(error).startswith("action must")
    else:
        check_poses("target", target)


def test_modes_compare_copy_pickle_and_print():
    for mode in MODES:
        assert pickle.loads(pickle.dumps(mode)) == copy.deepcopy(mode) == mode
        assert eval(repr(mode)) == mode
        assert mode.space == mode.space
        # Each env seeds its own.
        assert mode.space is not mode.space
    assert len(set(MODES)) == len(MODES)
    assert Se3Action() == MODE != Se3Action(max_translation=0.2) and PLANAR != MODE


@pytest.mark.parametrize("make", [Se3Action, PlanarAction, DiscreteAction, AbsoluteAction])
@pytest.mark.parametrize(
    "limits",
    [{"max_translation": value} for value in (-1, math.nan, math.inf, "0.3", None)]
    + [{"max_rotation": value} for value in (15, -0.1, math.nan, "15", None)],
)
def test_limits_out_of_range_are_refused(make, limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        make(**limits)


@pytest.mark.parametrize(
    "make, setting",
    [(Se3Action, {"axes": axes}) for axes in ("OpenCV", "", None, [], 3)]
    + [(AbsoluteAction, {"axes": "maya"}), (DiscreteAction, {"max_pitch": 60}), (DiscreteAction, {"max_pitch": -1})]
    + [(AbsoluteAction, {"bound": bound}) for bound in (0, -1, math.nan, math.inf, 1e7, "10", None)],
)
def test_settings_out_of_range_are_refused(make, setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be"):
        make(**setting)


# Names


@pytest.mark.parametrize(
    "name, kind",
    [("se3", Se3Action), ("planar", PlanarAction), ("discrete", DiscreteAction), ("absolute", AbsoluteAction)],
)
def test_a_name_makes_its_mode_with_the_limits(name, kind):
    assert make_action_mode(name, max_translation=0.1, max_rotation=0.2) == kind(max_translation=0.1, max_rotation=0.2)
    with pytest.raises(ValueError, match="max_rotation"):
        make_action_mode(name, max_translation=0.1, max_rotation=20)


def test_an_object_with_space_and_target_is_a_mode_as_it_is():
    own = SimpleNamespace(space=gym.spaces.Discrete(2), target=lambda action, pose: pose)
    for mode in (own, PLANAR):
        assert make_action_mode(mode, max_translation=9, max_rotation=9) is mode


@pytest.mark.parametrize("mode", ["SE3", "", "joystick", None, 3, [], PlanarAction, SimpleNamespace(space=None)])
def test_what_is_no_mode_is_refused_with_the_choices(mode):
    with pytest.raises(ValueError, match="^action_mode must be one of 'se3', 'planar', 'discrete', 'absolute' or"):
        make_action_mode(mode, **LIMITS)


# docs/actions.md


@pytest.fixture(scope="module")
def page():
    """What all Python blocks of the page define, run one after the other."""
    names = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


def test_the_robot_of_the_page_rolls_as_two_wheels_do(page):
    mode = page["Wheels"]()
    np.testing.assert_allclose(mode.target([1, 1], np.eye(4)), make_pose(np.eye(3), [0, 0, 0.3]), atol=1e-12)
    np.testing.assert_allclose(mode.target([1, -1], np.eye(4))[:3, 3], 0, atol=1e-12)
    # Where the left wheel stands still, it is what the robot turns about, to the left.
    left_wheel = np.array([-0.2, 0, 0, 1])
    target = mode.target([0, 1], np.eye(4))
    np.testing.assert_allclose(target @ left_wheel, left_wheel, atol=1e-12)
    assert target[0, 2] == pytest.approx(-math.sin(0.3 / 0.4))


def test_the_mode_of_the_page_has_ten_lines_at_most():
    (lines,) = re.findall(r"class Wheels:\n.*?\n\n\n", PAGE.read_text(), flags=re.DOTALL)
    assert len(lines.strip().splitlines()) <= 10


def test_what_the_page_says_of_ros_and_of_pitch_is_so(page):
    assert page["base_link"].target(page["left_turn"], np.eye(4))[0, 2] < 0
    pose = np.eye(4)
    for _ in range(10):
        pose = act("look up", pose, page["look_far_up"])
    assert math.degrees(elevation(pose)) == pytest.approx(80)
