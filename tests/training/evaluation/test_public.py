from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aether_env.camera import intrinsics_from_fov, make_pose
from aether_env.pictures import fit_picture
from aether_env.trajectory import Similarity
from tests.tiny import HEIGHT, WIDTH, tiny_components
from tests.training.evaluation.test_datasets import DRIVE, make_kitti, make_sintel, make_tum, write_depth
from training.evaluation.datasets import DatasetError, open_dataset
from training.evaluation.public import judged_part, public_scores, reconstruct_video

FRAMES = 30
TUM = "freiburg3_walking_xyz"
KITTI_FOLDERS = tuple(f"depth_selection/val_selection_cropped/{n}_gathered" for n in ("image", "groundtruth_depth"))


@dataclass
class Seer:
    """Knows the frames by their pictures and returns their truth, in a unit and a world of each window's own."""

    depth: np.ndarray
    """(T, h, w)."""
    path: np.ndarray
    """(T, 4, 4)."""
    pictures: dict[bytes, int]
    fov: float = 1.0
    """Radians that it takes its pictures to span, plus a hundredth for every frame before the window."""
    settings: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(height=HEIGHT, width=WIDTH))
    windows: list[int] = field(default_factory=list)
    """Where the windows began that were asked for."""

    def reconstruct(self, video: np.ndarray, *, seeds: list[int]) -> SimpleNamespace:
        assert video.shape[1:] == (17, HEIGHT, WIDTH, 3) and len(seeds) == len(video)
        depth, paths, intrinsics = [], [], []
        for clip in video:
            start = self.pictures[clip[0].tobytes()]
            self.windows.append(start)
            scale = 0.5 + 0.1 * start
            here = Rotation.from_rotvec([0.1 * start, 0.2, 0.3]).as_matrix()
            world = Similarity(scale=scale, rotation=here, translation=np.array([start, 1.0, -2.0]))
            depth.append(scale * self.depth[start : start + 17])
            paths.append(world.apply_to_poses(self.path[start : start + 17]))
            intrinsics.append(intrinsics_from_fov(np.full(17, self.fov + 0.01 * start), HEIGHT, WIDTH))
        return SimpleNamespace(
            depth=np.stack(depth), world_from_camera=np.stack(paths), intrinsics=np.stack(intrinsics)
        )


def seer_of(name: str, root: Path, only: str) -> Seer:
    """For sets of 18 x 24 pixels, of which the middle 16 rows are seen."""
    (video,) = open_dataset(name, root, only=[only])
    truth = video.read()
    depth = np.ones((len(video), HEIGHT, WIDTH)) if truth.depth is None else truth.depth[:, 1:-1]
    path = truth.world_from_camera
    pictures = {fit_picture(rgb, HEIGHT, WIDTH).rgb.tobytes(): i for i, rgb in enumerate(truth.rgb)}
    return Seer(depth, np.tile(np.eye(4), (len(video), 1, 1)) if path is None else path, pictures)


def walk(num: int) -> np.ndarray:
    t = np.linspace(0, 2, num)
    turns = Rotation.from_rotvec(np.stack([0.1 * t, t, 0 * t], axis=-1)).as_matrix()
    return make_pose(turns, np.stack([np.sin(t), t**2, np.cos(3 * t)], axis=-1))


def write_tum(root: Path, num: int = FRAMES) -> None:
    """Every third frame of 3 * num is read."""
    lines = []
    for i, pose in enumerate(walk(3 * num)):
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        lines.append(f"{1 + i / 10:.6f} " + " ".join(f"{number:.9f}" for number in numbers))
    make_tum(root, [1 + i / 10 for i in range(3 * num)], lines)


@pytest.mark.parametrize("asked, used, starts", [(None, 8, [0, 8, 13]), (4, 4, [0, 4, 8, 12, 13]), (32, 8, [0, 8, 13])])
def test_the_true_depth_in_a_unit_of_each_windows_own_has_no_error(tmp_path, asked, used, starts):
    make_sintel(tmp_path, frames=FRAMES)
    seer = seer_of("sintel", tmp_path, "alley_2")
    results = public_scores(seer, "sintel", tmp_path, asked, only=["alley_2"])
    metrics = results["metrics"]
    assert seer.windows == starts and results["settings"]["stride"] == used
    assert metrics["sintel_abs_rel_scale"] < 1e-5 and metrics["sintel_abs_rel_scale_shift"] < 1e-5
    assert metrics["sintel_delta125_scale"] == metrics["sintel_delta125_scale_shift"] == 1
    assert metrics["sintel_judged_share"] == pytest.approx(16 / 18)
    assert metrics["sintel_flat_abs_rel_scale"] > 0.2 and metrics["sintel_resized_truth_abs_rel_scale"] < 1e-5
    assert results["counts"]["sintel_abs_rel_scale"] == 1
    json.dumps(results, allow_nan=False)


def test_the_true_path_in_a_world_of_each_windows_own_has_no_error(tmp_path):
    write_tum(tmp_path)
    seer = seer_of("tum", tmp_path, TUM)
    results = public_scores(seer, "tum", tmp_path, only=[TUM])
    metrics = results["metrics"]
    assert metrics["tum_ate"] < 1e-6 and metrics["tum_rpe_translation"] < 1e-6
    assert metrics["tum_rpe_rotation_deg"] < 1e-4
    assert results["settings"] | {"stride_asked": 32, "stride": 8, "window": 17} == results["settings"]
    true = open_dataset("tum", tmp_path, only=[TUM])[0].world_from_camera
    centre = true[:, :3, 3]
    assert metrics["tum_standing_ate"] == pytest.approx(np.sqrt(np.square(centre - centre.mean(0)).sum(-1).mean()))
    step = np.linalg.norm(np.diff(centre, axis=0), axis=-1)
    assert metrics["tum_standing_rpe_translation"] == pytest.approx(np.sqrt(np.square(step).mean()))
    assert 0.05 < metrics["tum_straight_ate"] < metrics["tum_standing_ate"]


def test_the_same_scenes_of_sintel_are_judged_by_path_under_their_own_name(tmp_path):
    make_sintel(tmp_path, frames=17)
    seer = seer_of("sintel_pose", tmp_path, "alley_2")
    assert public_scores(seer, "sintel_pose", tmp_path, only=["alley_2"])["metrics"]["sintel_ate"] < 1e-9


def test_the_field_of_view_is_judged_in_the_crop_as_the_mean_of_all_windows_that_show_a_frame(tmp_path):
    make_sintel(tmp_path, frames=18)  # two windows: the first frame is in one, the last in the other, the rest in both
    matrix = np.array([[20.0, 0, 11.5], [0, 20.0, 8.5], [0, 0, 1]])
    for path in tmp_path.rglob("*.cam"):  # a tag of 4 bytes, the matrix, the pose
        path.write_bytes(path.read_bytes()[:4] + matrix.tobytes() + path.read_bytes()[76:])
    seer = seer_of("sintel_pose", tmp_path, "alley_2")
    true = 2 * np.arctan(12 / 20)  # all 24 columns are inside the crop
    seer.fov = true + 0.1
    metrics = public_scores(seer, "sintel_pose", tmp_path, only=["alley_2"])["metrics"]
    assert metrics["sintel_fov_error_deg"] == pytest.approx(np.rad2deg(0.105), rel=1e-3)
    assert metrics["sintel_guessed_fov_error_deg"] == pytest.approx(abs(70 - np.rad2deg(true)))
    guess = 12 / np.tan(np.deg2rad(35))
    assert metrics["sintel_guessed_focal_error"] == pytest.approx(abs(guess / 20 - 1))


def test_a_set_that_tells_no_intrinsics_has_a_count_and_no_number_for_them(tmp_path):
    write_tum(tmp_path)
    results = public_scores(seer_of("tum", tmp_path, TUM), "tum", tmp_path, only=[TUM])
    assert "tum_fov_error_deg" not in results["metrics"] and results["counts"]["tum_fov_error_deg"] == 0


def write_kitti(root: Path, drive: str, valid_rows: int, num: int = 17) -> None:
    """1 m in the left half, 4 m in the right one, known in some rows below the first."""
    frames, depth = (root / folder / f"{drive}_02" for folder in KITTI_FOLDERS)
    make_kitti(frames, depth, range(num), range(0))
    stored = np.zeros((18, 24), np.uint16)
    stored[1 : 1 + valid_rows] = [256] * 12 + [4 * 256] * 12
    for i in range(num):
        write_depth(depth / f"{i:010d}.png", stored)


def test_sequences_are_weighted_by_the_true_pixels_inside_the_crop(tmp_path):
    drives = [DRIVE, "2011_09_26_drive_0005_sync", "2011_09_26_drive_0013_sync"]
    for drive, valid_rows in zip(drives, (16, 4, 0), strict=True):
        write_kitti(tmp_path, drive, valid_rows)
    seer = seer_of("kitti", tmp_path, DRIVE)
    seer.depth = np.ones_like(seer.depth)
    seer.depth[:, :4] = [1] * 12 + [2] * 12  # in the first 4 rows nearer to the truth than in the others
    results = public_scores(seer, "kitti", tmp_path, only=drives)
    each = [results["sequences"][drive] for drive in drives]
    assert [e["pixels"] for e in each] == [17 * 16 * 24, 17 * 4 * 24, 0]
    assert each[1]["abs_rel_scale"] < each[0]["abs_rel_scale"] and "abs_rel_scale" not in each[2]
    metrics = results["metrics"]
    for error in ("abs_rel", "delta125"):
        wanted = 0.8 * each[0][f"{error}_scale"] + 0.2 * each[1][f"{error}_scale"]
        assert metrics[f"kitti_{error}_scale"] == pytest.approx(wanted)
    assert results["counts"]["kitti_abs_rel_scale"] == 2
    low, high = results["intervals"]["kitti_abs_rel_scale"]
    assert low == pytest.approx(each[1]["abs_rel_scale"]) and high == pytest.approx(each[0]["abs_rel_scale"])


def test_a_set_without_any_truth_inside_the_crop_has_a_count_and_no_number(tmp_path):
    write_kitti(tmp_path, DRIVE, 0)
    seer = seer_of("kitti", tmp_path, DRIVE)
    seer.depth = np.ones_like(seer.depth)
    results = public_scores(seer, "kitti", tmp_path, only=[DRIVE])
    assert results["metrics"] == {} and results["counts"]["kitti_abs_rel_scale"] == 0


@pytest.mark.parametrize("full", [(18, 24), (17, 24), (40, 131), (97, 33)])
def test_what_is_judged_is_what_the_checkpoint_is_shown(full):
    depth = np.random.default_rng(0).uniform(1, 2, full).astype(np.float32)
    fitted = fit_picture(np.zeros((*full, 3), np.uint8), HEIGHT, WIDTH, depth=depth).depth
    inside = depth[judged_part(*full, HEIGHT, WIDTH)]
    row, column = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((HEIGHT, WIDTH), inside.shape, strict=True)
    )
    assert np.array_equal(fitted, inside[np.ix_(row, column)])


def test_a_checkpoint_runs_end_to_end_and_its_noise_depends_on_nothing_but_seed_and_video(tmp_path):
    from aether_env.world_model.own_clips import OwnClips

    write_tum(tmp_path, num=18)
    pipeline = OwnClips(tiny_components(), sigmas=(1.0, 0.5))  # with one level noise would have no say
    first, again, other = (public_scores(pipeline, "tum", tmp_path, seed=s, only=[TUM]) for s in (0, 0, 1))
    assert first == again and first["metrics"]["tum_ate"] != other["metrics"]["tum_ate"]
    assert set(first["metrics"]) == {
        f"tum_{row}{error}"
        for row in ("", "standing_", "straight_")
        for error in ("ate", "rpe_translation", "rpe_rotation_deg")
    }
    assert all(np.isfinite(value) for value in first["metrics"].values())
    found = reconstruct_video(pipeline, open_dataset("tum", tmp_path, only=[TUM])[0], 8, 0)
    assert found.disparity.shape == (18, HEIGHT, WIDTH) and found.world_from_camera.shape == (18, 4, 4)


def test_videos_shorter_than_a_window_are_refused_by_name(tmp_path):
    make_sintel(tmp_path, "alley_2", frames=17)
    make_sintel(tmp_path, "cave_2", frames=16)
    seer = seer_of("sintel", tmp_path, "alley_2")
    with pytest.raises(DatasetError, match=r"cave_2 \(16\) of sintel have fewer than the 17 frames.*only="):
        public_scores(seer, "sintel", tmp_path, only=["alley_2", "cave_2"])
    assert not seer.windows


def test_what_a_checkpoint_finds_must_be_finite(tmp_path):
    make_sintel(tmp_path, frames=17)
    seer = seer_of("sintel", tmp_path, "alley_2")
    seer.depth = np.full_like(seer.depth, np.nan)
    with pytest.raises(ValueError, match="alley_2: the checkpoint finds NaN in frames 0 to 16"):
        public_scores(seer, "sintel", tmp_path, only=["alley_2"])


def test_what_the_readers_refuse_and_a_bad_stride_are_errors(tmp_path):
    make_sintel(tmp_path, frames=17)
    seer = seer_of("sintel", tmp_path, "alley_2")
    with pytest.raises(DatasetError, match="22 of 23 sequences of sintel are missing"):
        public_scores(seer, "sintel", tmp_path)
    with pytest.raises(ValueError, match="name must be one of"):
        public_scores(seer, "nyu", tmp_path)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        public_scores(seer, "sintel", tmp_path, 0, only=["alley_2"])
