from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_env.camera import invert_pose
from training.clip_sources import Wanted, render_seeds
from training.clips import Clip, ClipError, check_clip, nearest_frames, random_window
from training.record import Recording, record, report
from training.shards import validate_shards


@pytest.fixture(scope="module")
def rendered() -> Clip:
    """A walk through a true scene whose seed has moving things in view."""
    return render_seeds([18], Wanted(num_frames=25, fps=24.0, height=48, width=72), supersample=1)[0]


def reprojection_errors(clip: Clip, first: int, second: int) -> np.ndarray:
    """Return how much the depth of static points of one frame differs from that of another, relative, (N,)."""
    rows, columns = np.nonzero(clip.valid[first] & ~clip.moving[first])
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    points = np.linalg.inv(clip.intrinsics[first]) @ pixels * clip.depth[first, rows, columns]
    to_second = invert_pose(clip.world_from_camera[second]) @ clip.world_from_camera[first]
    points = to_second[:3, :3] @ points + to_second[:3, 3:]
    seen = clip.intrinsics[second] @ points
    column, row = np.floor(seen[:2] / seen[2]).astype(int)
    height, width = clip.size
    inside = (seen[2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row, depth = column[inside], row[inside], seen[2][inside]
    there = clip.valid[second, row, column] & ~clip.moving[second, row, column]
    return np.abs(clip.depth[second, row, column] / depth - 1)[there]


@pytest.mark.parametrize("size", [(48, 72), (24, 36), (40, 40), (18, 60), (30, 20)])
def test_depth_lands_on_depth_of_later_frames_after_crop_resize_and_resampling(rendered, size):
    clip = check_clip(rendered.window(13, 12.0).fitted(*size))
    assert clip.size == size and len(clip) == 13 and clip.fps == 12.0
    assert np.linalg.norm(clip.world_from_camera[6, :3, 3]) > 0.1, "the camera must move for this to mean anything"
    errors = np.concatenate([reprojection_errors(clip, 0, 6), reprojection_errors(clip, 12, 3)])
    assert len(errors) > 0.2 * size[0] * size[1]
    assert np.median(errors) < 0.03  # pixels are as large as that


def test_reprojection_notices_intrinsics_that_did_not_follow_the_crop(rendered):
    clip = rendered.fitted(40, 40)
    wrong = replace(clip, intrinsics=rendered.intrinsics)
    right, off = (np.median(reprojection_errors(c, 0, 12)) for c in (clip, wrong))
    assert off > 3 * right


def test_masks_and_depth_of_a_fitted_clip_are_those_of_the_nearest_pixel(rendered):
    clip = rendered.fitted(24, 36)
    # Two pixels become one: its centre is a corner of the four, the nearest is taken to be the lower right one.
    for name in ("depth", "valid", "moving"):
        np.testing.assert_array_equal(getattr(clip, name), getattr(rendered, name)[:, 1::2, 1::2])
    wide = rendered.fitted(24, 72)
    np.testing.assert_array_equal(wide.depth, rendered.depth[:, 12:36])
    assert wide.intrinsics[0, 1, 2] == rendered.intrinsics[0, 1, 2] - 12
    np.testing.assert_array_equal(wide.rgb, rendered.rgb[:, 12:36])


def test_the_simulator_says_what_moves_by_itself(rendered):
    assert 0 < rendered.moving.mean() < 0.5
    still = render_seeds([18], Wanted(num_frames=1, fps=24.0, height=48, width=72), supersample=1)[0]
    assert not still.moving.any(), "in one frame nothing moves"


@given(
    num_frames=st.integers(1, 41),
    fps=st.sampled_from([8, 10, 12, 15, 24]),
    own_fps=st.floats(7.0, 61.0),
)
def test_every_frame_is_the_nearest_in_time_and_none_is_shown_twice(num_frames, fps, own_fps):
    times = np.arange(num_frames) / fps
    truth = [int(np.argmin(np.abs(np.arange(400) / own_fps - time))) for time in times]
    try:
        rows = nearest_frames(num_frames, fps, own_fps)
    except ClipError as error:
        assert error.reason == "too slow" and own_fps < fps
        assert len(set(truth)) < num_frames
        return
    assert (np.diff(rows) >= 1).all()
    # Where two frames are equally near, either is.
    np.testing.assert_allclose(np.abs(rows / own_fps - times), np.abs(np.array(truth) / own_fps - times), atol=1e-9)


def test_a_film_at_23_976_frames_per_second_is_fast_enough_for_24():
    assert nearest_frames(41, 24, 24000 / 1001).tolist() == list(range(41))


def test_windows_begin_anywhere_they_fit_equally_often():
    generator = np.random.default_rng(0)
    starts = [random_window(40, 24.0, 17, 12.0, generator)[0] for _ in range(1600)]
    counts = np.bincount(starts)
    assert len(counts) == 8  # frames 0..32 to 7..39
    assert np.abs(counts - 200).max() < 4 * np.sqrt(200)


def test_a_short_clip_is_refused_by_name(rendered):
    with pytest.raises(ClipError, match=f"{rendered.name} has 25 frames, 17 at 8 .* need 49") as caught:
        rendered.window(17, 8.0)
    assert caught.value.reason == "too short"


@pytest.mark.parametrize(
    "field, value",
    [
        ("rgb", np.zeros((25, 48, 72, 3), np.float32)),
        ("rgb", np.zeros((25, 48, 72), np.uint8)),
        ("depth", np.zeros((25, 48, 72), np.float64)),
        ("depth", np.zeros((25, 48, 72), np.float32)),
        ("valid", np.zeros((25, 48, 71), bool)),
        ("moving", None),
        ("world_from_camera", np.zeros((25, 4, 4))),
        ("world_from_camera", np.tile(np.eye(4), (24, 1, 1))),
        ("intrinsics", np.full((25, 3, 3), np.nan)),
        ("intrinsics", np.tile(np.eye(3), (25, 1, 1)) - 5 * np.eye(3, k=2)),
        ("fps", 0.0),
        ("fps", float("nan")),
        ("name", ""),
        ("name", "two\nlines"),
    ],
)
def test_a_clip_that_is_none_is_refused_by_the_name_of_its_field(rendered, field, value):
    check_clip(rendered)
    with pytest.raises(ValueError, match=field):
        check_clip(replace(rendered, **{field: value}))


def test_a_recording_goes_on_where_it_was_stopped_and_is_the_same(tmp_path):
    recording = Recording(clips=5, height=16, width=24, frames=5, clips_per_shard=2, supersample=1)
    assert record(tmp_path / "a", recording, batch=5, progress=False) == 3
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    (tmp_path / "a/clips-000001.tar").unlink()
    assert record(tmp_path / "a", recording, batch=1, progress=False) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert report(tmp_path / "a") == 0 and validate_shards(tmp_path / "a")[:2] == (3, 5)
    with pytest.raises(ValueError, match="another folder"):
        record(tmp_path / "a", replace(recording, seed=1), progress=False)
