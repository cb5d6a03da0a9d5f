"""Optical flow: against pictures that were moved by known amounts, and against drawn cameras."""

import pickle
import sys

import cv2
import numpy as np
import pytest
import torch

from aether_env.camera import intrinsics_from_fov, invert_pose
from tests.training.annotate.room import film, walk
from training.annotate.flow import (
    DISFlow,
    Flows,
    RAFTFlow,
    at_targets,
    disagreement,
    find_flows,
    static_flow,
    stays_inside,
)


def noise(height=96, width=128, seed=0):
    rgb = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(rgb, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize("shift", [(3, 0), (0, -4), (5, 2)])
def test_a_shifted_picture_has_the_flow_of_its_shift(shift):
    a = noise()
    b = np.roll(a, shift[::-1], axis=(0, 1))
    flow = DISFlow()(a, b)
    assert flow.shape == (96, 128, 2) and flow.dtype == np.float32
    inner = flow[10:-10, 10:-10]
    assert np.linalg.norm(inner - shift, axis=-1).mean() < 0.1


def test_the_same_pictures_have_the_same_flow_also_after_a_journey_to_another_process():
    a, b = noise(seed=1), np.roll(noise(seed=1), 2, axis=1)
    assert np.array_equal(DISFlow()(a, b), pickle.loads(pickle.dumps(DISFlow()))(a, b))


def test_flow_there_and_back_agrees_but_where_the_pixel_leaves_or_the_flow_is_wrong():
    forward, backward = np.full((8, 10, 2), (2.0, 1.0), np.float32), np.full((8, 10, 2), (-2.0, -1.0), np.float32)
    off = disagreement(forward, backward)
    assert (off[:-1, :-2] == 0).all()
    assert np.isinf(off[-1]).all() and np.isinf(off[:, -2:]).all()
    wrong = disagreement(forward, np.zeros_like(backward))
    assert wrong[0, 0] == pytest.approx(np.sqrt(5))


def test_what_lies_where_a_pixel_goes_is_read_there():
    values = np.arange(20, dtype=np.float32).reshape(4, 5)
    flow = np.zeros((4, 5, 2), np.float32)
    flow[1, 1] = (2, 1)
    flow[0, 0] = (0.5, 0)
    read = at_targets(values, flow)
    assert read[1, 1] == values[2, 3] and read[0, 0] == 0.5 and read[3, 4] == values[3, 4]
    assert at_targets(values, flow, nearest=True)[0, 0] in (0, 1)


def test_a_pixel_stays_inside_up_to_the_border_of_the_last_one():
    flow = np.zeros((3, 3, 2), np.float32)
    flow[1, 2] = (0.4, 0)
    flow[2, 2] = (0.6, 0)
    inside = stays_inside(flow)
    assert inside[1, 2] and not inside[2, 2]


def test_the_static_flow_is_where_the_camera_sees_the_same_points():
    poses = walk(2, (0.1, 0.02, 0.2, 0.01, 0.03, -0.02))
    footage, intrinsics = film(poses)
    flow, depth = static_flow(footage.depth[0], intrinsics, invert_pose(poses[1]) @ poses[0])
    inside = stays_inside(flow)
    seen = at_targets(footage.depth[1], flow)
    assert np.median(np.abs(seen - depth)[inside] / depth[inside]) < 1e-3
    found = DISFlow()(footage.rgb[0], footage.rgb[1])
    assert np.median(np.linalg.norm(found - flow, axis=-1)[inside]) < 0.3


def test_what_comes_behind_the_camera_has_no_flow():
    flow, depth = static_flow(
        np.ones((4, 6)),
        intrinsics_from_fov(1.0, 4, 6),
        np.block([[np.eye(3), np.array([[0], [0], [-2]])], [0, 0, 0, 1]]),
    )
    assert (depth < 0).all() and np.isinf(flow).all()


def test_flows_are_found_once_both_ways():
    footage, _ = film(walk(4, (0.05, 0, 0, 0, 0.01, 0)))
    calls = []

    def estimator(a, b):
        calls.append((a.tobytes(), b.tobytes()))
        return DISFlow()(a, b)

    flows = find_flows(footage.rgb, estimator)
    assert isinstance(flows, Flows) and flows.forward.shape == flows.backward.shape == (3, *footage.size, 2)
    assert len(calls) == len(set(calls)) == 6
    assert np.array_equal(flows.backward[1], DISFlow()(footage.rgb[2], footage.rgb[1]))
    assert np.median(flows.disagreement(1)) < 0.2


def test_one_frame_has_no_flow():
    flows = find_flows(noise()[None])
    assert flows.forward.shape == flows.backward.shape == (0, 96, 128, 2)


def test_raft_without_torchvision_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match="install torchvision.*or use DIS"):
        RAFTFlow(tmp_path / "raft.safetensors")


def test_raft_of_torchvision_runs_with_weights_from_the_disk(tmp_path):
    raft = pytest.importorskip("torchvision.models.optical_flow", exc_type=(ImportError, RuntimeError))
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(raft.raft_small(weights=None).state_dict(), tmp_path / "raft.safetensors")
    a = noise()
    flow = RAFTFlow(tmp_path / "raft.safetensors", updates=2)(a, np.roll(a, 2, axis=1))
    assert flow.shape == (96, 128, 2) and flow.dtype == np.float32 and np.isfinite(flow).all()
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="raft_large or raft_small"):
        RAFTFlow(tmp_path / "bad.safetensors")
