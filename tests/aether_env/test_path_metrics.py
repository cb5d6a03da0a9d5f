from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aether_env.camera import intrinsics_from_fov, make_pose, motion_from_action
from aether_env.path_metrics import ate, direction_error, focal_error, fov_error, rpe, scale_error
from aether_env.trajectory import Similarity, umeyama


def random_path(seed=0, num=12):
    rng = np.random.default_rng(seed)
    motions = motion_from_action(rng.normal(size=(num, 3)) * 0.3 + [0, 0, 0.4], rng.normal(size=(num, 3)) * 0.2)
    poses = [np.eye(4)]
    for motion in motions[1:]:
        poses.append(poses[-1] @ motion)
    return np.stack(poses)


def noisy(path, seed=1, size=0.05):
    rng = np.random.default_rng(seed)
    return path @ motion_from_action(rng.normal(size=(len(path), 3)) * size, rng.normal(size=(len(path), 3)) * size)


def straight(num=10, step=(0.0, 0.0, 0.5)):
    return make_pose(np.eye(3), np.arange(num)[:, None] * np.asarray(step))


def moved(path, scale, seed=3):
    similarity = Similarity(
        scale=scale, rotation=Rotation.random(rng=seed).as_matrix(), translation=np.array([3.0, -2.0, 5.0])
    )
    return similarity.apply_to_poses(path)


@pytest.mark.parametrize("scale", [1.0, 0.01, 40.0])
def test_a_path_in_another_world_and_unit_has_no_error_after_sim3_alignment(scale):
    true = random_path()
    found = moved(true, scale)
    assert ate(found, true) < 1e-9
    errors = rpe(found, true)
    assert errors.translation < 1e-9 and errors.rotation_deg < 1e-6
    assert direction_error(found, true) < 1e-6
    assert scale_error(found, true) == pytest.approx(abs(np.log(scale)), abs=1e-9)


def test_without_scale_a_path_twice_as_long_is_off_by_its_own_spread():
    true = random_path()
    centre = true[:, :3, 3]
    spread = np.sqrt(np.square(centre - centre.mean(0)).sum(-1).mean())
    assert ate(moved(true, 2.0), true, with_scale=False) == pytest.approx(spread)


def test_errors_of_known_motions_are_their_closed_form():
    true = straight()
    turned = make_pose(
        Rotation.from_rotvec(np.arange(10)[:, None] * [0, np.deg2rad(2.0), 0]).as_matrix(), true[:, :3, 3]
    )
    assert rpe(turned, true).rotation_deg == pytest.approx(2.0)
    # Sideways by 0.1 at every other frame: each step is 0.1 off, whatever is left of the alignment's scale and turn.
    weaving = true.copy()
    weaving[1::2, 0, 3] += 0.1
    assert rpe(weaving, true, with_scale=False).translation == pytest.approx(0.1, rel=0.02)
    assert ate(weaving, true, with_scale=False) == pytest.approx(0.05, rel=0.02)
    assert direction_error(weaving, true) == pytest.approx(np.rad2deg(np.arctan(0.1 / 0.5)))


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_errors_agree_with_evo(seed, with_scale):
    metrics = pytest.importorskip("evo.core.metrics")
    trajectory = pytest.importorskip("evo.core.trajectory")
    true = random_path(seed)
    found = moved(noisy(true, seed), 3.0)
    reference = trajectory.PosePath3D(poses_se3=list(true))
    aligned = trajectory.PosePath3D(poses_se3=list(found))
    aligned.align(reference, correct_scale=with_scale)

    def rms(metric):
        metric.process_data((reference, aligned))
        return metric.get_statistic(metrics.StatisticsType.rmse)

    def over_one_frame(relation):
        return metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True)

    relation = metrics.PoseRelation
    errors = rpe(found, true, with_scale=with_scale)
    assert ate(found, true, with_scale=with_scale) == pytest.approx(rms(metrics.APE(relation.translation_part)))
    assert errors.translation == pytest.approx(rms(over_one_frame(relation.translation_part)))
    assert errors.rotation_deg == pytest.approx(rms(over_one_frame(relation.rotation_angle_deg)))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_straight_path_is_aligned_by_a_proper_rotation_and_costs_nothing(flipped):
    true = straight()
    found = moved(true[::-1] if flipped else true, 0.5)
    rotation = umeyama(found[:, :3, 3], true[:, :3, 3]).rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert ate(found, true) < 1e-9
    assert rpe(found, true).rotation_deg < 1e-6


def test_a_mirrored_path_is_not_excused():
    true = random_path()
    mirrored = make_pose(np.broadcast_to(np.eye(3), (12, 3, 3)), true[:, :3, 3] * [1, 1, -1])
    assert ate(mirrored, true) > 0.1


def test_a_path_that_stands_still_has_the_spread_of_the_truth_as_its_error():
    true, still = straight(), np.broadcast_to(np.eye(4), (10, 4, 4))
    spread = np.std(true[:, 2, 3])
    assert ate(still, true) == pytest.approx(spread)
    assert rpe(still, true).translation == pytest.approx(0.5)
    assert direction_error(still, true) == pytest.approx(90)
    assert scale_error(still, true) == np.inf
    # The other way round the true path knows no scale: lengths stay in the found path's unit.
    assert ate(true, still) == pytest.approx(spread)
    assert np.isnan(direction_error(true, still)) and np.isnan(scale_error(true, still))
    assert ate(still, still) == rpe(still, still).translation == 0


def test_direction_counts_only_pairs_in_which_the_true_camera_moves():
    true = make_pose(np.eye(3), [[0, 0, 0], [0, 0, 1e-3], [0, 0, 1.0]])
    found = make_pose(np.eye(3), [[0, 0, 0], [1.0, 0, 0], [1.0, 0, 1.0]])
    assert direction_error(found, true) == pytest.approx(45)
    assert direction_error(found, true, min_step=0.01) == pytest.approx(0)


def test_focal_and_field_of_view_errors_are_their_closed_form():
    true = intrinsics_from_fov(np.deg2rad([60.0, 90.0]), 48, 64)
    found = true.copy()
    found[..., 0, 0] *= 1.1
    np.testing.assert_allclose(focal_error(found, true), 0.05)
    np.testing.assert_allclose(
        fov_error(intrinsics_from_fov(np.deg2rad(70.0), 48, 64), true, 64), [10.0, 20.0], atol=1e-9
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: ate(p[:2], p[:2]), "at least 3 poses"),
        (lambda p: rpe(p[:1], p[:1]), "at least 3 poses"),
        (lambda p: direction_error(p[:1], p[:1]), "at least 2 poses"),
        (lambda p: scale_error(p[:1], p[:1]), "at least 2 poses"),
        (lambda p: ate(p[:5], p), "both have shape"),
        (lambda p: rpe(p[0], p[0]), "both have shape"),
        (lambda p: ate(p * 2, p), "bottom row"),
        (lambda p: ate(p, np.full_like(p, np.nan)), "finite"),
        (lambda p: focal_error(np.zeros((3, 3)), np.eye(3)), "positive focal"),
        (lambda p: fov_error(np.eye(3), np.eye(4), 64), "target must have shape"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_path())
