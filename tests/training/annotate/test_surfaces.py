import numpy as np
import pytest

from training.annotate.surfaces import sample, smooth

HEIGHT, WIDTH = 30, 40
Y, X = np.mgrid[:HEIGHT, :WIDTH] + 0.5


def plane(right=0.004, down=-0.006, at=0.3):
    """Inverse depth is linear in the pixel on a plane; depth (1, H, W)."""
    return (1 / (at + right * X + down * Y)).astype(np.float32)[None]


ALL = np.ones((1, HEIGHT, WIDTH), bool)


def test_a_steep_plane_is_smooth_everywhere():
    depth = plane()
    assert depth.max() / depth.min() > 2
    assert smooth(depth, ALL).all()


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_both_sides_of_a_jump_are_left_out_with_a_margin(margin):
    depth = np.full((1, HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, :, 20:] = 3.0
    expected = np.ones(WIDTH, bool)
    expected[19 - margin : 21 + margin] = False
    assert (smooth(depth, ALL, margin=margin)[0] == expected).all()


def test_what_is_not_valid_is_not_smooth_nor_is_the_surface_beside_it():
    valid = ALL.copy()
    valid[:, 10] = False
    assert not smooth(plane(), valid)[:, 9:12].any()


def test_sampled_planes_are_exact_between_pixel_centres():
    rng = np.random.default_rng(0)
    pixel = rng.uniform([0, 0], [WIDTH, HEIGHT], (200, 2))
    depth, slope = sample(plane(), ALL, np.zeros(200, int), pixel)
    inverse = 0.3 + 0.004 * pixel[:, 0] - 0.006 * pixel[:, 1]
    np.testing.assert_allclose(depth, 1 / inverse, rtol=1e-5)
    np.testing.assert_allclose(slope * inverse[:, None], np.tile([0.004, -0.006], (200, 1)), atol=2e-6)


def test_sampling_looks_at_known_depth_only():
    depth, valid = plane(), ALL.copy()
    depth[:, :, 20:], valid[:, :, 20:] = 100.0, False
    pixel = np.array([[19.4, 10.2], [20.5, 10.5]])
    found, _ = sample(depth, valid, np.zeros(2, int), pixel)
    assert found[0] == pytest.approx(1 / (0.3 + 0.004 * 19.4 - 0.006 * 10.2), rel=1e-4)
    assert np.isnan(found[1])


def test_no_depth_is_told_at_an_edge_or_of_a_lone_pixel():
    depth = np.where(X < 20, 1.0, 3.0).astype(np.float32)[None]
    assert np.isnan(sample(depth, ALL, np.zeros(1, int), np.array([[20.0, 15.0]]))[0]).all()
    lone = np.zeros_like(ALL)
    lone[0, 5, 5] = True
    assert np.isnan(sample(depth, lone, np.zeros(1, int), np.array([[5.5, 5.5]]))[0]).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="pixel must lie"):
        sample(plane(), ALL, np.zeros(1, int), np.array([[WIDTH + 0.1, 3.0]]))
    with pytest.raises(ValueError, match="valid"):
        smooth(plane(), ALL[:, :5])
