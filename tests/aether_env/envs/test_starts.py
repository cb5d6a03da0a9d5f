import numpy as np
import pytest

from aether_env.envs.starts import load_start, start_names, write_start
from aether_env.world_model.promise import Start


@pytest.fixture
def start() -> Start:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.01, 100, (32, 48)).astype(np.float32)
    depth[0] = np.nan
    return Start(
        rgb=rng.integers(0, 256, (32, 48, 3), dtype=np.uint8),
        depth=depth,
        intrinsics=np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]),
        scene_seed=7,
    )


def test_a_start_reads_back_as_it_was_written(tmp_path, start):
    write_start("room", start, tmp_path)
    assert start_names(tmp_path) == ["room"]
    loaded = load_start("room", tmp_path)
    np.testing.assert_array_equal(loaded.rgb, start.rgb)
    np.testing.assert_array_equal(loaded.intrinsics, start.intrinsics)
    assert loaded.scene_seed == 7
    assert (loaded.depth[0] == 0).all(), "unknown depth stays unknown"
    np.testing.assert_allclose(loaded.depth[1:], start.depth[1:], atol=0.8e-3)


def test_a_start_may_lack_depth_and_scene(tmp_path, start):
    write_start("photo", Start(rgb=start.rgb, intrinsics=start.intrinsics), tmp_path)
    loaded = load_start("photo", tmp_path)
    assert loaded.depth is None and loaded.scene_seed is None


def test_a_start_that_is_not_there_is_refused_with_those_that_are(tmp_path, start):
    write_start("room", start, tmp_path)
    with pytest.raises(ValueError, match="'hall'.*room"):
        load_start("hall", tmp_path)
    with pytest.raises(ValueError, match="intrinsics"):
        write_start("bare", Start(rgb=start.rgb), tmp_path)


def test_bundled_starts_can_all_be_loaded():
    for name in start_names():
        loaded = load_start(name)
        assert loaded.rgb is not None and loaded.intrinsics is not None
