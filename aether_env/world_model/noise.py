"""Counter-based normal noise: what an env draws depends on its own counters only, never on its neighbours.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer tensor operations, so the
CPU and the GPU draw the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_NOISE, HISTORY_NOISE, RESET_NOISE, CLIP_NOISE = range(4)
"""Purposes of the draws: a new step, its history, the depth of a first picture, a window of the three tasks."""

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return four random words per counter.

    Args:
        counter: Four int64 tensors of 32-bit values, broadcastable.
        key: Two int64 tensors of 32-bit values, broadcastable.

    Returns:
        Four int64 tensors of 32-bit values.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and low words of a 32 x 32 bit product, without leaving signed 64 bits."""
    low, high = constant * (x & 0xFFFF), constant * (x >> 16)
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & MASK


def normal_noise(nonce_B: Tensor, branch_B: Tensor, step_B: Tensor, purpose: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise that depends on (nonce, branch, step, purpose, element) alone.

    Args:
        nonce_B: (B,) int64 in 0..2**63 - 1, one per env and episode.
        branch_B: (B,) int64, 0 unless the env was branched with new noise.
        step_B: (B,) int64, env steps since reset.
        purpose: Which of the draws of one step, 0..255.
        shape: Of one env's noise.

    Returns:
        (B, *shape) float32 on the device of `nonce_B`.
    """
    size = math.prod(shape)
    quads = -(-size // 4)
    element = torch.arange(quads, dtype=torch.int64, device=nonce_B.device)[None]
    nonce, branch, step = nonce_B[:, None], branch_B[:, None], step_B[:, None]
    words = philox(
        (
            element,
            (step & MASK) * torch.ones_like(element),
            (branch & MASK) + torch.zeros_like(element),
            torch.full_like(element, purpose),
        ),
        (nonce & MASK, (nonce >> 32) & MASK),
    )
    # Box-Muller in float64, so that CPU and GPU agree far below float32 rounding.
    uniform = [(word.to(torch.float64) + 0.5) * 2.0**-32 for word in words]
    radius0, radius1 = (torch.sqrt(-2.0 * torch.log(uniform[i])) for i in (0, 2))
    angle0, angle1 = (2.0 * math.pi * uniform[i] for i in (1, 3))
    normals = torch.stack(
        [
            radius0 * torch.cos(angle0),
            radius0 * torch.sin(angle0),
            radius1 * torch.cos(angle1),
            radius1 * torch.sin(angle1),
        ],
        dim=-1,
    )
    return normals.flatten(1)[:, :size].reshape(len(nonce_B), *shape).to(torch.float32)
