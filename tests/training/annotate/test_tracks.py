"""Points on pictures that move in known ways: a painted plane before a camera, drawn exactly."""

import cv2
import numpy as np
import pytest

from training.annotate.tracks import Tracks, TrackSettings, follow

SIZE = (120, 160)


def paint(seed=0, side=400):
    """A picture with details at every size, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = sum(cv2.GaussianBlur(rng.normal(size=(side, side)), (0, 0), blur) * blur for blur in (1.5, 3, 8))
    grey = np.clip(128 + 45 * noise / noise.std(), 0, 255)
    return np.stack([grey, 0.7 * grey + 30, 255 - grey], axis=-1).astype(np.uint8)


def film(motions, picture=None, size=SIZE):
    """Return the video (T, H, W, 3) of a picture seen through motions (T, 3, 3), video pixel from picture pixel.

    Drawn at three times the size and averaged, as a camera's pixels average; pixel centres are at +0.5.
    """
    picture = paint() if picture is None else picture
    to_centre = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    frames = []
    for motion in motions:
        fine = np.diag([3.0, 3.0, 1.0]) @ motion
        large = cv2.warpPerspective(
            picture, to_centre @ fine @ np.linalg.inv(to_centre), (3 * size[1], 3 * size[0]), flags=cv2.INTER_CUBIC
        )
        frames.append(cv2.resize(large, (size[1], size[0]), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def approach(num_frames=20, turn=0.012, grow=1.012, shift=(1.7, -0.9), tilt=4e-5, start=(-90.0, -120.0)):
    """Motions of a camera that comes nearer, rolls, tilts and goes aside."""
    motions = []
    for t in range(num_frames):
        c, s, k = np.cos(turn * t), np.sin(turn * t), grow**t
        turned = np.array([[k * c, -k * s, 0], [k * s, k * c, 0], [tilt * t, -tilt * t, 1]])
        place = np.array([[1, 0, start[0] + shift[0] * t], [0, 1, start[1] + shift[1] * t], [0, 0, 1.0]])
        motions.append(turned @ place)
    return np.stack(motions)


def errors(tracks, motions):
    """Return how far each observation (M,) is from where its track's first one has moved to, and its age in frames."""
    first = np.searchsorted(tracks.track, np.arange(tracks.count))[tracks.track]
    start = np.concatenate([tracks.pixel[first], np.ones((len(tracks), 1))], axis=1)
    moved = motions[tracks.frame] @ np.linalg.inv(motions[tracks.frame[first]])
    there = np.einsum("mij,mj->mi", moved, start)
    error = np.linalg.norm(there[:, :2] / there[:, 2:] - tracks.pixel, axis=-1)
    return error, tracks.frame - tracks.frame[first]


def everywhere(video):
    return np.ones(video.shape[:3], bool)


@pytest.fixture(scope="module")
def walk():
    motions = approach()
    video = film(motions)
    return motions, video, follow(video, everywhere(video))


def test_points_are_followed_to_a_tenth_of_a_pixel(walk):
    motions, _, tracks = walk
    error, age = errors(tracks, motions)
    assert tracks.count > 100 and tracks.lengths.mean() > 8
    assert np.median(error[age > 0]) < 0.06 and np.quantile(error, 0.95) < 0.2 and (error > 1).mean() < 0.01


def test_points_do_not_drift(walk):
    motions, _, tracks = walk
    error, age = errors(tracks, motions)
    assert (age > 15).sum() > 100
    assert np.median(error[age > 15]) < np.median(error[age == 1]) + 0.05


def test_a_change_of_the_light_moves_no_point(walk):
    motions, video, _ = walk
    light = np.linspace(1.0, 0.6, len(video))[:, None, None, None]
    tracks = follow((video * light + 40 * (1 - light)).astype(np.uint8), everywhere(video))
    error, age = errors(tracks, motions)
    assert (age > 10).sum() > 100 and np.median(error[age > 10]) < 0.1


def test_new_points_are_found_where_the_view_moves_on():
    video = film(approach(shift=(-6.0, 0.0), turn=0, grow=1, tilt=0))
    tracks = follow(video, everywhere(video))
    last = tracks.frame == len(video) - 3
    assert np.histogram(tracks.pixel[last, 0], bins=4, range=(0, SIZE[1]))[0].min() >= 10
    assert set(tracks.frame[np.searchsorted(tracks.track, np.arange(tracks.count))]) > {0, 3, 6}


def test_no_point_lies_where_it_may_not():
    video, rng = film(approach(12)), np.random.default_rng(0)
    usable = np.stack([cv2.GaussianBlur(rng.normal(size=SIZE), (0, 0), 6) > -0.05 for _ in video])
    tracks = follow(video, usable)
    column, row = np.floor(tracks.pixel).astype(int).T
    assert len(tracks) > 50
    assert usable[tracks.frame, row, column].all()


def test_rich_texture_does_not_take_all_points():
    picture = paint(1)
    faint = picture.copy()
    faint[:, 170:] = 110 + (picture[:, 170:].astype(float) - 128) * 0.2  # the right half of the view, a fifth as strong
    video = film(approach(6), faint)
    tracks = follow(video, everywhere(video))
    assert (tracks.pixel[tracks.frame == 0, 0] > 90).mean() > 0.25


def two_surfaces(num_frames=10):
    """A picture moves to the right over another one that moves to the left; usable: away from its edge."""
    behind, front = approach(num_frames, 0, 1, (-2.0, 0.3), 0), approach(num_frames, 0, 1, (2.0, 0.5), 0)
    video, above = film(behind, paint(2)), film(front, paint(3))
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    off = np.stack([np.maximum(abs(x - 60 - 2 * t), abs(y - 60 - 0.5 * t)) for t in range(num_frames)]) - 25
    video[off < 0] = above[off < 0]
    return behind, front, video, off


def test_a_patch_beside_an_edge_shows_one_surface_only():
    behind, front, video, off = two_surfaces()
    tracks = follow(video, np.abs(off) > 2)
    first = np.searchsorted(tracks.track, np.arange(tracks.count))[tracks.track]
    column, row = np.floor(tracks.pixel).astype(int).T
    begun = off[tracks.frame, row, column][first]
    error = np.where(begun < 0, errors(tracks, front)[0], errors(tracks, behind)[0])
    near = (np.abs(begun) < 5) & (tracks.frame > tracks.frame[first])
    assert near.sum() > 100
    assert np.median(error[near]) < 0.1 and np.quantile(error[near], 0.95) < 0.5


def test_a_point_that_is_hidden_is_lost_and_found_again_on_request():
    motions = approach(12, shift=(1.0, 0.4), grow=1.004)
    video = film(motions)
    video[5:8, 20:100, 40:120] = 90
    for rejoin in (False, True):
        tracks = follow(video, everywhere(video), TrackSettings(rejoin=rejoin))
        x, y = tracks.pixel.T
        hidden = (tracks.frame == 6) & (x > 45) & (x < 115) & (y > 25) & (y < 95)
        assert not hidden.any()
        resumed = np.flatnonzero((np.diff(tracks.frame) > 3) & (np.diff(tracks.track) == 0)) + 1
        assert (len(resumed) > 10) == rejoin
    error, _ = errors(tracks, motions)
    assert np.median(error[resumed]) < 0.1 and (error[resumed] > 1).mean() < 0.1


def test_small_pictures_have_tracks_too():
    motions = approach(12, start=(-50.0, -60.0))
    video = film(motions, size=(64, 96))
    tracks = follow(video, everywhere(video))
    error, age = errors(tracks, motions)
    assert np.bincount(tracks.frame).min() > 40
    assert np.median(error[age > 0]) < 0.1


@pytest.mark.parametrize("grey", [0, 128])
def test_a_video_without_texture_has_no_tracks(grey):
    video = np.full((4, *SIZE, 3), grey, np.uint8)
    assert len(follow(video, everywhere(video))) == 0


def test_nothing_is_followed_across_a_cut():
    video = np.concatenate([film(approach(4)), film(approach(4), paint(7))])
    tracks = follow(video, everywhere(video))
    across = np.intersect1d(tracks.track[tracks.frame < 4], tracks.track[tracks.frame >= 4])
    assert tracks.count > 50 and len(across) < 0.05 * tracks.count


def test_points_of_a_detector_come_first():
    video, wanted = film(approach(5)), np.array([[50.5, 40.5], [90.25, 70.75]])
    tracks = follow(video, everywhere(video), detect=lambda rgb: wanted)
    start = tracks.pixel[tracks.frame == 0]
    assert all(np.linalg.norm(start - pixel, axis=-1).min() < 1e-9 for pixel in wanted)


def test_tracks_that_are_kept_are_numbered_anew():
    tracks = Tracks(np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 4, 1, 2, 3]), np.arange(12.0).reshape(6, 2))
    kept, which = tracks.only(np.array([1, 0, 1, 1, 1, 1], bool), least_length=2)
    assert kept.track.tolist() == [0, 0, 1, 1] and kept.frame.tolist() == [0, 4, 2, 3]
    assert which.tolist() == [True, False, True, False, True, True]
    assert tracks.count == 3 and tracks.lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "track, frame, pixel, named",
    [
        ([0, 0], [0, 0], np.zeros((2, 2)), "frame"),
        ([1, 0], [0, 1], np.zeros((2, 2)), "ascend"),
        ([-1], [0], np.zeros((1, 2)), "ascend"),
        ([0], [0], np.full((1, 2), np.nan), "pixel"),
        ([0], [0, 1], np.zeros((1, 2)), "frame"),
    ],
)
def test_impossible_tracks_are_refused_by_name(track, frame, pixel, named):
    with pytest.raises(ValueError, match=named):
        Tracks(np.array(track), np.array(frame), pixel)


def test_bad_input_is_refused_by_name():
    video = np.zeros((2, *SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="rgb must be"):
        follow(video.astype(float), everywhere(video))
    with pytest.raises(ValueError, match="usable must be"):
        follow(video, everywhere(video)[:1])
    with pytest.raises(ValueError, match="at least 33 pixels"):
        follow(video[:, :20], everywhere(video)[:, :20])
    with pytest.raises(ValueError, match="window"):
        TrackSettings(window=8)
    with pytest.raises(ValueError, match="likeness"):
        TrackSettings(likeness=1.5)
    with pytest.raises(ValueError, match="points"):
        TrackSettings(points=0)
