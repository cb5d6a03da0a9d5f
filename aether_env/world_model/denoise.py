"""From noise to latents: the sampling loop that every task and every env step shares."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from aether_env.world_model.conditions import HISTORY, Window, transformer_input
from aether_env.world_model.network import CleanPrediction, Past

_prepared: WeakKeyDictionary[Any, dict[tuple, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Of each scheduler, the levels and time steps of what it was asked for here."""


def _set_levels(scheduler: Any, sigmas: list[float], device: torch.device) -> None:
    """Prepare a scheduler. Its levels go to the device once: a copy makes a GPU wait, and cannot be recorded."""
    known = _prepared.setdefault(scheduler, {})
    asked = (tuple(sigmas), device)
    if asked not in known:
        with torch.inference_mode(False):  # they may serve a call with gradients later
            scheduler.set_timesteps(sigmas=list(sigmas), device=device)
        known[asked] = scheduler.sigmas, scheduler.timesteps
    scheduler.sigmas, scheduler.timesteps = known[asked]
    scheduler._step_index = None
    scheduler.set_begin_index(0)  # otherwise it looks the index up, which makes a GPU wait


def look_back(predict_clean: CleanPrediction, window: Window) -> tuple[Past | None, Window]:
    """Return what the network keeps of a window's history (None without one), and the rest of the window."""
    if not window.history:
        return None, window
    history = window[: window.history]
    nothing = torch.zeros_like(history.known)
    return predict_clean.look(transformer_input(history, nothing), history.positions), window[window.history :]


def step_detail(detail: float, steps: Tensor) -> Tensor:
    """Return the detail (B, 1, 1, 1, 1) of env steps that come after `steps` (B,) others, for `denoise`.

    A picture that was given is sharp. A dream is a little softer than what it was dreamed from, and that adds up: the
    full detail is for a history that is all dreamed.
    """
    return (detail * steps.clamp(max=HISTORY) / HISTORY)[:, None, None, None, None]


def denoise(
    predict_clean: CleanPrediction,
    scheduler: Any,
    window: Window,
    noise: Tensor,
    sigmas: list[float],
    detail: float | Tensor = 0.0,
) -> Tensor:
    """Follow the straight path from noise to latents (rectified flow, Euler steps).

    Args:
        predict_clean: The network.
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler, without shift.
        window: What is known.
        noise: (B, N - window.history, TARGET_CHANNELS, h, w) standard normal.
        sigmas: Noise levels at which the network is asked, falling from 1; 0 is added at the end.
        detail: A number, or one for each item (B, 1, 1, 1, 1): how much farther the result goes in the direction from
            the network's first answer, the mean of all pictures that it could be, to its last. A few levels end short
            of one of them: too soft. As in guidance by a worse version of oneself (Karras et al. 2024, "Guiding a
            diffusion model with a bad version of itself").

    Returns:
        Clean latents, shaped as the noise; only dreamed slots mean anything.
    """
    past, window = look_back(predict_clean, window)
    _set_levels(scheduler, sigmas, noise.device)
    latents, first = noise, noise
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = torch.full((1,), sigmas[index], device=noise.device)
        clean = predict_clean(transformer_input(window, latents), sigma, window.positions, past)
        first = clean if index == 0 else first
        if index == len(sigmas) - 1:
            clean = clean + detail * (clean - first)
        velocity = (latents - clean) / sigmas[index]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
