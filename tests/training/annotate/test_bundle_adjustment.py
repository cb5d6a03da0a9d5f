"""Bundles of known cameras and points."""

import numpy as np
import pytest

from aether_env.camera import intrinsics_from_fov, motion_from_action, rotation_distance, se3_exp
from aether_env.path_metrics import ate
from training.annotate.bundle_adjustment import AdjustSettings, adjust, reprojection
from training.annotate.bundle_residuals import Cameras, Observations, linearise, pose_residuals, residuals
from training.annotate.bundle_schur import Layout, NormalEquations
from training.annotate.tracks import Tracks

INTRINSICS = intrinsics_from_fov(np.deg2rad(65), 240, 320)
FOCAL = INTRINSICS[0, 0]


class Scene:
    """Points in a box before a camera that walks and turns; what is seen of them, exactly.

    Args:
        num_frames: Poses.
        num_points: Points; each is seen by `seen` frames in a row.
        distortion: k1, k2.
        twist: Of each frame.
        flat: Depth range of the points, metres.
    """

    def __init__(
        self, num_frames=8, num_points=150, *, distortion=(0.0, 0.0), seen=6, seed=0, flat=(2.0, 6.0),
        twist=(0.08, -0.02, 0.06, 0.006, 0.02, -0.01),
    ):  # fmt: skip
        self.rng = np.random.default_rng(seed)
        self.poses = np.stack([se3_exp(t * np.array(twist)) for t in range(num_frames)])
        pixel = self.rng.uniform([10, 10], [310, 230], (num_points, 2))
        z = self.rng.uniform(*flat, num_points)
        ray = np.concatenate([(pixel - INTRINSICS[:2, 2]) / FOCAL, np.ones((num_points, 1))], axis=1)
        begin = self.rng.integers(0, num_frames - seen + 1, num_points)
        middle = self.poses[begin + seen // 2]
        self.points = np.einsum("kij,kj->ki", middle[:, :3, :3], ray * z[:, None]) + middle[:, :3, 3]
        track = np.repeat(np.arange(num_points), seen)
        frame = (begin[:, None] + np.arange(seen)).ravel()
        local = np.einsum("mji,mj->mi", self.poses[frame][:, :3, :3], self.points[track] - self.poses[frame][:, :3, 3])
        self.depth = local[:, 2]
        flat_ray = local[:, :2] / local[:, 2:]
        square = np.square(flat_ray).sum(-1, keepdims=True)
        bent = flat_ray * (1 + distortion[0] * square + distortion[1] * square**2)
        self.tracks = Tracks(track, frame, bent * FOCAL + INTRINSICS[:2, 2])

    def noisy(self, sigma):
        return self.moved(sigma * self.rng.normal(size=(len(self.tracks), 2)))

    def moved(self, offset):
        return Tracks(self.tracks.track, self.tracks.frame, self.tracks.pixel + offset)

    def guess(self, degrees=1.0, metres=0.05, focal=1.05):
        """Return poses and intrinsics that are wrong by so much; the first pose is right."""
        size = len(self.poses)
        turn, move = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in self.rng.normal(size=(2, size, 3)))
        poses = self.poses @ motion_from_action(metres * move, np.deg2rad(degrees) * turn)
        poses[0] = self.poses[0]
        return poses, INTRINSICS * np.array([[focal, 1, 1], [1, focal, 1], [1, 1, 1]])

    def errors(self, adjusted):
        """Return the largest errors of rotation (radians) and centre (metres)."""
        away = np.linalg.norm(adjusted.world_from_camera[:, :3, 3] - self.poses[:, :3, 3], axis=-1)
        return rotation_distance(adjusted.world_from_camera, self.poses).max(), away.max()


def state_for_derivatives():
    """Cameras that are off, with distortion, and observations with and without depth and slope."""
    scene = Scene(num_frames=4, num_points=12, seen=3)
    poses, intrinsics = scene.guess()
    cameras = Cameras(
        world_from_camera=poses, focal=intrinsics[[0, 1], [0, 1]], centre=intrinsics[:2, 2],
        distortion=np.array([0.1, -0.04]),
    )  # fmt: skip
    depth = scene.depth * scene.rng.uniform(0.9, 1.1, len(scene.depth))
    depth[::5] = np.nan
    seen = Observations(
        track=scene.tracks.track, frame=scene.tracks.frame, pixel=scene.noisy(1.0).pixel, depth=depth,
        slope=0.01 * scene.rng.normal(size=(len(depth), 2)),
    )  # fmt: skip
    return cameras, scene.points, seen


def test_derivatives_are_those_of_the_residuals():
    cameras, points, seen = state_for_derivatives()
    linear, size, eps = linearise(cameras, points, seen), 6 * 4 + 3, 1e-6

    def central(change):
        ahead, back = (residuals(*change(sign * eps), seen)[0] for sign in (1, -1))
        return (ahead - back) / (2 * eps)

    for column in range(size):
        unit = np.eye(size)[column]
        numeric = central(lambda step, unit=unit: (cameras.moved(step * unit), points))
        if column >= size - 3:
            analytic = linear.by_lens[:, :, column - size + 3]
        else:
            analytic = linear.by_pose[:, :, column % 6] * (seen.frame == column // 6)[:, None]
        known = np.isfinite(numeric)
        np.testing.assert_allclose(analytic[known], numeric[known], rtol=1e-5, atol=1e-5)
    for column in range(3):
        numeric = central(lambda step, c=column: (cameras, points + step * np.eye(3)[c]))
        known = np.isfinite(numeric)
        np.testing.assert_allclose(linear.by_point[:, :, column][known], numeric[known], rtol=1e-5, atol=1e-5)


def test_derivatives_of_pose_priors_are_those_of_the_residuals():
    scene = Scene(num_frames=6, seen=3)
    cameras = Cameras(
        world_from_camera=scene.guess(degrees=15)[0], focal=np.full(2, FOCAL), centre=INTRINSICS[:2, 2],
        distortion=np.zeros(2),
    )  # fmt: skip
    _, derivative = pose_residuals(cameras, scene.poses)
    for column in range(36):
        step = 1e-6 * np.eye(39)[column]
        ahead, back = (pose_residuals(cameras.moved(sign * step), scene.poses)[0] for sign in (1, -1))
        numeric = ((ahead - back) / 2e-6)[column // 6]
        np.testing.assert_allclose(derivative[column // 6, :, column % 6], numeric, atol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_step_with_points_eliminated_is_that_of_the_whole_system(damping):
    cameras, points, seen = state_for_derivatives()
    linear, num_points, size = linearise(cameras, points, seen), len(points), 27
    root = np.where(np.isfinite(linear.residual), np.array([2.0, 2.0, 300.0]), 0.0)
    equations = NormalEquations.of(linear, root, Layout(seen, 4, num_points))
    whole = np.zeros((len(seen.track), 3, size + 3 * num_points))
    for row, (frame, track) in enumerate(zip(seen.frame, seen.track, strict=True)):
        whole[row, :, 6 * frame : 6 * frame + 6] = linear.by_pose[row]
        whole[row, :, size - 3 : size] = linear.by_lens[row]
        whole[row, :, size + 3 * track : size + 3 * track + 3] = linear.by_point[row]
    rows = (whole * root[..., None]).reshape(-1, whole.shape[-1])
    right = np.where(root > 0, linear.residual, 0.0) * root
    free = np.ones(size, bool)
    free[:6] = False
    kept = np.concatenate([free, np.ones(3 * num_points, bool)])
    matrix = rows[:, kept].T @ rows[:, kept]
    matrix[np.diag_indices_from(matrix)] *= 1 + damping
    expected = np.zeros(len(kept))
    expected[kept] = -np.linalg.solve(matrix, rows[:, kept].T @ right.ravel())
    step = equations.step(damping, free)
    np.testing.assert_allclose(step[0], expected[:size], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(step[1].ravel(), expected[size:], rtol=1e-3, atol=1e-5)
    if damping == 0:
        variance = np.zeros(size)
        variance[free] = np.diag(np.linalg.inv(matrix))[: free.sum()]
        np.testing.assert_allclose(equations.variances(free), variance, rtol=1e-3)


def test_exact_observations_give_exact_cameras():
    scene = Scene()
    found = adjust(*scene.guess(), scene.tracks, scene.depth)
    rotation, centre = scene.errors(found)
    assert found.converged
    assert rotation < 1e-5 and centre < 1e-4
    assert found.intrinsics[0, 0] == pytest.approx(FOCAL, rel=1e-5)
    np.testing.assert_allclose(found.points, scene.points, atol=1e-3)
    assert found.iterations > 3 and (np.diff(found.cost) <= 0).all()


def test_more_points_than_enter_the_system_at_a_time_are_no_other_problem():
    scene = Scene(num_frames=20, num_points=400)
    found = adjust(*scene.guess(), scene.tracks, scene.depth)
    assert max(scene.errors(found)) < 1e-4


def test_nothing_given_is_changed():
    scene = Scene()
    poses, intrinsics = scene.guess()
    given = [poses, intrinsics, scene.depth, scene.tracks.pixel]
    before = [array.copy() for array in given]
    adjust(poses, intrinsics, scene.tracks, scene.depth)
    for array, was in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_one_observation_in_six_may_be_wrong():
    scene = Scene()
    wrong = scene.rng.random(len(scene.tracks)) < 0.16
    offset = 0.2 * scene.rng.normal(size=(len(wrong), 2)) + 25 * wrong[:, None] * scene.rng.normal(size=(len(wrong), 2))
    depth = scene.depth * (1 + 0.003 * scene.rng.normal(size=len(wrong)))
    found = adjust(*scene.guess(), scene.moved(offset), depth)
    rotation, centre = scene.errors(found)
    assert rotation < np.deg2rad(0.1) and centre < 0.01
    assert found.sigma_pixels == pytest.approx(0.2, rel=0.5)
    assert (found.inlier == ~wrong).mean() > 0.97


def test_standard_deviations_tell_the_size_of_the_errors():
    ratios = []
    for seed in range(12):
        scene = Scene(seed=seed)
        tracks, depth = scene.noisy(0.3), scene.depth * (1 + 0.01 * scene.rng.normal(size=len(scene.depth)))
        found = adjust(*scene.guess(), tracks, depth)
        away = np.linalg.norm(found.world_from_camera[:, :3, 3] - scene.poses[:, :3, 3], axis=-1)
        turned = rotation_distance(found.world_from_camera, scene.poses)
        ratios.append([
            (found.intrinsics[0, 0] - FOCAL) / found.focal_std,
            np.sqrt(np.mean(away[1:] ** 2 / found.position_std[1:] ** 2)),
            np.sqrt(np.mean(turned[1:] ** 2 / found.rotation_std[1:] ** 2)),
        ])  # fmt: skip
        assert found.rotation_std[0] == found.position_std[0] == 0
    size = np.sqrt(np.mean(np.square(ratios), axis=0))
    assert (size > 0.5).all() and (size < 1.7).all()


def test_without_depth_the_shape_is_found_and_the_path_keeps_its_length():
    scene = Scene(num_points=300, flat=(1.0, 4.0))
    poses, intrinsics = scene.guess(degrees=0.5, metres=0.02)
    given = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1).sum()
    for depth, settings in ((None, AdjustSettings()), (scene.depth, AdjustSettings(depth_sigma=None))):
        found = adjust(poses, intrinsics, scene.tracks, depth, settings=settings)
        assert np.linalg.norm(np.diff(found.world_from_camera[:, :3, 3], axis=0), axis=-1).sum() == pytest.approx(given)
        assert ate(found.world_from_camera, scene.poses) < 1e-3 * given
        assert found.intrinsics[0, 0] == pytest.approx(FOCAL, rel=1e-3)
        assert np.isfinite(found.position_std).all() and np.isfinite(found.focal_std)


@pytest.mark.parametrize("count", [1, 2])
def test_distortion_is_found(count):
    wanted = np.array([-0.12, 0.05]) * [1, count - 1]
    scene = Scene(distortion=wanted, num_points=300)
    found = adjust(*scene.guess(), scene.tracks, scene.depth, settings=AdjustSettings(distortion=count))
    np.testing.assert_allclose(found.distortion, wanted, atol=2e-3)
    assert max(scene.errors(found)) < 1e-3


def test_a_focal_length_that_is_held_stays():
    scene = Scene()
    poses, _ = scene.guess()
    found = adjust(poses, INTRINSICS, scene.tracks, scene.depth, settings=AdjustSettings(refine_focal=False))
    np.testing.assert_array_equal(found.intrinsics, INTRINSICS)
    assert found.focal_std == 0 and max(scene.errors(found)) < 1e-4


def test_priors_are_respected_as_far_as_they_are_sure():
    scene = Scene()
    poses, intrinsics = scene.guess()
    tracks = scene.noisy(0.3)
    free = adjust(poses, intrinsics, tracks, scene.depth)
    tight = adjust(poses, intrinsics, tracks, scene.depth, focal_prior=(300.0, 1e-3))
    assert free.intrinsics[0, 0] == pytest.approx(FOCAL, rel=0.01)
    assert tight.intrinsics[0, 0] == pytest.approx(300.0, abs=0.1) and tight.focal_std < 2e-3
    held = adjust(poses, intrinsics, tracks, scene.depth, pose_sigma=(1e-7, 1e-7))
    np.testing.assert_allclose(held.world_from_camera, poses, atol=1e-4)
    loose = adjust(poses, intrinsics, tracks, scene.depth, pose_sigma=(10.0, 10.0))
    np.testing.assert_allclose(loose.world_from_camera, free.world_from_camera, atol=1e-4)


def wall(tilt=(0.5, -0.3)):
    """A slanted wall: the scene's points moved onto it, observed with errors; depth is read where they are observed."""
    scene = Scene(num_points=300)
    normal = np.array([*tilt, 1.0])
    ray = np.concatenate([(scene.tracks.pixel - INTRINSICS[:2, 2]) / FOCAL, np.ones((len(scene.tracks), 1))], axis=1)
    first = np.searchsorted(scene.tracks.track, np.arange(300))
    pose = scene.poses[scene.tracks.frame]
    start, direction = pose[first][:, :3, 3], np.einsum("kij,kj->ki", pose[first][:, :3, :3], ray[first])
    points = start + ((4 - start @ normal) / (direction @ normal))[:, None] * direction
    local = np.einsum("mji,mj->mi", pose[:, :3, :3], points[scene.tracks.track] - pose[:, :3, 3])
    pixel = local[:, :2] / local[:, 2:] * FOCAL + INTRINSICS[:2, 2] + scene.rng.normal(size=(len(local), 2))
    ray[:, :2] = (pixel - INTRINSICS[:2, 2]) / FOCAL
    facing = np.einsum("mji,j->mi", pose[:, :3, :3], normal)  # the wall's normal in each camera's axes
    inverse = (facing * ray).sum(-1) / (4 - pose[:, :3, 3] @ normal)
    slope = facing[:, :2] / (FOCAL * (facing * ray).sum(-1, keepdims=True))
    return scene, Tracks(scene.tracks.track, scene.tracks.frame, pixel), 1 / inverse, slope, normal


def test_slopes_make_points_slide_on_surfaces_as_their_observed_pixels_do():
    scene, tracks, depth, slope, normal = wall()
    away = []
    for given in (None, slope):
        how = AdjustSettings(refine_focal=False)
        found = adjust(scene.guess()[0], INTRINSICS, tracks, depth, slope=given, settings=how)
        off = found.world_from_camera[:, :3, 3] - scene.poses[:, :3, 3]
        away.append(np.abs(off @ normal).max() / np.linalg.norm(normal))
    assert away[1] < 0.2 * away[0]


def test_noise_of_near_and_far_depth_is_told_apart():
    scene = Scene(num_points=400)
    step = 0.3
    found = adjust(*scene.guess(), scene.noisy(0.1), np.round(scene.depth / step) * step)
    near, far = scene.depth < 2.5, scene.depth > 5
    assert np.median(found.sigma_depth[near]) > 1.5 * np.median(found.sigma_depth[far])
    assert max(scene.errors(found)) < 0.02


def test_what_nobody_measured_is_told():
    scene = Scene(num_frames=10)
    poses, intrinsics = scene.guess()
    tracks, kept = scene.tracks.only(scene.tracks.frame != 9, 2)
    unseen = adjust(poses, intrinsics, tracks, scene.depth[kept])
    assert np.isinf([unseen.rotation_std[9], unseen.position_std[9]]).all()
    assert np.isfinite(unseen.rotation_std[:9]).all()
    np.testing.assert_array_equal(unseen.world_from_camera[9], poses[9])


def test_a_camera_that_only_turns_has_no_position_without_depth():
    scene = Scene(twist=(0, 0, 0, 0.006, 0.02, -0.01))
    found = adjust(scene.poses, INTRINSICS, scene.noisy(0.2), None)
    assert np.isinf(found.position_std[1:]).all() and np.isfinite(found.rotation_std).all()
    assert rotation_distance(found.world_from_camera, scene.poses).max() < np.deg2rad(0.2)


def test_the_focal_length_of_a_camera_that_does_not_turn_is_not_told():
    straight, turning = Scene(twist=(0.05, 0.01, 0.05, 0, 0, 0)), Scene()
    unsure, sure = (adjust(*scene.guess(), scene.noisy(0.3), scene.depth) for scene in (straight, turning))
    assert unsure.focal_std > 0.2 * FOCAL
    assert sure.focal_std < 0.01 * FOCAL


def test_a_camera_that_looks_away_at_first_does_no_harm():
    scene = Scene()
    poses, intrinsics = scene.guess()
    poses[4] = poses[4] @ motion_from_action(np.zeros(3), np.array([0, np.pi, 0]))
    found = adjust(poses, intrinsics, scene.tracks, scene.depth)
    others = np.arange(8) != 4
    assert rotation_distance(found.world_from_camera, scene.poses)[others].max() < np.deg2rad(0.05)
    assert found.inlier_share < 1


def test_reprojection_is_that_of_the_cameras_as_they_are():
    scene = Scene()
    np.testing.assert_allclose(reprojection(scene.poses, INTRINSICS, scene.tracks, scene.depth), 0, atol=1e-6)
    np.testing.assert_allclose(reprojection(scene.poses, INTRINSICS, scene.tracks), 0, atol=1e-2)
    off = reprojection(*scene.guess(), scene.tracks, scene.depth)
    assert np.median(off) > 1


@pytest.mark.parametrize(
    "change, named",
    [
        ({"world_from_camera": np.eye(3)}, "world_from_camera"),
        ({"world_from_camera": np.tile(np.eye(4), (3, 1, 1))}, "frame 7"),
        ({"intrinsics": np.eye(4)}, "intrinsics"),
        ({"tracks": Tracks(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)))}, "tracks"),
        ({"depth": np.ones(3)}, "depth"),
        ({"depth": np.zeros(900)}, "depth"),
        ({"slope": np.zeros(3)}, "slope"),
        ({"focal_prior": (300.0, 0.0)}, "focal_prior"),
        ({"pose_sigma": (0.1, -1.0)}, "pose_sigma"),
    ],
)
def test_bad_input_is_refused_by_name(change, named):
    scene = Scene()
    arguments = {
        "world_from_camera": scene.poses, "intrinsics": INTRINSICS, "tracks": scene.tracks, "depth": scene.depth,
    }  # fmt: skip
    with pytest.raises(ValueError, match=named):
        adjust(**(arguments | change))


@pytest.mark.parametrize(
    "field, value", [("sigma_pixels", 0.0), ("depth_sigma", -1.0), ("distortion", 3), ("rounds", 0), ("tolerance", 2.0)]
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        AdjustSettings(**{field: value})
