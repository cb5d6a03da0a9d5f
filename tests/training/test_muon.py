"""Muon in batches is Muon."""

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal
from training.optimizer import rates_as_tensors, set_rates, step_unless

SHAPES = [(8, 8), (8, 24), (24, 8), (8, 8), (24, 8)]


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_takes_the_steps_of_pytorch():
    ours, theirs = matrices(), matrices()
    start = [p.detach().clone() for p in ours]
    one, other = (kind(p, lr=0.02, weight_decay=0.1) for kind, p in ((Muon, ours), (torch.optim.Muon, theirs)))
    for step in range(6):
        for parameters in (ours, theirs):
            give_gradients(parameters, step)
        one.step()
        other.step()
    for p, q, begun in zip(ours, theirs, start, strict=True):
        moved = (q - begun).norm()
        assert moved > 0.1
        assert (p - q).norm() < 0.01 * moved  # the iteration runs in bfloat16, whose sums are in another order
        assert torch.allclose(one.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"], atol=1e-6)


def test_what_it_adds_has_singular_values_about_one():
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 40)).float())
    assert values.min() > 0.3 and values.max() < 1.4


@pytest.mark.parametrize("gradient", [1.0, float("nan"), float("inf")])
def test_a_flagged_step_changes_nothing_to_the_bit(gradient):
    parameters = matrices()
    optimizer = Muon(parameters, lr=0.02, weight_decay=0.1)
    give_gradients(parameters, 1)
    step_unless(torch.tensor(0.0), [optimizer])
    before = [p.detach().clone() for p in parameters]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, gradient)
    step_unless(torch.tensor(1.0), [optimizer])
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], m) for p, m in zip(parameters, momenta, strict=True))
    give_gradients(parameters, 2)
    step_unless(torch.tensor(0.0), [optimizer])
    assert not any(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_rates_held_as_tensors_make_the_same_steps(kind):
    results = []
    for tensors in (False, True):
        parameters = matrices()
        make = Muon if kind == "muon" else lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True)
        optimizer = make(parameters, lr=0.02)
        optimizer.param_groups[0]["peak_lr"] = 0.02
        if tensors:
            rates_as_tensors([optimizer])
        for step, factor in enumerate((0.3, 1.0, 0.5)):
            give_gradients(parameters, step)
            set_rates([optimizer], factor)
            step_unless(torch.tensor(0.0), [optimizer])
        results.append(parameters)
    for p, q in zip(*results, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"matrices, got one of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="closure"):
        Muon(matrices()).step(lambda: 0.0)
