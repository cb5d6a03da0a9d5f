from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from training.evaluation import perceptual
from training.evaluation.perceptual import perceptual_distance


def pictures(seed=0, shape=(3, 3, 64, 96)):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((*shape[:2], 8, 12), generator=generator)
    return interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 1)


@pytest.fixture
def no_lpips(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)


@pytest.fixture
def st_lpips(no_lpips):
    try:
        importlib.metadata.distribution("stlpips-pytorch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("stlpips-pytorch is not installed")
    name, distance = perceptual_distance("cpu")
    assert name == "st_lpips"
    return distance


@pytest.fixture
def published(st_lpips, monkeypatch):
    """The package's own network; what it imports beside PyTorch is never called for AlexNet."""
    for name, members in (("torchvision", "models"), ("IPython", "embed"), ("torchsummary", "summary")):
        module = ModuleType(name)
        setattr(module, members, SimpleNamespace())
        monkeypatch.setitem(sys.modules, name, module)
    network = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    yield network
    for name in [name for name in sys.modules if name.split(".")[0] == "stlpips_pytorch"]:
        del sys.modules[name]


@pytest.mark.parametrize("height, width", [(64, 96), (32, 33), (75, 130)])
def test_st_lpips_is_what_the_published_package_computes(st_lpips, published, height, width):
    target, other = pictures(0, (2, 3, height, width)), pictures(1, (2, 3, height, width))
    with torch.no_grad():
        expected = published(other, target, normalize=True).flatten()
    assert expected.min() > 0.01
    torch.testing.assert_close(st_lpips(other, target), expected, rtol=1e-4, atol=1e-6)


def test_equal_pictures_are_at_distance_zero_and_blur_and_noise_take_them_apart(st_lpips):
    target = pictures()
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    assert (st_lpips(target, target) == 0).all()
    noisy = [st_lpips((target + size * noise).clamp(0, 1), target) for size in (0.02, 0.1)]
    blurred = [st_lpips(avg_pool2d(target, k, 1, k // 2, count_include_pad=False), target) for k in (5, 11)]
    for less, more in (noisy, blurred):
        assert (0 < less).all() and (less < more).all()


def test_a_shift_by_a_pixel_costs_less_than_another_picture(st_lpips):
    target = pictures(shape=(2, 3, 64, 97))
    shifted = st_lpips(target[..., 1:], target[..., :-1])
    assert (shifted < 0.1 * st_lpips(target.flip(0)[..., 1:], target[..., :-1])).all()


def test_a_large_batch_is_its_pictures(st_lpips):
    prediction, target = pictures(0, (19, 3, 32, 32)), pictures(1, (19, 3, 32, 32))
    alone = torch.cat([st_lpips(prediction[i : i + 1], target[i : i + 1]) for i in (0, 17)])
    torch.testing.assert_close(st_lpips(prediction, target)[[0, 17]], alone)


def test_st_lpips_needs_neither_torchvision_nor_the_code_of_its_package(st_lpips, monkeypatch):
    for name in ("torchvision", "stlpips_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert perceptual_distance()[0] == "st_lpips"


def test_lpips_is_taken_where_it_is_installed_and_sees_pictures_in_its_own_range(monkeypatch):
    class Lpips(torch.nn.Module):
        """Stands in for lpips 0.1.4: pictures in [-1, 1] to (B, 1, 1, 1)."""

        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, prediction, target):
            return (prediction - target).mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Lpips))
    name, distance = perceptual_distance()
    assert name == "lpips"
    torch.testing.assert_close(distance(torch.ones(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)), torch.full((2,), 2.0))


def test_without_any_network_the_distance_is_left_out_and_the_log_tells(no_lpips, monkeypatch, caplog):
    monkeypatch.setattr(perceptual, "_WEIGHTS_OF", ("no-such-package-is-installed", "weights.pth"))
    with caplog.at_level(logging.WARNING):
        assert perceptual_distance() == ("none", None)
    assert "stlpips-pytorch" in caplog.text


@pytest.mark.parametrize(
    "shape, other", [((1, 3, 31, 64), None), ((1, 1, 64, 64), None), ((1, 3, 64, 64), (2, 3, 64, 64))]
)
def test_pictures_of_the_wrong_shape_are_refused(st_lpips, shape, other):
    with pytest.raises(ValueError, match="H, W >= 32"):
        st_lpips(torch.zeros(shape), torch.zeros(other or shape))
