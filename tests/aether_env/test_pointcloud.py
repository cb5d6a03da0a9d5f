from __future__ import annotations

import numpy as np
import pytest
import trimesh

from aether_env.camera import intrinsics_from_fov, se3_exp
from aether_env.pointcloud import depth_edges, unproject_depth, write_points

INTRINSICS = intrinsics_from_fov(np.deg2rad(60), 8, 12)


def test_points_project_back_onto_their_pixel_centres_at_their_depth():
    rng = np.random.default_rng(0)
    depth, pose = rng.uniform(1, 5, (2, 8, 12)), se3_exp(rng.normal(size=(2, 6)))
    kept = depth.copy()
    points = unproject_depth(depth, np.tile(INTRINSICS, (2, 1, 1)), pose)
    for t in range(2):
        camera = (points[t] - pose[t, :3, 3]) @ pose[t, :3, :3]
        pixel = camera @ INTRINSICS.T
        np.testing.assert_allclose(camera[..., 2], depth[t])
        np.testing.assert_allclose(pixel[..., 0] / pixel[..., 2], np.broadcast_to(np.arange(12) + 0.5, (8, 12)))
        np.testing.assert_allclose(pixel[..., 1] / pixel[..., 2], np.broadcast_to(np.arange(8)[:, None] + 0.5, (8, 12)))
    np.testing.assert_array_equal(depth, kept)


def test_a_step_in_depth_is_an_edge_and_a_slanted_floor_is_not():
    step = np.full((8, 12), 1.0)
    step[:, 6:] = 3.0
    assert depth_edges(step)[0].tolist() == [False] * 5 + [True] * 2 + [False] * 5
    floor = 1 / np.linspace(0.05, 1.0, 40)[:, None].repeat(4, axis=1)
    assert not depth_edges(floor).any()


@pytest.mark.parametrize("name", ["scene.glb", "scene.ply"])
def test_a_written_file_holds_the_points_and_the_cameras(tmp_path, name):
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    points[3] = np.nan
    colours = np.full((50, 3), 200, np.uint8)
    poses = se3_exp(np.random.default_rng(1).normal(size=(4, 6)))
    path = write_points(
        tmp_path / "deep" / name, points, colours, world_from_camera=poses, intrinsics=INTRINSICS, image_hw=(8, 12)
    )
    assert [file.name for file in path.parent.iterdir()] == [name]
    loaded = trimesh.load(path)
    if name.endswith("glb"):
        turned = points[np.isfinite(points).all(-1)] * [1, -1, -1]
        np.testing.assert_allclose(loaded.geometry["points"].vertices, turned, atol=1e-6)
        centres = loaded.geometry["cameras"].vertices
        for centre in poses[:, :3, 3] * [1, -1, -1]:
            assert np.linalg.norm(centres - centre, axis=-1).min() < 1e-6
    else:
        np.testing.assert_allclose(loaded.vertices[:49], np.delete(points, 3, axis=0), atol=1e-6)
        assert len(loaded.vertices) > 49
        assert loaded.colors[0, :3].tolist() == [200, 200, 200]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"path": "scene.obj"}, "end in .glb or .ply"),
        ({"points": np.zeros((5, 2))}, "both be"),
        ({"points": np.full((5, 3), np.nan)}, "no finite point"),
        ({"colours": np.zeros((5, 3))}, "uint8"),
        ({"intrinsics": INTRINSICS}, "belong together"),
        ({"world_from_camera": np.eye(4) * 2}, "world_from_camera"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_file(tmp_path, kwargs, message):
    arguments = {"path": "scene.glb", "points": np.zeros((5, 3)), "colours": np.zeros((5, 3), np.uint8), **kwargs}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        write_points(**arguments)
    assert not list(tmp_path.iterdir())
