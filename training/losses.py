"""Losses on decoded pictures."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss, relu


def edge_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of the differences between neighbouring pixels.

    Args:
        prediction: (..., H, W).
        target: (..., H, W).
    """
    rows = l1_loss(prediction.diff(dim=-2), target.diff(dim=-2))
    return rows + l1_loss(prediction.diff(dim=-1), target.diff(dim=-1))


def reconstruction_loss(prediction: Tensor, target: Tensor, edge_weight: float) -> Tensor:
    """Return L1 + 2 MSE + edge_weight * edge loss of pictures in [-1, 1]."""
    loss = l1_loss(prediction, target) + 2.0 * mse_loss(prediction, target)
    return loss + edge_weight * edge_loss(prediction, target)


def rgb_gradient_energy(picture: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels of (..., H, W): blur lowers it, noise raises it.

    Every channel counts by itself; `metrics.gradient_energy` is that of luma.
    """
    return (picture.diff(dim=-2) ** 2).mean() + (picture.diff(dim=-1) ** 2).mean()


def critic_loss(real: Tensor, decoded: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator from its logits of true and of decoded pictures."""
    return relu(1.0 - real).mean() + relu(1.0 + decoded).mean()
