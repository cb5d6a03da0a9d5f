import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aether_env.pictures import MAX_PIXELS, fit_picture, inverse_depth_levels, read_picture


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def write_png_header(path, width, height):
    """Write a PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))


@pytest.mark.parametrize("ending", ["png", "bmp"])
def test_a_lossless_file_reads_back_as_it_was_written(tmp_path, rgb, ending):
    Image.fromarray(rgb).save(tmp_path / f"picture.{ending}")
    np.testing.assert_array_equal(read_picture(tmp_path / f"picture.{ending}"), rgb)
    np.testing.assert_array_equal(read_picture(str(tmp_path / f"picture.{ending}")), rgb)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_lossy_file_reads_back_nearly(tmp_path, ending):
    picture = np.tile(np.linspace(0, 255, 48).astype(np.uint8)[None, :, None], (32, 1, 3))
    Image.fromarray(picture).save(tmp_path / f"picture.{ending}", quality=95)
    assert np.abs(read_picture(tmp_path / f"picture.{ending}").astype(int) - picture).mean() < 4


def test_grey_is_repeated_and_what_is_transparent_is_white(rgb):
    grey = rgb[..., 0]
    np.testing.assert_array_equal(read_picture(grey), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_picture(grey[..., None]), np.repeat(grey[..., None], 3, axis=2))
    clear = np.dstack([rgb, np.zeros((32, 48), np.uint8)])
    assert (read_picture(clear) == 255).all()
    np.testing.assert_array_equal(read_picture(np.dstack([rgb, np.full((32, 48), 255, np.uint8)])), rgb)


def test_a_photograph_taken_upright_is_read_upright(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(rgb).save(tmp_path / "upright.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "upright.png"), np.rot90(rgb, -1))


def test_the_array_given_is_never_handed_out(rgb):
    read_picture(rgb)[:] = 0
    assert rgb.any()


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((1, 1, 3), np.uint8), "at least 16 x 16"),
        (np.zeros((32, 48, 3)), "uint8"),
        (np.full((32, 48, 3), np.nan, np.float32), "uint8"),
        (np.zeros((32, 48, 3), np.uint16), "uint8"),
        (np.zeros((2, 32, 48, 3), np.uint8), "shape"),
        (np.zeros((32, 48, 2), np.uint8), "shape"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000, 3)), "at most"),
        (None, "uint8"),
        ("/no/such/picture.png", "no file"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(source, message):
    with pytest.raises(ValueError, match=message) as error:
        read_picture(source, name="start")
    assert "start" in str(error.value)


def test_damaged_foreign_and_deep_files_are_refused(tmp_path, rgb):
    whole = tmp_path / "whole.png"
    Image.fromarray(rgb).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(rgb[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("cut", "text", "deep"):
        with pytest.raises(ValueError, match=f"{name}.png"):
            read_picture(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="no file"):
        read_picture(tmp_path)


@pytest.mark.parametrize("width, height", [(10_000, 10_000), (60_000, 60_000), (MAX_PIXELS // 16 + 1, 16)])
def test_a_huge_picture_is_refused_from_its_header(tmp_path, width, height):
    write_png_header(tmp_path / "huge.png", width, height)
    with pytest.raises(ValueError, match="at most 50,000,000 pixels"):
        read_picture(tmp_path / "huge.png")


def test_a_fitted_picture_is_the_mean_of_the_pixels_it_covers(rgb):
    fitted = fit_picture(rgb, 16, 24)
    expected = rgb.reshape(16, 2, 24, 2, 3).mean(axis=(1, 3))
    assert np.abs(fitted.rgb - expected).max() <= 0.5
    assert fitted.depth is None


def test_an_unknown_camera_spans_seventy_degrees(rgb):
    focal = fit_picture(rgb, 16, 24).intrinsics[0, 0]
    assert 2 * math.degrees(math.atan(12 / focal)) == pytest.approx(70)
    focal = fit_picture(rgb, 16, 24, horizontal_fov=90).intrinsics[0, 0]
    assert focal == pytest.approx(12)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(16, 90),
    st.integers(16, 90),
    st.integers(16, 40),
    st.integers(16, 40),
    st.floats(10, 100),
    st.floats(0.2, 0.8),
)
def test_a_point_keeps_its_place_in_the_fitted_picture(full_height, full_width, height, width, focal, centre):
    # Depth carries the pixel's own index, so the nearest pixel must be where the fitted camera sees that ray.
    intrinsics = np.array([[focal, 0, centre * full_width], [0, focal, centre * full_height], [0, 0, 1]])
    index = np.arange(full_height * full_width, dtype=np.float64).reshape(full_height, full_width) + 1
    fitted = fit_picture(
        np.zeros((full_height, full_width, 3), np.uint8), height, width, intrinsics, index.astype(np.float32)
    )
    assert fitted.depth is not None and fitted.depth.shape == (height, width)
    row, column = np.divmod(fitted.depth.astype(np.int64) - 1, full_width)
    y, x = np.mgrid[:height, :width] + 0.5
    ray_x = (x - fitted.intrinsics[0, 2]) / fitted.intrinsics[0, 0]
    ray_y = (y - fitted.intrinsics[1, 2]) / fitted.intrinsics[1, 1]
    assert np.abs(ray_x * focal + intrinsics[0, 2] - (column + 0.5)).max() <= 0.5 + 1e-6
    assert np.abs(ray_y * focal + intrinsics[1, 2] - (row + 0.5)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    "intrinsics, depth, message",
    [
        (np.eye(4), None, "intrinsics"),
        ("wide", None, "intrinsics"),
        (np.full((3, 3), np.nan), None, "intrinsics"),
        (np.diag([-30.0, 30.0, 1.0]), None, "intrinsics"),
        (np.array([[0.7, 0, 0.5], [0, 0.7, 40.0], [0, 0, 1]]), None, "intrinsics"),
        (None, np.ones((32, 47), np.float32), "depth"),
        (None, np.ones((32, 48), np.uint16), "depth"),
        (None, np.full((32, 48), np.nan), "depth"),
    ],
)
def test_a_camera_or_depth_of_another_picture_is_refused(rgb, intrinsics, depth, message):
    with pytest.raises(ValueError, match=message):
        fit_picture(rgb, 16, 24, intrinsics, depth)


def test_depth_levels_follow_the_square_root_of_disparity():
    assert inverse_depth_levels(np.array([0.1, 0.25, 1.0, 4.0, 100.0]), 0.25).tolist() == [255, 255, 128, 64, 13]
