import subprocess
import weakref

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aether_env import videos
from aether_env.pictures import fit_picture
from aether_env.videos import open_video, read_video

HEIGHT, WIDTH, FPS = 32, 48, 12.0


def video_rgb(num: int = 12, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def levels(num: int) -> np.ndarray:
    """Return flat frames, each brighter than the one before, which any codec keeps apart."""
    grey = np.linspace(20, 230, num).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (num, HEIGHT, WIDTH, 3)).copy()


def write(path, frames, fps=FPS, **kwargs):
    """Write a video with ffmpeg; `kwargs` as in imageio_ffmpeg.write_frames."""
    writer = imageio_ffmpeg.write_frames(
        str(path), frames.shape[2:0:-1], fps=fps, macro_block_size=1, ffmpeg_log_level="error", **kwargs
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def ffmpeg(*words):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, words)], check=True)


def brightness(rgb: np.ndarray) -> np.ndarray:
    return rgb.reshape(len(rgb), -1).mean(axis=1)


def test_a_lossless_file_reads_back_as_it_was_written(tmp_path):
    rgb = video_rgb()
    path = write(tmp_path / "clip.mkv", rgb, codec="ffv1", pix_fmt_out="bgr0")
    for source in (path, str(path)):
        video = read_video(source)
        np.testing.assert_array_equal(video.rgb, rgb)
        assert (video.fps, video.source_fps, video.source_size) == (FPS, FPS, (HEIGHT, WIDTH))
        assert video.source_frames.tolist() == list(range(12))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.mkv", "clip.gif"])
def test_every_format_gives_its_frames_in_order(tmp_path, name):
    rgb = levels(12)
    kwargs = {
        "clip.avi": {"codec": "mjpeg", "pix_fmt_out": "yuvj420p"},
        "clip.gif": {"codec": "gif", "pix_fmt_out": "rgb8"},
    }
    path = write(tmp_path / name, rgb, fps=12.5 if name == "clip.gif" else FPS, **kwargs.get(name, {}))
    opened = open_video(path)
    assert opened.expected_frames == 12
    video = opened.read()
    np.testing.assert_allclose(brightness(video.rgb), brightness(rgb), atol=20 if name == "clip.gif" else 4)
    assert (np.diff(brightness(video.rgb)) >= 0).all() and len(video.rgb) == 12


def test_opencv_s_own_files_are_read(tmp_path):
    rgb = levels(9)
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (WIDTH, HEIGHT))
    for frame in rgb:
        writer.write(frame[..., ::-1])
    writer.release()
    video = read_video(tmp_path / "clip.avi")
    assert video.fps == 10.0
    np.testing.assert_allclose(brightness(video.rgb), brightness(rgb), atol=4)


def test_a_folder_is_read_by_number_and_not_by_letter(tmp_path):
    rgb = video_rgb(11)
    for number, frame in enumerate(rgb):
        Image.fromarray(frame).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "poses.txt").write_text("not a picture")
    (tmp_path / "._frame_0.png").write_bytes(b"what file managers leave")
    np.testing.assert_array_equal(read_video(tmp_path).rgb, rgb)


def test_pictures_named_by_their_time_are_in_order_of_time(tmp_path):
    rgb = video_rgb(3)
    for name, frame in zip(("1305.2", "1305.25", "1305.3"), rgb, strict=True):
        Image.fromarray(frame).save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(read_video(tmp_path).rgb, rgb)


def test_arrays_lists_pictures_and_files_of_one_frame_are_videos(tmp_path):
    rgb = video_rgb(3)
    Image.fromarray(rgb[0]).save(tmp_path / "one.png")
    mixed = [tmp_path / "one.png", rgb[1], Image.fromarray(rgb[2])]
    for source in (rgb, list(rgb), mixed, torch.from_numpy(rgb)):
        np.testing.assert_array_equal(read_video(source).rgb, rgb)
    for source in (tmp_path / "one.png", rgb[0], rgb[:1], Image.fromarray(rgb[0])):
        np.testing.assert_array_equal(read_video(source, fps=8).rgb, rgb[:1])
    np.testing.assert_array_equal(read_video(rgb[..., :1]).rgb, np.repeat(rgb[..., :1], 3, axis=-1))


def test_floats_are_never_rounded_to_bytes():
    rgb = np.random.default_rng(0).uniform(0, 1, (2, HEIGHT, WIDTH, 3))
    whole = read_video(rgb).rgb
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, rgb.astype(np.float32))
    halved = rgb.reshape(2, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(read_video(rgb, 16, 24).rgb, halved, atol=1e-6)


def test_what_was_given_is_never_handed_out():
    rgb = video_rgb(2)
    copy = rgb.copy()
    read_video(rgb).rgb[:] = 0
    for frame in open_video(rgb, resampling="public"):
        frame.rgb[:] = 0
    np.testing.assert_array_equal(rgb, copy)


@pytest.mark.parametrize(
    "own, wanted, expected",
    [
        (24, 12, [0, 2, 4, 6, 8]),
        (30, 12, [0, 2, 5, 7]),  # 2.5 and 7.5 frames lie between two: the earlier one
        (12, 12, list(range(9))),
        (12, 24, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
        (10, 12, [0, 1, 2, 2, 3, 4, 5, 6, 7, 7]),  # 5 / 6 of a frame each; 2.5 and 7.5 lie between two
        (240, 12, [0]),
    ],
)
def test_every_wanted_time_shows_the_frame_nearest_to_it(own, wanted, expected):
    rgb = video_rgb(9)
    video = read_video(rgb, source_fps=own, fps=wanted)
    assert video.source_frames.tolist() == expected
    np.testing.assert_array_equal(video.rgb, rgb[expected])
    noted = {note.what: note.numbers for note in video.notes}
    assert noted.get("fps") == (None if own == wanted else {"from": own, "to": wanted})


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.floats(1, 120), st.floats(1, 120))
def test_no_other_frame_is_nearer_in_time(num, own, wanted):
    rgb = np.broadcast_to(np.uint8(0), (num, 16, 16, 3))
    opened = open_video(rgb, source_fps=own, fps=wanted)
    chosen = np.array([frame.source_frame for frame in opened])
    assert len(chosen) == opened.expected_frames
    apart = np.abs(np.arange(len(chosen))[:, None] / wanted - np.arange(num) / own)
    assert (apart[np.arange(len(chosen)), chosen] <= apart.min(axis=1) + 3e-6).all()
    # What is left over at the end is less than the time to the next wanted frame.
    assert (num - 1) / own - (len(chosen) - 1) / wanted < 1 / wanted


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_of_varying_rate_is_read_by_the_times_of_its_frames(tmp_path, ending):
    rgb = levels(36)
    whole = write(tmp_path / "whole.mkv", rgb, codec="ffv1", pix_fmt_out="bgr0")
    thin = tmp_path / f"thin.{ending}"
    ffmpeg("-i", whole, "-vf", "select='not(eq(mod(n,3),1))'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p", thin)
    assert len(read_video(thin).rgb) == 24
    # Frames 1, 4, 7 ... are missing and lie between two neighbours: the earlier one stands for them.
    shown = [n - 1 if n % 3 == 1 else n for n in range(36)]
    video = read_video(thin, fps=12)
    np.testing.assert_allclose(brightness(video.rgb), brightness(rgb)[shown], atol=2.5)


def test_a_phone_s_video_comes_out_upright(tmp_path):
    rgb = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    rgb[:, :8] = 255  # bright above
    flat = write(tmp_path / "flat.mp4", rgb)
    ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", tmp_path / "turned.mp4")
    video = read_video(tmp_path / "turned.mp4")
    assert video.source_size == (WIDTH, HEIGHT)
    expected = np.rot90(rgb[0])  # ffmpeg's angle is anticlockwise
    assert np.abs(video.rgb[0].astype(int) - expected).mean() < 8


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = tmp_path / "wide.mkv"
    whole = write(tmp_path / "whole.mkv", levels(3), codec="ffv1", pix_fmt_out="bgr0")
    ffmpeg("-i", whole, "-vf", "setsar=2/1", "-c:v", "ffv1", path)
    video = read_video(path)
    assert video.rgb.shape == (3, HEIGHT, 2 * WIDTH, 3)
    assert [note.what for note in video.notes] == ["squared", "assumed_fov"]


def test_frames_and_intrinsics_are_fitted_as_pictures_are():
    rgb = video_rgb(2, 40, 100)
    matrix = np.array([[80.0, 0, 44], [0, 82, 21], [0, 0, 1]])
    video = read_video(rgb, 24, 36, intrinsics=matrix)
    for found, intrinsics, frame in zip(video.rgb, video.intrinsics, rgb, strict=True):
        one = fit_picture(frame, 24, 36, matrix)
        np.testing.assert_array_equal(found, one.rgb)
        np.testing.assert_allclose(intrinsics, one.intrinsics)
    assert video.intrinsics_known
    unknown = read_video(rgb, 24, 36)
    assert not unknown.intrinsics_known and unknown.notes[-1].what == "assumed_fov"
    np.testing.assert_allclose(unknown.intrinsics[0], fit_picture(rgb[0], 24, 36).intrinsics)


def test_a_zooming_camera_s_intrinsics_stay_with_their_frames():
    matrices = np.array([[[f, 0, 24.0], [0, f, 16.0], [0, 0, 1]] for f in (30.0, 40.0, 50.0, 60.0)])
    rgb = video_rgb(4)
    video = read_video(rgb, source_fps=24, fps=12, intrinsics=matrices)
    assert video.intrinsics[:, 0, 0].tolist() == [30.0, 50.0]
    for wrong in (matrices[:3], np.concatenate([matrices, matrices])):
        with pytest.raises(ValueError, match="one for each frame"):
            read_video(rgb, intrinsics=wrong)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(16, 70),
    st.integers(16, 70),
    st.integers(8, 40),
    st.integers(8, 40),
    st.sampled_from(["area", "public"]),
)
def test_the_notes_tell_what_is_left_of_the_picture(full_height, full_width, height, width, resampling):
    # Each pixel tells its row and column, so the corner and the mean of what is left tell where it was cut out.
    row_HW, column_HW = np.mgrid[:full_height, :full_width] / 100
    rgb = np.stack([row_HW, column_HW, column_HW], axis=-1)[None]
    opened = open_video(rgb, height, width, resampling=resampling)
    noted = {note.what: note.numbers for note in opened.notes}
    crop = noted.get("cropped", {"top": 0, "left": 0, "height": full_height, "width": full_width})
    shown = opened.read().rgb[0, ..., :2] * 100
    if resampling == "public":
        np.testing.assert_allclose(shown[0, 0], [crop["top"], crop["left"]], atol=1e-4)
    else:
        middle = [crop["top"] + (crop["height"] - 1) / 2, crop["left"] + (crop["width"] - 1) / 2]
        np.testing.assert_allclose(shown.mean(axis=(0, 1)), middle, atol=1e-2)
    assert ("resized" in noted) == ((crop["height"], crop["width"]) != (height, width))
    assert ("cropped" in noted) == ((crop["height"], crop["width"]) != (full_height, full_width))


@settings(deadline=None, max_examples=60)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(2, 12), st.integers(2, 12))
def test_public_resampling_gives_the_public_code_s_numbers(full_height, full_width, rows, columns):
    height, width = 8 * rows, 8 * columns
    rgb = np.random.default_rng(full_height).uniform(0, 1, (2, full_height, full_width, 3)).astype(np.float32)
    # The crop of its `imcrop_center`, then diffusers' own resizing of arrays.
    if height / width > full_height / full_width:
        top, left, crop = 0, int((full_width - full_height / height * width) / 2), int(full_height / height * width)
        cropped = rgb[:, :, left : left + crop]
    else:
        top, crop = int((full_height - full_width / width * height) / 2), int(full_width / width * height)
        cropped = rgb[:, top : top + crop]
    if 0 in cropped.shape:
        return
    expected = VaeImageProcessor(vae_scale_factor=8).preprocess(list(cropped), height, width)
    found = read_video(rgb, height, width, resampling="public").rgb
    np.testing.assert_array_equal(found * 2 - 1, expected.movedim(1, -1).numpy())
    as_bytes = (rgb * 255).astype(np.uint8)
    bytes_found = read_video(as_bytes, height, width, resampling="public").rgb
    np.testing.assert_array_equal(
        bytes_found, (read_video(as_bytes / 255, height, width, resampling="public").rgb * 255).round()
    )


def test_a_long_video_is_never_held_whole():
    class Lazy(list):
        """A list of a thousand pictures that are made when asked for, and counted while they live."""

        alive: weakref.WeakSet = weakref.WeakSet()
        most = 0

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            picture = np.full((64, 64, 3), index % 256, np.uint8).view(Counted)
            self.alive.add(picture)
            Lazy.most = max(Lazy.most, len(self.alive))
            return picture

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    seen = [frame.rgb[0, 0, 0] for frame in open_video(Lazy(), 16, 16, source_fps=24, fps=12)]
    assert seen == [index % 256 for index in range(0, 1000, 2)]
    assert Lazy.most <= 3


def test_a_video_may_be_read_again(tmp_path):
    path = write(tmp_path / "clip.mp4", levels(6))
    opened = open_video(path)
    first, second = ([frame.rgb for frame in opened] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_more_frames_than_memory_holds_are_refused_before_any_is_read(monkeypatch):
    endless = open_video(np.broadcast_to(np.uint8(0), (100_000_000, 64, 96, 3)))
    with pytest.raises(ValueError, match="100,000,000 frames .* iterate"):
        endless.read()
    assert next(iter(endless)).rgb.shape == (64, 96, 3)


def test_a_file_that_promises_less_than_it_holds_is_refused_when_it_becomes_too_long(monkeypatch, tmp_path):
    path = write(tmp_path / "clip.mp4", levels(12))
    monkeypatch.setattr(videos, "MAX_BYTES", 5 * HEIGHT * WIDTH * 3)
    opened = open_video(path)
    opened.source.seconds = None
    with pytest.raises(ValueError, match="more than 5 frames"):
        opened.read()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.mkv", "clip.gif", "plain.mp4"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name):
    rgb = video_rgb(24)
    kwargs = {
        "clip.avi": {"codec": "mjpeg", "pix_fmt_out": "yuvj420p"},
        "clip.gif": {"codec": "gif", "pix_fmt_out": "rgb8"},
        "clip.mp4": {"output_params": ["-movflags", "+faststart"]},
    }
    path = write(tmp_path / name, rgb, **kwargs.get(name, {}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(ValueError, match="cut off") as error:
        read_video(path)
    assert name in str(error.value)


def test_empty_foreign_and_damaged_files_are_refused_by_name(tmp_path):
    whole = write(tmp_path / "whole.mp4", video_rgb(12)).read_bytes()
    noise = np.frombuffer(whole, np.uint8).copy()
    noise[len(noise) // 8 : len(noise) // 2] = 255
    (tmp_path / "noise.mp4").write_bytes(noise.tobytes())
    ffmpeg("-i", tmp_path / "whole.mp4", "-frames:v", "0", "-c:v", "mjpeg", tmp_path / "none.avi")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.gif").touch()
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_text("not a picture")
    for name in (
        "noise.mp4",
        "none.avi",
        "empty.mp4",
        "empty.gif",
        "text.mp4",
        "notes.txt",
        "folder",
        "broken",
        "missing.mp4",
    ):
        with pytest.raises(ValueError, match=name) as error:
            read_video(tmp_path / name, name="clip")
        assert "clip" in str(error.value)
        assert ("no frame that can be decoded" in str(error.value)) == (name in ("noise.mp4", "none.avi"))


def test_a_picture_that_is_too_large_is_refused_by_the_header_of_its_video(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4", levels(2))
    monkeypatch.setattr(videos, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    monkeypatch.setattr(videos._File, "frames", None)
    with pytest.raises(ValueError, match=r"at most 1,535 pixels a frame, got 48 x 32"):
        open_video(path)


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((0, 32, 48, 3), np.uint8), "no frames"),
        ([], "no frames"),
        (np.zeros((5, 1, 1, 3), np.uint8), "at least 16 x 16"),
        (np.zeros((5, 1, 1, 3)), "at least 16 x 16"),
        (np.broadcast_to(np.uint8(0), (2, 10_000, 10_000, 3)), "at most"),
        (np.broadcast_to(np.float32(0), (2, 10_000, 10_000, 3)), "at most"),
        (np.full((2, 32, 48, 3), np.nan), "finite"),
        (np.full((2, 32, 48, 3), np.inf), "finite"),
        (np.full((2, 32, 48, 3), 200.0), "divide by 255"),
        (np.full((2, 32, 48, 3), -0.5), "add 1"),
        (np.zeros((2, 32, 48, 3), np.int64), "uint8"),
        (np.zeros((2, 3, 32, 48), np.uint8), "move the channels last"),
        (np.zeros((4, 2, 32, 48, 3), np.uint8), "one video at a time"),
        (np.zeros((32, 48), np.uint8), "shape"),
        ([np.zeros((32, 48, 3), np.uint8), np.zeros((32, 40, 3), np.uint8)], "frame 1 must be 32 x 48"),
        ([np.zeros((32, 48, 3), np.uint8), np.zeros((32, 48, 3))], "all uint8 or all floats"),
        ([Image.new("I;16", (48, 32))], "8 bits"),
        (None, "path"),
        ("", "no file"),
    ],
)
def test_what_is_no_video_is_refused_by_name(source, message):
    with pytest.raises(ValueError, match=message) as error:
        read_video(source, 16, 24, name="clip")
    assert "clip" in str(error.value)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"height": 16}, "together"),
        ({"height": 16, "width": 0}, "at least 1"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"source_fps": -1}, "source_fps"),
        ({"resampling": "cubic"}, "resampling"),
        ({"intrinsics": np.eye(4)}, "intrinsics"),
        ({"intrinsics": np.diag([1.0, 1.0, 1.0])}, "intrinsics"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        open_video(video_rgb(1), **kwargs)


def test_a_file_s_own_rate_is_not_overruled(tmp_path):
    path = write(tmp_path / "clip.mp4", levels(2))
    with pytest.raises(ValueError, match="source_fps"):
        open_video(path, source_fps=30)


def test_a_rate_that_nobody_told_is_said_to_be_assumed():
    rgb = video_rgb(2)
    assert [note.what for note in open_video(rgb, fps=8).notes] == ["assumed_fps", "assumed_fov"]
    assert [note.what for note in open_video(rgb, fps=8, source_fps=8).notes] == ["assumed_fov"]
    assert open_video(rgb, fps=8).source_fps == 8
