"""Videos of other people: every usual layout gives the same frames, and nothing that is wrong with a file is fatal."""

import json
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from aether_env.conventions import FAR_DEPTH
from training.annotate.inputs import About, find_videos
from training.annotate.pieces import InputSettings, read_pieces

FRAMES, HEIGHT, WIDTH = 5, 24, 32
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
COUNTS = RNG.integers(1000, 60000, (FRAMES, HEIGHT, WIDTH)).astype(np.uint16)
MOVING = RNG.random((FRAMES, HEIGHT, WIDTH)) < 0.3


def write_pictures(folder, frames, first=0, ending="png"):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"frame_{number:05d}.{ending}")


def write_video(folder, first=0, masks=False, **about):
    write_pictures(folder / "rgb", RGB, first)
    write_pictures(folder / "depth", COUNTS, first)
    if masks:
        write_pictures(folder / "masks", MOVING.astype(np.uint8) * 255, first)
    (folder / "video.json").write_text(json.dumps(about))
    return folder


def write_film(path, frames, codec):
    colour, depth = frames.ndim == 4, cv2.CV_16U if frames.dtype == np.uint16 else cv2.CV_8U
    options = [cv2.VIDEOWRITER_PROP_IS_COLOR, int(colour), cv2.VIDEOWRITER_PROP_DEPTH, depth]
    film = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 10.0, frames.shape[2:0:-1], options
    )
    for frame in frames:
        film.write(frame[..., ::-1].copy() if colour else frame)
    film.release()


def read(*sources, **settings):
    (video,) = find_videos(sources)
    return list(read_pieces(video, InputSettings(**settings)))


def read_one(*sources, **settings):
    (piece,) = read(*sources, **settings)
    return piece


def test_numbered_pictures_with_16_bits_of_depth_come_as_they_were_stored(tmp_path):
    folder = write_video(tmp_path / "walk", 7, masks=True, fps=30, depth_scale=0.002, intrinsics=[40, 41, 16, 12])
    footage, dropped = read_one(folder)
    np.testing.assert_array_equal(footage.rgb, RGB)
    np.testing.assert_allclose(footage.depth, COUNTS * 0.002, rtol=1e-6)
    np.testing.assert_array_equal(footage.moving, MOVING)
    np.testing.assert_array_equal(footage.intrinsics, [[40, 0, 16], [0, 41, 12], [0, 0, 1]])
    assert footage.valid.all() and footage.fps == 30 and footage.name == "walk" and not dropped
    assert footage.frame.tolist() == [7, 8, 9, 10, 11]


def write_depth_files(folder):
    (folder / "depth").mkdir()
    for number, counts in enumerate(COUNTS):
        np.save(folder / "depth" / f"{number}.npy", counts * np.float64(0.001))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_pictures(folder / "depth", COUNTS),
        write_depth_files,
        lambda folder: np.save(folder / "depth.npy", COUNTS.astype(np.float32) / 1000),
        lambda folder: np.save(folder / "depth.npy", COUNTS[..., None].astype(np.float32) / 1000),
        lambda folder: write_film(folder / "depth.mkv", COUNTS, "FFV1"),
    ],
    ids=["png", "npy of a frame", "npy", "npy with a channel", "16-bit film"],
)
def test_every_kind_of_depth_gives_the_same(tmp_path, write):
    write_film(tmp_path / "rgb.avi", RGB, "FFV1")
    write(tmp_path)
    footage, dropped = read_one(tmp_path)
    np.testing.assert_array_equal(footage.rgb, RGB)
    np.testing.assert_allclose(footage.depth, COUNTS * 0.001, rtol=1e-6)
    assert footage.moving is None and footage.intrinsics is None and footage.fps == 10 and not dropped


@pytest.mark.parametrize("codec, ending", [("FFV1", "mkv"), ("MJPG", "avi"), ("mp4v", "mp4")])
def test_a_grey_film_of_8_bits_keeps_its_levels(tmp_path, codec, ending):
    levels = np.broadcast_to(np.linspace(20, 230, FRAMES, dtype=np.uint8)[:, None, None], COUNTS.shape).copy()
    write_pictures(tmp_path / "color", RGB)
    write_film(tmp_path / f"depth.{ending}", levels, codec)
    (tmp_path / "video.json").write_text('{"depth_scale": 1}')
    footage, _ = read_one(tmp_path)
    np.testing.assert_allclose(footage.depth, levels, atol=0 if codec == "FFV1" else 3)


def test_a_film_with_depth_beside_it_is_a_video_and_a_folder_may_hold_many(tmp_path):
    write_film(tmp_path / "tour.mkv", RGB, "FFV1")
    write_pictures(tmp_path / "tour_depth", COUNTS)
    (tmp_path / "tour.json").write_text('{"fps": 25}')
    write_video(tmp_path / "day" / "one")
    write_video(tmp_path / "night" / "one")
    (tmp_path / "notes.txt").write_text("of no interest")
    (tmp_path / "night" / "up").symlink_to(tmp_path)
    videos = find_videos([tmp_path])
    assert [video.name for video in videos] == ["day-one", "night-one", "tour"]
    (piece,) = read_pieces(videos[2], InputSettings())
    np.testing.assert_array_equal(piece.footage.rgb, RGB)
    assert piece.footage.fps == 25
    assert find_videos([tmp_path / "tour.mkv"]) == [videos[2]]
    with pytest.raises(ValueError, match="both called one"):
        find_videos([tmp_path / "day", tmp_path / "night"])


def test_the_meaning_of_counts_is_told_by_the_json_or_else_by_the_settings(tmp_path):
    counts = np.tile(np.arange(256, dtype=np.uint8), (FRAMES, HEIGHT, 1))[..., :WIDTH].copy()
    write_pictures(tmp_path / "rgb", RGB)
    write_pictures(tmp_path / "depth", counts)
    told = {"depth_scale": 2.0, "depth_offset": 1, "depth_invalid": [3], "depth_sky": 5, "depth_max": 41}
    (tmp_path / "video.json").write_text(json.dumps(told))
    footage, _ = read_one(tmp_path, about=About(depth_scale=7.0, fps=3))
    row_W, valid_W = footage.depth[0, 0], footage.valid[0, 0]
    assert np.flatnonzero(~valid_W).tolist() == [0, 3, 5, *range(20, WIDTH)]
    assert row_W[[0, 3, 5, 20]].tolist() == [0, 0, FAR_DEPTH, 0]
    np.testing.assert_allclose(row_W[valid_W], 1 + 2.0 * np.flatnonzero(valid_W))
    assert footage.fps == 3
    (tmp_path / "video.json").write_text('{"depth_inverse": true, "depth_scale": 0.01}')
    footage, _ = read_one(tmp_path)
    np.testing.assert_allclose(footage.depth[0, 0, 1:], 100 / np.arange(1, WIDTH), rtol=1e-6)


def test_what_is_no_positive_number_is_not_valid(tmp_path):
    depth = np.full(COUNTS.shape, 2.0)
    depth[:, 0, :4] = [np.nan, np.inf, 0, -1]
    write_pictures(tmp_path / "rgb", RGB)
    np.save(tmp_path / "depth.npy", depth)
    footage, _ = read_one(tmp_path)
    assert not footage.valid[:, 0, :4].any() and footage.valid.sum() == footage.valid.size - 4 * FRAMES
    assert (footage.depth[:, 0, :4] == 0).all()


def test_frames_that_cannot_be_had_are_told_and_the_rest_goes_on(tmp_path):
    folder = write_video(tmp_path / "walk", masks=True)
    (folder / "rgb" / "frame_00001.png").unlink()
    (folder / "depth" / "frame_00002.png").unlink()
    whole = (folder / "rgb" / "frame_00003.png").read_bytes()
    (folder / "rgb" / "frame_00003.png").write_bytes(whole[: len(whole) // 2])
    for number in (5, 6, 7, 8):
        for part, frame in (("rgb", RGB[0]), ("depth", COUNTS[0]), ("masks", COUNTS[0])):
            Image.fromarray(frame).save(folder / part / f"{number}.png")
    (folder / "depth" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.fromarray(np.zeros_like(COUNTS[0])).save(folder / "depth" / "6.png")
    (folder / "masks" / "7.png").unlink()
    Image.fromarray(RGB[0, :-1]).save(folder / "rgb" / "8.png")
    footage, dropped = read_one(folder)
    assert footage.frame.tolist() == [0, 4]
    np.testing.assert_array_equal(footage.rgb, RGB[[0, 4]])
    assert dropped == {
        1: "missing", 2: "no depth", 3: "unreadable", 5: "unreadable depth", 6: "no depth", 7: "no mask",
        8: "another size",
    }  # fmt: skip


def test_a_long_video_comes_in_pieces_and_what_is_left_over_is_told(tmp_path):
    folder = write_video(tmp_path / "walk")
    (folder / "rgb" / "frame_00001.png").unlink()
    pieces = read(folder, piece_frames=3)
    assert [None if p.footage is None else p.footage.frame.tolist() for p in pieces] == [[0, 2, 3], None]
    assert [p.dropped for p in pieces] == [{1: "missing"}, {4: "too short"}]


def test_a_film_that_breaks_off_gives_the_frames_before(tmp_path):
    noise = RNG.integers(0, 256, (20, 64, 64, 3), np.uint8)
    write_film(tmp_path / "rgb.avi", noise, "MJPG")
    data = (tmp_path / "rgb.avi").read_bytes()
    (tmp_path / "rgb.avi").write_bytes(data[: len(data) // 2])
    np.save(tmp_path / "depth.npy", np.ones((20, 64, 64), np.float32))
    footage, dropped = read_one(tmp_path)
    assert 5 <= len(footage) <= 12 and list(dropped.values()) == ["unreadable"]


def test_depth_of_another_size_is_resized_by_nearest_pixel_if_it_shows_the_same(tmp_path):
    write_pictures(tmp_path / "rgb", np.repeat(np.repeat(RGB, 2, 1), 2, 2))
    np.save(tmp_path / "depth.npy", COUNTS.astype(np.float32))
    footage, _ = read_one(tmp_path)
    np.testing.assert_array_equal(footage.depth, np.repeat(np.repeat(COUNTS, 2, 1), 2, 2))
    np.save(tmp_path / "depth.npy", COUNTS[:, :, :-2].astype(np.float32))
    with pytest.raises(ValueError, match="must have the aspect of its pictures, got 30 x 24 beside 64 x 48"):
        read(tmp_path)


class Unpickled:
    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


def huge_npy(path):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (5, 2**20, 2**20)})


def huge_png(path):
    path.mkdir()
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 16, 0, 0, 0, 0)
    for number in range(FRAMES):
        (path / f"{number}.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"\0" * 9
        )


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("depth.npy", lambda p: np.save(p, np.array([Unpickled()] * 3), allow_pickle=True), "cannot be read"),
        ("depth.npy", huge_npy, "cannot be read|at most"),
        ("depth.npy", lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{"), "cannot be read"),
        ("depth.npy", lambda p: np.save(p, np.zeros(COUNTS.shape, complex)), "must hold 3-dimensional numbers"),
        ("depth.npy", lambda p: np.save(p, COUNTS[0]), "must hold 3-dimensional numbers"),
        ("depth.mkv", lambda p: p.write_bytes(b"no film" * 99), "not a readable video"),
        ("depth.mkv", lambda p: write_film(p, RGB, "FFV1"), "must be grey"),
        ("depth", huge_png, "unreadable depth"),
        ("depth", lambda p: write_pictures(p, RGB), "unreadable depth"),
        ("depth", lambda p: p.mkdir(), "must have numbered files"),
        ("nothing", lambda p: None, "depth of .* is missing"),
    ],
)
def test_depth_that_is_hostile_or_none_is_refused_by_name(tmp_path, name, write, message):
    write_pictures(tmp_path / "rgb", RGB)
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "cannot be read"),
        ("[1]", "must hold an object"),
        ('{"fps": 0}', "fps must be in"),
        ('{"fps": "fast"}', "fps must be a number"),
        ('{"fps": true}', "fps must be a number"),
        ('{"depth_scale": -1}', "depth_scale must be"),
        ('{"depth_scale": NaN}', "depth_scale must be"),
        ('{"intrinsics": [1, 2]}', "intrinsics must be fx"),
        ('{"intrinsics": [0, 1, 2, 3]}', "intrinsics"),
        ('{"intrinsics": [[40, 0, 0.5], [0, 40, 900], [0, 0, 1]]}', "lies outside"),
    ],
)
def test_a_json_that_tells_something_impossible_is_refused_by_name(tmp_path, text, message):
    folder = write_video(tmp_path / "walk")
    (folder / "video.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_source_without_videos_is_refused(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="sources must"):
            find_videos([source])
