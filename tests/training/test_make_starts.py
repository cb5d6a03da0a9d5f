import numpy as np
import pytest

from aether_env.envs.starts import FOLDER, load_start, start_names
from aether_env.sim import split_of
from aether_env.world_model.promise import Start
from training.make_starts import Candidate, choose, main, render_candidates


def candidate(index: int, family: str, richness: float, is_open: bool = True) -> Candidate:
    return Candidate(index=index, family=family, start=Start(), richness=richness, is_open=is_open)


def test_the_richest_open_views_are_chosen_half_of_each_family():
    pool = [candidate(i, family, richness=i % 7) for i, family in enumerate(["room", "room", "blocks"] * 7)]
    pool.append(candidate(99, "room", richness=100, is_open=False))
    chosen = choose(pool, 5)
    assert [c.family for c in chosen] == ["room"] * 3 + ["blocks"] * 2
    assert all(c.is_open for c in chosen)
    assert min(c.richness for c in chosen if c.family == "blocks") >= 5
    with pytest.raises(ValueError, match="raise candidates"):
        choose(pool, 40)


def test_written_starts_are_read_back_and_the_old_ones_are_gone(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    main(out=tmp_path, index=(3, 5), height=16, width=24)
    names = start_names(tmp_path)
    assert sorted(int(name[-3:]) for name in names) == [3, 5]
    rendered = {c.index: c.start for c in render_candidates((3, 5), 16, 24)}
    for name in names:
        read, start = load_start(name, tmp_path), rendered[int(name[-3:])]
        np.testing.assert_array_equal(read.rgb, start.rgb)
        np.testing.assert_allclose(read.depth, start.depth, atol=1e-3)
        np.testing.assert_allclose(read.intrinsics, start.intrinsics)
        assert split_of(read.scene_seed) == "test"


def test_there_are_bundled_starts_of_both_families_in_less_than_a_megabyte():
    families = [name.split("-")[0] for name in start_names()]
    assert len(families) >= 16 and families.count("room") == families.count("blocks")
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_bundled_start_is_what_the_simulator_shows_in_that_scene(place):
    from aether_env.sim.world import SimWorld

    start = load_start(start_names()[place])
    world = SimWorld(*start.rgb.shape[:2])
    _, frames = world.start([Start(scene_seed=start.scene_seed)], [0])
    world.close()
    # Textures are filtered in floating point, whose last digit depends on the machine.
    assert np.abs(frames.rgb[0, 0].astype(int) - start.rgb).mean() < 0.5
    known = start.depth > 0
    assert np.quantile(np.abs(frames.depth[0, 0] - start.depth)[known], 0.99) < 2e-3
    np.testing.assert_allclose(frames.intrinsics[0, 0], start.intrinsics, rtol=1e-5)
