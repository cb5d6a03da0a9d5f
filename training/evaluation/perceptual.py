"""Perceptual distance of pictures: LPIPS (Zhang 2018) where it is installed, else ST-LPIPS (Ghildyal and Liu 2022).

The two have different scales, so a result carries the name of the one that it was measured with.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad, relu

PictureDistance = Callable[[Tensor, Tensor], Tensor]

LEAST_SIZE = 32
"""Pixels on the shorter side; the strides of AlexNet leave nothing of less."""

_AT_ONCE = 16
_SHA256 = "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"
_WEIGHTS_OF = "stlpips-pytorch", "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"

logger = logging.getLogger(__name__)


def perceptual_distance(device: torch.device | str = "cpu") -> tuple[str, PictureDistance | None]:
    """Return the name of the best perceptual distance at hand, and its function.

    "lpips" needs the packages lpips and torchvision, and AlexNet's weights, which torchvision fetches once. "st_lpips"
    needs the files of stlpips-pytorch only; neither that package nor torchvision is imported.

    Args:
        device: Where the pictures will be.

    Returns:
        The name, and a function of pictures and true pictures, both (B, 3, H, W) in [0, 1] with H, W >= 32, that
        returns (B,): 0 for equal ones, larger is worse. It raises ValueError for other shapes. "none" and None where
        no network is at hand, which the log tells.
    """
    for name, load in (("lpips", _lpips), ("st_lpips", _st_lpips)):
        try:
            network = load().to(device).eval().requires_grad_(False)
        except (ImportError, OSError) as error:
            logger.info("%s cannot be had: %s", name, error)
            continue
        return name, partial(_distance, network)
    logger.warning("No perceptual distance is measured; pip install stlpips-pytorch (or lpips and torchvision).")
    return "none", None


class ShiftTolerantLpips(nn.Module):
    """LPIPS whose AlexNet blurs where it would skip pixels, so that small shifts of a picture cost little."""

    shift: Tensor
    scale: Tensor

    def __init__(self, published: dict[str, Tensor]) -> None:
        """Take the weights.

        Args:
            published: Of the package stlpips-pytorch, by the names in its file.
        """
        super().__init__()
        shapes = (3, 64, 11, 2), (64, 192, 5, 2), (192, 384, 3, 1), (384, 256, 3, 1), (256, 256, 3, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(c_in, c, k, padding=p) for c_in, c, k, p in shapes)
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for _, c, _, _ in shapes)
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        weights = {name: published[f"scaling_layer.{name}"] for name in ("shift", "scale")}
        for i, place in enumerate(("1.0", "2.5", "3.9", "4.11", "5.13")):
            weights[f"heads.{i}.weight"] = published[f"lin{i}.model.1.weight"]
            for part in ("weight", "bias"):
                weights[f"convolutions.{i}.{part}"] = published[f"net.slice{place}.{part}"]
        self.load_state_dict(weights)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distances (B, 1, 1, 1) of pictures (B, 3, H, W) in [-1, 1]."""
        total = prediction.new_zeros(len(prediction), 1, 1, 1)
        features = self._features(prediction), self._features(target)
        for head, found, true in zip(self.heads, *features, strict=True):
            total = total + head((_unit(found) - _unit(true)).square()).mean((2, 3), keepdim=True)
        return total

    def _features(self, rgb: Tensor) -> Iterator[Tensor]:
        """Yield what each of the five convolutions sees, (B, C, h, w), after its rectifier."""
        x = (rgb - self.shift) / self.scale
        for i, convolution in enumerate(self.convolutions):
            if i == 0:
                x = _blur_and_halve(convolution(x))
            else:
                x = convolution(_blur_and_halve(max_pool2d(x, 3, stride=1)) if i < 3 else x)
            x = relu(x)
            yield x


def _lpips() -> nn.Module:
    import lpips

    return lpips.LPIPS(net="alex", verbose=False)


def _st_lpips() -> nn.Module:
    package, path = _WEIGHTS_OF
    data = Path(str(distribution(package).locate_file(path))).read_bytes()
    # The weights are a pickle: no other file than this one is read, and of it nothing but tensors.
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise OSError(f"{path} of {package} is not the file of version 0.0.2; pip install stlpips-pytorch==0.0.2.")
    return ShiftTolerantLpips(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


@torch.inference_mode()
def _distance(network: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
    """Return distances (B,) of pictures (B, 3, H, W) in [0, 1]."""
    shape = tuple(prediction.shape)
    if len(shape) != 4 or shape[1] != 3 or tuple(target.shape) != shape or min(shape[2:]) < LEAST_SIZE:
        raise ValueError(
            f"prediction and target must both be (B, 3, H, W) with H, W >= {LEAST_SIZE}, got {shape} and "
            f"{tuple(target.shape)}."
        )
    # A few at once: the first layer keeps 64 channels at nearly the picture's size.
    pairs = zip(prediction.float().split(_AT_ONCE), target.float().split(_AT_ONCE), strict=True)
    return torch.cat([network(2 * found - 1, 2 * true - 1).flatten() for found, true in pairs])


def _unit(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) of length 1 at each place."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _blur_and_halve(x: Tensor) -> Tensor:
    """Return every second pixel (B, C, h', w') of `x` (B, C, h, w), blurred by 1 2 1 and mirrored beyond the rim."""
    binomial = x.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(binomial, binomial).expand(x.shape[1], 1, 3, 3)
    return conv2d(pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
