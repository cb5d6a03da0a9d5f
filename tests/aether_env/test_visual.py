import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from aether_env import visual


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """A grey ramp that moves by one pixel per frame."""
    x = (np.arange(width) + np.arange(count)[:, None, None]) * 8 % 256
    return np.broadcast_to(x[..., None], (count, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "scale"), [(16, 24, 2), (15, 23, 1), (15, 23, 3)])
def test_a_written_video_has_the_frames_it_was_given_at_even_sides(tmp_path, height, width, scale):
    frames = pictures(7, height, width)
    path = visual.write_video(tmp_path / "new" / "walk.mp4", iter(frames), fps=12, scale=scale)
    video = iio.imread(path)
    assert video.shape == (7, -(-height * scale // 2) * 2, -(-width * scale // 2) * 2, 3)
    assert iio.immeta(path)["fps"] == pytest.approx(12)
    seen = video[:, scale // 2 : height * scale : scale, scale // 2 : width * scale : scale].astype(int)
    assert np.abs(seen - frames).mean() < 6
    assert [p.name for p in path.parent.iterdir()] == ["walk.mp4"]


def test_small_frames_become_a_video_that_can_be_watched(tmp_path):
    video = iio.imread(visual.write_video(tmp_path / "a.mp4", pictures(2, 64, 96), fps=12))
    assert video.shape == (2, 256, 384, 3)


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        ("a.avi", pictures(2, 16, 24), 12, "must end in .mp4"),
        ("a.mp4", pictures(0, 16, 24), 12, "no frame"),
        ("a.mp4", pictures(2, 16, 24), 0, "fps must be positive"),
        ("a.mp4", pictures(2, 16, 24).astype(float), 12, "uint8 RGB"),
        ("a.mp4", [pictures(1, 16, 24)[0], pictures(1, 16, 26)[0]], 12, "one size"),
    ],
)
def test_bad_videos_are_refused_and_leave_no_file(tmp_path, name, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        visual.write_video(tmp_path / name, frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_a_written_png_is_read_back_as_it_was(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(visual.write_png(tmp_path / "a.png", picture))), picture)
    with pytest.raises(ValueError, match="must end in .png"):
        visual.write_png(tmp_path / "a.jpg", picture)


def test_depth_goes_from_red_over_green_to_blue():
    near_to_far = visual.colour_depth(np.array([[1.0, 2.5, 5.0, 20.0, 1000.0]]), near=1.0)[0].astype(int)
    red, green, blue = near_to_far.T
    assert red[0] == red[:1].max() > 100 and red[0] > green[0] and red[0] > blue[0]
    assert green[2] > red[4] and np.argmax(green) in (1, 2, 3)
    assert blue[4] > red[4] - 1 and blue[4] > green[4]


def test_no_two_depths_of_one_scale_share_a_colour_and_order_is_kept():
    scale = visual.colour_depth(1.0 / np.linspace(1.0, 0.01, 60)[None] ** 2, near=1.0, far=10000.0)[0]
    assert len(np.unique(scale, axis=0)) == 60
    # The turbo colours, from far to near, as a table: a colour's place in it is its nearness.
    table = visual.colour_depth(1.0 / np.linspace(0.0, 1.0, 256)[None, 1:] ** 2, near=1.0)[0].tolist()
    place = [table.index(colour) for colour in visual.colour_depth(np.geomspace(1, 50, 40)[None], near=1.0)[0].tolist()]
    assert place == sorted(place, reverse=True)


def test_colours_do_not_depend_on_the_rest_of_the_video_once_near_is_given():
    depth = np.random.default_rng(0).uniform(1, 9, (4, 6, 8))
    np.testing.assert_array_equal(visual.colour_depth(depth, 1.0)[2], visual.colour_depth(depth[2], 1.0))


def test_unknown_depth_is_black_even_where_nothing_is_known():
    depth = np.array([[np.nan, np.inf], [0.0, 2.0]])
    colours = visual.colour_depth(depth)
    assert (colours[0] == 0).all() and (colours[1, 0] == 0).all() and colours[1, 1].any()
    assert (visual.colour_depth(np.full((2, 2), np.nan)) == 0).all()


@pytest.mark.parametrize(("near", "far"), [(0.0, 1.0), (2.0, 1.0), (np.nan, None), (-1.0, None)])
def test_a_range_of_depth_that_is_none_is_refused(near, far):
    with pytest.raises(ValueError, match="0 < near < far"):
        visual.colour_depth(np.ones((2, 2)), near, far)


def test_joined_pictures_keep_their_pixels():
    a, b = pictures(3, 4, 6), pictures(3, 4, 10)
    joined = visual.side_by_side(a, b, gap=2)
    assert joined.shape == (3, 4, 18, 3)
    np.testing.assert_array_equal(joined[:, :, :6], a)
    np.testing.assert_array_equal(joined[:, :, 8:], b)
    np.testing.assert_array_equal(visual.one_above_other(a, a)[:, 4:], a)
    with pytest.raises(ValueError, match="agree"):
        visual.side_by_side(pictures(3, 4, 6), pictures(3, 5, 6))


def test_a_contact_sheet_shows_every_frame_in_reading_order():
    frames = np.stack([np.full((10, 40, 3), value, np.uint8) for value in (50, 100, 150, 200, 250)])
    sheet = visual.contact_sheet(frames, columns=3, gap=0)
    assert sheet.shape == (20, 120, 3)
    assert [int(sheet[5 + 10 * (i // 3), 20 + 40 * (i % 3), 0]) for i in range(5)] == [50, 100, 150, 200, 250]
    captioned = visual.contact_sheet(frames, columns=3, captions=list("abcde"), gap=0)
    assert captioned.shape[0] > sheet.shape[0] and captioned.max() == 250
    with pytest.raises(ValueError, match="captions must be one for each"):
        visual.contact_sheet(frames, columns=3, captions=["a"])


def test_a_path_that_goes_right_is_drawn_to_the_right_of_one_that_goes_ahead():
    ahead, right = np.tile(np.eye(4), (2, 5, 1, 1))
    ahead[:, 2, 3] = right[:, 0, 3] = np.linspace(0, 1, 5)
    drawing = visual.paths_from_above({"a": ahead, "b": right}, 100, 100).astype(int)
    blue, orange = drawing[20:, :, 2] - drawing[20:, :, 0] > 60, drawing[20:, :, 0] - drawing[20:, :, 2] > 60
    assert np.argwhere(orange)[:, 1].mean() > np.argwhere(blue)[:, 1].mean() + 10
    assert np.argwhere(orange)[:, 0].mean() > np.argwhere(blue)[:, 0].mean() + 10
