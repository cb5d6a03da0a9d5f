from dataclasses import replace

import numpy as np
import pytest

from aether_env.camera import scale_poses, se3_exp
from tests.training.annotate.room import film, walk
from training.annotate.coarse import Cameras, coarse_cameras
from training.annotate.footage import Footage
from training.annotate.quality import QualitySettings, focal_anomalies, judge

ARC = (0.05, 0.01, 0.07, 0.01, 0.04, 0.005)
SETTINGS = QualitySettings(most_pairs=4)


@pytest.fixture(scope="module")
def arc() -> tuple[Footage, Cameras]:
    poses = walk(14, ARC)
    footage, intrinsics = film(poses)
    return footage, cameras_of(poses, intrinsics)


def cameras_of(poses: np.ndarray, intrinsics: np.ndarray, **others) -> Cameras:
    n = len(poses)
    found = {"residual": np.zeros(n), "inliers": np.ones(n), "keyframe": np.zeros(n, int)}
    return Cameras(rows=np.arange(n), world_from_camera=poses, intrinsics=intrinsics, **found, **others)


def drifting(cameras: Cameras, degrees: float) -> Cameras:
    """Turn the cameras more and more, about an axis across the view."""
    axis = np.deg2rad(degrees) * np.array([0, 0, 0, 0.6, 0.8, 0])
    drift = np.stack([se3_exp(share * axis) for share in np.linspace(0, 1, len(cameras))])
    return replace(cameras, world_from_camera=cameras.world_from_camera @ drift)


def zoomed(cameras: Cameras, factor: float) -> Cameras:
    return replace(cameras, intrinsics=cameras.intrinsics * np.array([[factor, 1, 1], [1, factor, 1], [1, 1, 1]]))


def judged(footage: Footage, cameras: Cameras, **others):
    return judge(footage, footage.moving, cameras, settings=others.pop("settings", SETTINGS), **others)


def test_true_cameras_are_kept(arc):
    quality = judged(*arc)
    assert quality.reasons == () and quality.score > 0.85
    assert quality.consistent > 0.99 and quality.depth_error < 1e-3 and quality.reprojection < 0.4
    assert quality.jumps == 0 and quality.kept == 1 and quality.focal_pull < 0.01


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda cameras: drifting(cameras, 2.0), "reprojection"),
        (
            lambda cameras: replace(cameras, world_from_camera=scale_poses(cameras.world_from_camera, 1.2)),
            "reprojection",
        ),
        (lambda cameras: zoomed(cameras, 1.1), "focal wrong"),
        (lambda cameras: zoomed(cameras, 0.9), "focal wrong"),
        (lambda cameras: replace(cameras, world_from_camera=cameras.world_from_camera[::-1]), "inconsistent"),
        (lambda cameras: replace(cameras, world_from_camera=np.tile(np.eye(4), (14, 1, 1))), "inconsistent"),
    ],
)
def test_wrong_cameras_are_refused(arc, spoil, reason):
    footage, cameras = arc
    good, bad = judged(footage, cameras), judged(footage, spoil(cameras))
    assert reason in bad.reasons
    assert bad.score < 0.5 * good.score


def test_one_degree_of_drift_over_the_video_is_refused_at_the_usual_size():
    poses = walk(8, ARC)
    footage, intrinsics = film(poses, scale=2)
    cameras = cameras_of(poses, intrinsics)
    good, bad = judged(footage, cameras), judged(footage, drifting(cameras, 1.0))
    assert good.reasons == () and "reprojection" in bad.reasons and bad.score < 0.5 * good.score


def test_the_score_falls_with_the_drift(arc):
    footage, cameras = arc
    scores = [judged(footage, drifting(cameras, degrees)).score for degrees in (0, 0.5, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.2 * scores[0]


def test_a_wrong_focal_length_is_seen_though_the_motions_were_told_with_it(arc):
    footage, cameras = arc
    (hiding,), _ = coarse_cameras(footage, footage.moving, range(14), zoomed(cameras, 1.1).intrinsics)
    quality = judged(footage, hiding)
    assert "focal wrong" in quality.reasons and quality.focal_pull > 0.03


def test_a_jump_of_the_path_is_counted(arc):
    footage, cameras = arc
    poses = cameras.world_from_camera.copy()
    poses[7:, :3, 3] += [0.5, 0.0, 0.3]
    quality = judged(footage, replace(cameras, world_from_camera=poses))
    assert quality.jumps >= 1 and "jump" in quality.reasons


def test_a_sudden_step_that_the_pictures_show_is_no_jump():
    poses = walk(10, (0.01, 0.0, 0.01, 0.0, 0.01, 0.0))
    poses[5:, :3, 3] += [0.25, 0.0, 0.15]
    footage, intrinsics = film(poses)
    cameras = cameras_of(poses, intrinsics)
    assert judged(footage, cameras).jumps == 0
    smooth = replace(cameras, world_from_camera=walk(10, (0.01, 0.0, 0.01, 0.0, 0.01, 0.0)))
    assert judged(footage, smooth).reasons
    other = poses.copy()
    other[5:, :3, 3] += [0.0, 0.3, 0.0]
    assert judged(footage, replace(cameras, world_from_camera=other)).jumps >= 1


def test_frames_missing_in_the_video_are_no_jump(arc):
    footage, cameras = arc
    rows = np.r_[0:6, 9:14]
    some = cameras_of(cameras.world_from_camera[rows], cameras.intrinsics)
    assert judged(footage.frames(rows), some).jumps == 0


def rounded(footage: Footage, step: float) -> Footage:
    return replace(footage, depth=((np.floor(footage.depth / step) + 0.5) * step).astype(np.float32))


def test_rounded_depth_is_no_reason_to_refuse(arc):
    footage, cameras = arc
    coarse = rounded(footage, 0.08)
    assert np.median(np.abs(coarse.depth / footage.depth - 1)) > 0.005
    assert judged(coarse, cameras).reasons == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cameras: drifting(cameras, 2.0),
        lambda cameras: replace(cameras, world_from_camera=scale_poses(cameras.world_from_camera, 1.2)),
        lambda cameras: zoomed(cameras, 1.1),
        lambda cameras: replace(cameras, world_from_camera=cameras.world_from_camera[::-1]),
    ],
)
def test_rounded_depth_hides_no_wrong_cameras(arc, spoil):
    footage, cameras = arc
    assert judged(rounded(footage, 0.08), spoil(cameras)).reasons


def test_what_lies_where_depth_is_not_valid_is_never_read(arc):
    footage, cameras = arc
    valid = footage.valid.copy()
    valid[:, :30] = False
    holes = replace(footage, valid=valid, depth=np.where(valid, footage.depth, np.nan))
    assert judged(holes, cameras) == judged(replace(footage, valid=valid), cameras)
    assert judged(holes, cameras).reasons == ()


def test_noisy_depth_is_no_reason_to_refuse_but_hides_no_wrong_scale(arc):
    footage, cameras = arc
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(footage.depth.shape)
    noisy = replace(footage, depth=(footage.depth * noise).astype(np.float32))
    quality = judged(noisy, cameras)
    assert quality.depth_error > 0.01
    assert quality.reasons == ()
    scaled = replace(cameras, world_from_camera=scale_poses(cameras.world_from_camera, 1.2))
    assert judged(noisy, scaled).reasons


def test_what_moves_is_not_looked_at():
    poses = walk(6, (0.03, 0.0, 0.02, 0.0, 0.03, 0.0))
    ball = np.stack([np.linspace(-0.6, 0.6, 6), np.full(6, 0.1), np.linspace(1.6, 1.0, 6)], axis=1)
    footage, intrinsics = film(poses, ball=ball)
    assert footage.moving.mean() > 0.15
    cameras = cameras_of(poses, intrinsics)
    blind = judge(footage, footage.moving & False, cameras, settings=SETTINGS)
    quality = judged(footage, cameras)
    assert quality.consistent > 0.98 > blind.consistent and quality.reasons == ()


def test_an_unsure_focal_length_halves_the_score_at_its_limit_and_is_refused_beyond(arc):
    footage, cameras = arc
    limit = SETTINGS.most_focal_std * cameras.intrinsics[0, 0]
    sure, unsure = judged(footage, cameras), judged(footage, replace(cameras, focal_std=limit * 1.001))
    assert unsure.score == pytest.approx(sure.score / 2, rel=0.01)
    assert "focal unsure" in unsure.reasons


def test_the_score_counts_the_frames_without_cameras(arc):
    footage, cameras = arc
    all_of_them, half = judged(footage, cameras), judged(footage, cameras, wanted=28)
    assert half.kept == 0.5 and half.score == pytest.approx(all_of_them.score / 2)
    picky = replace(SETTINGS, least_kept=0.6)
    assert "few kept" in judged(footage, cameras, wanted=28, settings=picky).reasons


def test_what_says_nothing_is_refused_with_its_reason(arc):
    footage, cameras = arc
    flat = replace(footage, depth=np.full_like(footage.depth, 2.0))
    assert "constant depth" in judged(flat, cameras).reasons
    quality = judge(footage, footage.valid, cameras, settings=SETTINGS)
    assert quality.reasons == ("mostly moving", "not judged") and quality.score == 0
    grey = replace(footage, rgb=np.full_like(footage.rgb, 128), valid=footage.valid & False)
    assert judged(grey, cameras).reasons == ("no depth", "not judged")


def test_a_focal_length_unlike_those_of_the_other_pieces_is_told():
    assert focal_anomalies([200, 202, 240, 199]).tolist() == [False, False, True, False]
    assert focal_anomalies([200, 203, 198]).tolist() == [False] * 3
    assert focal_anomalies([200, 230]).tolist() == [True, True]
    assert focal_anomalies([200, 205]).tolist() == [False, False]
    assert focal_anomalies([200]).tolist() == [False] and focal_anomalies([]).tolist() == []


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="steps"):
        QualitySettings(steps=(0, 3))
    with pytest.raises(ValueError, match="most_reprojection"):
        QualitySettings(most_reprojection=0)
