"""Counter-based noise: known answers, independence of neighbours, distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from aether_env.world_model.noise import normal_noise, philox


def words(*values):
    return tuple(torch.tensor([v], dtype=torch.int64) for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    assert tuple(int(w) for w in philox(words(*counter), words(*key))) == answer


def draw(nonce, branch=0, step=0, purpose=0, shape=(7, 5)):
    return normal_noise(*(torch.tensor([v]) for v in (nonce, branch, step)), purpose, shape)


def test_an_env_draws_the_same_noise_alone_and_in_a_batch():
    nonce, branch, step = torch.tensor([3, 2**62 + 9, 3]), torch.tensor([0, 1, 0]), torch.tensor([4, 0, 5])
    batch = normal_noise(nonce, branch, step, 1, (7, 5))
    for row in range(3):
        alone = draw(int(nonce[row]), int(branch[row]), int(step[row]), 1)
        assert torch.equal(batch[row], alone[0])


@pytest.mark.parametrize("change", [{"nonce": 4}, {"nonce": 3 + 2**40}, {"branch": 1}, {"step": 1}, {"purpose": 1}])
def test_every_counter_changes_the_noise(change):
    base = {"nonce": 3, "branch": 0, "step": 0, "purpose": 0}
    assert not torch.isclose(draw(**base), draw(**(base | change))).any()


def test_noise_is_standard_normal_and_uncorrelated():
    x = draw(11, shape=(100_000,))[0].numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01
    y = draw(12, shape=(100_000,))[0].numpy()
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.01
