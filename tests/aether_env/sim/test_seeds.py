import numpy as np
import pytest

from aether_env.sim.seeds import SPLITS, as_seeds, draw_uniforms, seed_in, split_of


def test_splits_share_no_seed():
    ranges = sorted(SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(a.stop <= b.start for a, b in zip(ranges, ranges[1:], strict=False))


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_of_a_split_belongs_to_it(split):
    last = len(SPLITS[split]) - 1
    assert [split_of(seed_in(split, index)) for index in (0, 17, last)] == [split] * 3
    with pytest.raises(ValueError, match="index"):
        seed_in(split, last + 1)


def test_seeds_outside_of_every_split_are_refused():
    with pytest.raises(ValueError, match="seed"):
        split_of(2**43)
    with pytest.raises(ValueError, match="split"):
        seed_in("holdout", 0)


def test_seeds_that_would_name_a_scene_a_second_time_are_refused():
    last = as_seeds([2**61 - 1, 7])
    assert last.tolist() == [2**61 - 1, 7]
    assert len(np.unique(draw_uniforms(last, 1, stream=0))) == 2
    for seed in (7 + 2**61, 2**63 + 5, 2**64, -1):
        with pytest.raises(ValueError, match=rf"seeds must.*2\*\*61.*{seed}"):
            as_seeds([seed])


def test_numbers_of_a_seed_do_not_depend_on_the_batch_and_look_uniform():
    seeds = np.arange(4000)
    numbers = draw_uniforms(seeds, 50, stream=3)
    np.testing.assert_array_equal(draw_uniforms(seeds[[7]], 20, stream=3)[0], numbers[7, :20])
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.05
    neighbours = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]
    assert abs(neighbours) < 0.05
    assert not np.array_equal(draw_uniforms(seeds, 5, stream=4), numbers[:, :5])


def test_the_first_numbers_are_those_of_splitmix64():
    # Reference values of the finalizer: SplitMix64 started at state 0 gives these (Vigna's C code).
    from aether_env.sim.seeds import _GOLDEN, _mix

    with np.errstate(over="ignore"):
        states = _GOLDEN * np.arange(1, 4, dtype=np.uint64)
    assert [int(x) for x in _mix(states)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
