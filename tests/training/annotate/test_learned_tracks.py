"""Trackers with weights: SuperPoint's very class with random ones; honest doubles of packages that are not here."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training.annotate.room import film, walk
from training.annotate.learned_tracks import make_tracker
from training.annotate.tracks import TrackSettings


@pytest.fixture(scope="module")
def video():
    footage, _ = film(walk(6, (0.02, 0, 0.03, 0, 0.01, 0)))
    return footage.rgb, footage.valid


def test_points_of_superpoint_are_followed(video, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    config = transformers.SuperPointConfig(encoder_hidden_sizes=[8, 8, 8, 8], keypoint_threshold=0.0)
    transformers.SuperPointForKeypointDetection(config).save_pretrained(tmp_path)
    tracks = make_tracker("superpoint", tmp_path, TrackSettings(points=60))(*video)
    assert tracks.count > 20 and tracks.lengths.max() == 6


def fake_disk(monkeypatch, points):
    """Put a package in kornia's place whose DISK always finds `points` (x, y, score), columns and rows."""

    class DISK(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = torch.nn.Linear(1, 1)

        def forward(self, images, pad_if_not_divisible=False):
            assert images.shape[1] == 3 and images.max() <= 1 and pad_if_not_divisible
            return [SimpleNamespace(keypoints=points[:, :2], detection_scores=points[:, 2])]

    monkeypatch.setitem(sys.modules, "kornia", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "kornia.feature", SimpleNamespace(DISK=DISK))
    return DISK


def test_points_of_disk_are_followed_from_their_pixels_centres(video, monkeypatch, tmp_path):
    network = fake_disk(monkeypatch, torch.tensor([[40.0, 50.0, 0.2], [100.0, 60.0, 0.9]]))
    torch.save({"extractor": network().state_dict()}, tmp_path / "disk.pth")
    tracks = make_tracker("disk", tmp_path / "disk.pth")(*video)
    start = tracks.pixel[tracks.frame == 0]
    for wanted in ([40.5, 50.5], [100.5, 60.5]):
        assert np.linalg.norm(start - wanted, axis=-1).min() < 1e-9


def test_weights_of_something_else_are_refused(monkeypatch, tmp_path):
    fake_disk(monkeypatch, torch.zeros(1, 3))
    torch.save({"extractor": {"other": torch.zeros(1)}}, tmp_path / "disk.pth")
    for path in (tmp_path / "disk.pth", tmp_path / "missing.pth"):
        with pytest.raises(ValueError, match="weights must be a whole file"):
            make_tracker("disk", path)


class Right:
    """CoTracker3's call: every point moves two pixels to the right in each frame, and hides in frame 3."""

    def __init__(self, checkpoint, offline, v2, window_len):
        assert offline and not v2

    def to(self, device):
        return self

    def __call__(self, video, queries, backward_tracking):
        assert video.shape[:3] == (1, 6, 3) and video.max() > 1 and backward_tracking
        frame = torch.arange(6)
        at = queries[:, None, :, 1:].repeat(1, 6, 1, 1)
        at[..., 0] += 2 * (frame[None, :, None] - queries[:, None, :, 0])
        return at, (frame != 3)[None, :, None].expand(at.shape[:3])


def test_tracks_of_cotracker_are_kept_where_it_sees_them_and_they_may_lie(video, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cotracker", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cotracker.predictor", SimpleNamespace(CoTrackerPredictor=Right))
    usable = video[1].copy()
    usable[:, :, 80:] = False
    tracks = make_tracker("cotracker3", tmp_path / "scaled_offline.pth")(video[0], usable)
    assert tracks.count > 20 and 3 not in tracks.frame and (tracks.pixel[:, 0] < 80).all()
    same = np.diff(tracks.track) == 0
    np.testing.assert_allclose(np.diff(tracks.pixel[:, 0])[same], 2 * np.diff(tracks.frame)[same], atol=1e-4)
    assert tracks.lengths.min() >= 3
    assert len(make_tracker("cotracker3", tmp_path)(video[0], np.zeros_like(usable))) == 0


@pytest.mark.parametrize("name, package", [("disk", "kornia"), ("cotracker3", "cotracker")])
def test_a_package_that_is_missing_is_named(name, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"needs .*{package}.*pip install"):
        make_tracker(name, tmp_path)


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ValueError, match="superpoint"):
        make_tracker("sift", tmp_path)
