import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from aether_env.camera import make_pose, motion_from_action
from aether_env.conventions import FAR_DEPTH
from aether_env.trajectory import Similarity
from aether_env.world_model.windows import (
    DepthJoiner,
    DisparityJoiner,
    FadeJoiner,
    PathJoiner,
    cut,
    join_disparity,
    join_paths,
    windows_of,
)
from training.evaluation.datasets import windows as public_windows

STARTS, LENGTH, SCALES = (0, 4, 5, 8), 7, (2.0, 0.5, 9.0, 1.0)
NUM = STARTS[-1] + LENGTH


def walk(num: int = NUM) -> np.ndarray:
    rng = np.random.default_rng(0)
    motions = motion_from_action(rng.normal(size=(num, 3)) * 0.3, rng.normal(size=(num, 3)) * 0.4)
    poses = [np.eye(4)]
    for motion in motions[1:]:
        poses.append(poses[-1] @ motion)
    return np.stack(poses)


def disparity_video(num: int = NUM) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.01, 1, (num, 3, 4))


def cut_at(video: np.ndarray) -> list[np.ndarray]:
    return [video[start : start + LENGTH] for start in STARTS]


def elsewhere(poses: np.ndarray, scale: float, turn: float = 40.0) -> np.ndarray:
    rotation = Rotation.from_euler("zyx", [turn, 2 * turn, -turn], degrees=True).as_matrix()
    return Similarity(scale=scale, rotation=rotation, translation=np.array([3.0, -1.0, 2.0])).apply_to_poses(poses)


def joined(joiner, windows, starts=STARTS, **kwargs) -> np.ndarray:
    parts = [joiner.add(window, start, **kwargs) for window, start in zip(windows, starts, strict=True)]
    return np.concatenate([*parts, joiner.finish()])


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(2, 41), st.data())
def test_windows_cover_every_frame_and_neighbours_share_some(num, length, data):
    stride = data.draw(st.integers(1, length - 1))
    whole = cut(num, length, stride)
    assert whole.starts[0] == 0 and max(whole.windows[-1]) == num - 1
    assert all(0 < b - a <= stride for a, b in zip(whole.starts, whole.starts[1:], strict=False))
    if num >= length:
        # Laid as the public evaluation lays them.
        assert [list(window) for window in whole.windows] == [list(w) for w in public_windows(num, length, stride)]
        assert whole.padded == 0
    else:
        assert (whole.starts, whole.padded) == ((0,), length - num)


@settings(deadline=None)
@given(st.integers(1, 90), st.sampled_from([(5,), (17, 25, 33, 41), (41, 17)]), st.integers(1, 4))
def test_a_stream_is_cut_like_a_video_of_known_length(num, lengths, stride):
    whole = cut(num, lengths, stride)
    found = list(windows_of(iter(range(num)), lengths, stride))
    assert tuple(window.start for window in found) == whole.starts
    for window, frames in zip(found, whole.windows, strict=True):
        assert window.padded == whole.padded
        assert window.frames == list(frames) + [num - 1] * whole.padded


@pytest.mark.parametrize(
    "num, length, padded", [(1, 17, 16), (17, 17, 0), (18, 25, 7), (33, 33, 0), (40, 41, 1), (90, 41, 0)]
)
def test_a_short_video_takes_the_next_length_that_the_model_knows(num, length, padded):
    whole = cut(num, (17, 25, 33, 41), 8)
    assert (whole.length, whole.padded) == (length, padded)


def test_what_is_done_is_told_with_its_numbers():
    assert cut(17, 17, 8).notes() == ()
    (padded,) = cut(12, 17, 8).notes()
    assert padded.what == "padded" and padded.numbers == {"frames": 12, "length": 17, "repeated": 5}
    assert "12 frames" in padded.text and "5 times" in padded.text
    (many,) = cut(128, 17, 8).notes()
    assert many.what == "windowed" and many.numbers == {"frames": 128, "length": 17, "windows": 15, "stride": 8}


def test_a_stream_is_never_held_whole():
    class Frame:
        alive: weakref.WeakSet = weakref.WeakSet()

        def __init__(self):
            self.alive.add(self)

    most = 0
    for window in windows_of((Frame() for _ in range(500)), 10, 4):
        most = max(most, len(Frame.alive))
        del window
    assert most <= 12


@pytest.mark.parametrize(
    "num, lengths, stride, message",
    [
        (0, 17, 8, "num_frames"),
        (20, (), 8, "lengths"),
        (20, 0, 8, "lengths"),
        (20, 17, 0, "stride must be in 1..16"),
        (20, 17, 17, "stride must be in 1..16"),
    ],
)
def test_cuts_that_make_no_sense_are_refused(num, lengths, stride, message):
    with pytest.raises(ValueError, match=message):
        cut(num, lengths, stride)
    if num:
        with pytest.raises(ValueError, match=message):
            list(windows_of(range(num), lengths, stride))


def test_a_stream_without_frames_is_refused():
    with pytest.raises(ValueError, match="no frame"):
        list(windows_of(iter(()), 17, 8))


def test_disparity_in_a_unit_of_each_windows_own_becomes_one_video_in_the_first_ones():
    true = disparity_video()
    true[:, 0, 0] = 0.0  # infinitely far, and so it stays
    windows = [scale * window for scale, window in zip(SCALES, cut_at(true), strict=True)]
    for found in (join_disparity(windows, STARTS), joined(DisparityJoiner(), windows)):
        np.testing.assert_allclose(found, SCALES[0] * true, rtol=1e-12)


def test_depth_in_a_unit_of_each_windows_own_becomes_one_video_in_the_first_ones():
    true = 1 / (0.2 + disparity_video())  # in no unit as far as the sky
    windows = [scale * window / SCALES[0] for scale, window in zip(SCALES, cut_at(true), strict=True)]
    for window in windows:
        window[:, 0] = FAR_DEPTH
    joiner = DepthJoiner()
    parts, scales = [], []
    for window, start in zip(windows, STARTS, strict=True):
        parts.append(joiner.add(window, start))
        scales.append(joiner.scale)
    found = np.concatenate([*parts, joiner.finish()])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 1:], true[:, 1:], rtol=1e-6)
    # The sky stays the sky, whatever happens to lengths.
    np.testing.assert_array_equal(found[:, 0], FAR_DEPTH)
    np.testing.assert_allclose(scales, [1.0, *(SCALES[0] / np.array(SCALES[1:]))])


def test_what_one_window_takes_for_the_sky_does_not_disturb_the_scale():
    true = disparity_video()
    first, second = true[:LENGTH].copy(), 3 * true[4 : 4 + LENGTH]
    first[:, 1] = 0.0
    joiner = DisparityJoiner()
    joiner.add(first, 0), joiner.add(second, 4)
    assert joiner.scale == pytest.approx(1 / 3)


@pytest.mark.parametrize("turn", [0, 10, 45, 90])
def test_paths_in_a_world_and_a_unit_of_each_windows_own_become_one_path_in_the_first_ones(turn):
    true = walk()
    windows = cut_at(true)
    windows[1:] = [elsewhere(window, scale, turn) for window, scale in zip(windows[1:], SCALES[1:], strict=True)]
    for found in (join_paths(windows, STARTS), joined(PathJoiner(), windows)):
        np.testing.assert_allclose(found, true, atol=1e-9)


def test_frames_come_back_as_soon_as_no_later_window_can_change_them():
    true = disparity_video(40)
    joiner, given_back = DisparityJoiner(), 0
    for start in range(0, 33, 3):
        done = joiner.add(true[start : start + LENGTH], start)
        given_back += len(done)
        assert given_back == start
        np.testing.assert_allclose(done, true[start - len(done) : start], rtol=1e-12)
        assert joiner._tail is not None and len(joiner._tail) == LENGTH
    np.testing.assert_allclose(joiner.finish(), true[30:37], rtol=1e-12)
    # As new.
    assert len(joiner.add(true[:LENGTH], 0)) == 0


def test_windows_that_disagree_are_faded_linearly_into_each_other():
    # Two equal pixels, one of which the second window sees twice as near: least squares brings 1, 2 to 0.6, 1.2.
    first, second = np.ones((4, 1, 2)), np.tile([1.0, 2.0], (4, 1, 1))
    weight = np.array([0, 0, 1 / 3, 2 / 3, 1, 1])
    expected = np.stack([1 - 0.4 * weight, 1 + 0.2 * weight], axis=-1)
    np.testing.assert_allclose(joined(DisparityJoiner(), [first, second], (0, 2))[:, 0], expected)
    np.testing.assert_allclose(joined(FadeJoiner(), [np.zeros((4, 3, 3)), np.ones((4, 3, 3))], (0, 2))[:, 1, 1], weight)


def test_paths_that_disagree_are_faded_in_place_and_turn():
    still = np.tile(np.eye(4), (5, 1, 1))
    # Turned by 40 degrees to and fro: no alignment can remove it, and none is better than none.
    angle = np.deg2rad([40, -40, 0, 0, 0])
    turned = make_pose(Rotation.from_rotvec(angle[:, None] * [0, 1, 0]).as_matrix(), np.zeros((5, 3)))
    found = Rotation.from_matrix(joined(PathJoiner(), [still, turned], (0, 3))[:, :3, :3]).as_rotvec(degrees=True)[:, 1]
    np.testing.assert_allclose(found, [0, 0, 0, 40 / 3, -40 * 2 / 3, 0, 0, 0], atol=1e-9)


def test_a_scale_that_is_known_is_kept():
    true, disparity = walk(), disparity_video()
    path, depth = PathJoiner(), DepthJoiner()
    path.add(true[:LENGTH], 0), depth.add(1 / disparity[:LENGTH], 0)
    path.add(elsewhere(true[4:11], 1.5), 4, scale=0.5), depth.add(1 / disparity[4:11] / 3, 4, scale=0.5)
    assert path.scale == 0.5 and depth.scale == 0.5
    np.testing.assert_allclose(depth.finish()[3:], np.minimum(1 / disparity[7:11] / 6, FAR_DEPTH), rtol=1e-6)
    ahead = np.linalg.norm(np.diff(path.finish()[3:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(ahead, 0.75 * np.linalg.norm(np.diff(true[7:11, :3, 3], axis=0), axis=1))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_where_the_camera_stands_still_a_scale_from_elsewhere_keeps_its_steps_right(noise):
    rng = np.random.default_rng(5)
    true = walk()
    true[:LENGTH] = true[LENGTH - 1]  # the first window stands, the second begins to move when they part
    windows = [true[:LENGTH].copy(), elsewhere(true[3:], 4.0)]
    for window in windows:
        window[:, :3, 3] += noise * rng.normal(size=(len(window), 3))
    way = np.linalg.norm(np.diff(true[LENGTH:, :3, 3], axis=0), axis=1)

    def moved(**kwargs):
        joiner = PathJoiner()
        joiner.add(windows[0], 0), joiner.add(windows[1], 3, **kwargs)
        return np.linalg.norm(np.diff(joiner.finish()[LENGTH - 3 :, :3, 3], axis=0), axis=1)

    np.testing.assert_allclose(moved(scale=0.25), way, atol=5 * noise + 1e-9)
    assert not np.allclose(moved(), way, rtol=0.2)


def test_what_was_given_is_left_as_it_was():
    windows, paths = cut_at(disparity_video()), cut_at(walk())
    copies = [window.copy() for window in (*windows, *paths)]
    for done in (join_disparity(windows, STARTS), join_paths(paths, STARTS)):
        done[:] = 7.0
    one = DisparityJoiner()
    one.add(windows[0], 0)
    one.finish()[:] = 7.0
    assert all(np.array_equal(a, b) for a, b in zip(copies, (*windows, *paths), strict=True))


@pytest.mark.parametrize("join, video", [(join_disparity, disparity_video()), (join_paths, walk())])
@pytest.mark.parametrize(
    "starts, named",
    [
        ((), "one a window"),
        ((0, 1), "one a window"),
        ((1, 2, 3, 4), "begin at frame 0, got 1"),
        ((0, 7, 8, 9), "window 1 .* begin at frame 0 to 6"),
        ((0, 4, 3, 5), "window 2 .* begin at frame 4 to 10"),
    ],
)
def test_windows_that_do_not_cover_a_video_are_refused(join, video, starts, named):
    with pytest.raises(ValueError, match=named):
        join(cut_at(video), starts)


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(ValueError, match="a window before finish"):
        PathJoiner().finish()
    with pytest.raises(ValueError, match="window 0 has no frames"):
        DisparityJoiner().add(np.zeros((0, 3, 4)), 0)
    with pytest.raises(ValueError, match="window 0 must be finite"):
        DisparityJoiner().add(np.full((3, 3, 4), np.nan), 0)
    with pytest.raises(ValueError, match="positive"):
        DepthJoiner().add(np.zeros((3, 3, 4)), 0)
    with pytest.raises(ValueError, match="window 0 .*rigid|window 0 .*bottom"):
        PathJoiner().add(2 * walk(), 0)
