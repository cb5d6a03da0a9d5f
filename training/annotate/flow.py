"""Optical flow behind a small promise: DIS by default, RAFT where torchvision has it; and what flows tell together."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import cv2
import numpy as np

MIN_RAFT_SIDE = 128
"""Pixels; RAFT's coarsest level of a smaller picture is empty."""


class FlowEstimator(Protocol):
    """Finds where the points of one picture are in another one."""

    def __call__(self, a_HW3: np.ndarray, b_HW3: np.ndarray) -> np.ndarray:
        """Return how far each pixel of `a` has moved in `b`, (H, W, 2) float32 pixels: x, y.

        Args:
            a_HW3: (H, W, 3) uint8.
            b_HW3: (H, W, 3) uint8.
        """
        ...


class DISFlow:
    """Dense inverse search (Kroeger et al. 2016) of OpenCV: a few hundredths of a second on one core, no weights.

    Its error is a few tenths of a pixel where there is texture. It fails where things move by more than about a tenth
    of the picture, and beside the borders of things.
    """

    def __call__(self, a_HW3: np.ndarray, b_HW3: np.ndarray) -> np.ndarray:
        """Return the flow; see `FlowEstimator`."""
        # Objects of OpenCV cannot be sent to other processes, so none is kept; making one takes microseconds.
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        search.setFinestScale(0)  # the preset stops at half the size, which doubles the error
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (a_HW3, b_HW3)]
        return search.calc(grey[0], grey[1], None)


class RAFTFlow:
    """RAFT (Teed and Deng 2020) of torchvision: better than DIS on large motion, and much slower without a GPU.

    Untested on real weights: they are not in this package. Its tests run torchvision's class with random ones, where
    torchvision is installed.

    Args:
        weights: A safetensors file with the state of `raft_large` or `raft_small` of torchvision.
        device: Where it runs.
        updates: Refinements of the flow.

    Raises:
        ValueError: torchvision is not installed, or the file is not there or does not fit.
    """

    def __init__(self, weights: Any, *, device: str = "cpu", updates: int = 12):
        self._network, self._device, self._updates = load_raft(weights).to(device), device, updates

    def __call__(self, a_HW3: np.ndarray, b_HW3: np.ndarray) -> np.ndarray:
        """Return the flow; see `FlowEstimator`. Pictures are padded to multiples of 8 by their borders."""
        import torch

        height, width = a_HW3.shape[:2]
        short = [max(MIN_RAFT_SIDE, -(-side // 8) * 8) - side for side in (height, width)]
        padded = [
            cv2.copyMakeBorder(picture, 0, short[0], 0, short[1], cv2.BORDER_REPLICATE) for picture in (a_HW3, b_HW3)
        ]
        pair_23HW = torch.from_numpy(np.stack(padded)).to(self._device).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.inference_mode():
            flow_2HW = self._network(pair_23HW[:1], pair_23HW[1:], num_flow_updates=self._updates)[-1][0]
        return np.ascontiguousarray(flow_2HW[:, :height, :width].permute(1, 2, 0).cpu().numpy())


def load_raft(weights: Any) -> Any:
    """Return RAFT of torchvision for inference, large or small as the file is.

    Args:
        weights: A safetensors file of the network's state.

    Raises:
        ValueError: torchvision is not installed, or the file is not there or does not fit.
    """
    try:
        models = import_module("torchvision.models.optical_flow")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ValueError(
            f"flow cannot be RAFT: torchvision cannot be imported ({error}); install it with pip install torchvision, "
            "or use DIS, which needs nothing."
        ) from error
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(weights)
        is_large = any(name.startswith("mask_predictor") for name in state)  # the small one has none
        network = (models.raft_large if is_large else models.raft_small)(weights=None)
        network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"weights must be a safetensors file with the state of torchvision's raft_large or raft_small, got "
            f"{weights}: {error}"
        ) from error
    return network.eval()


@dataclass(frozen=True, eq=False)
class Flows:
    """The flows between neighbouring frames of T, found once and shared by all that need them."""

    forward: np.ndarray
    """(T - 1, H, W, 2) float32 pixels: from each frame to the next."""
    backward: np.ndarray
    """(T - 1, H, W, 2) float32 pixels: from each next frame back."""

    def disagreement(self, row: int) -> np.ndarray:
        """Return how far off a point of frame `row` lands that goes to the next frame and back; see `disagreement`."""
        return disagreement(self.forward[row], self.backward[row])


def find_flows(rgb_THW3: np.ndarray, estimator: FlowEstimator | None = None) -> Flows:
    """Return the flows of a video, to the next frame and back.

    Args:
        rgb_THW3: (T, H, W, 3) uint8.
        estimator: None is DIS.
    """
    estimator = DISFlow() if estimator is None else estimator
    pairs = list(zip(rgb_THW3[:-1], rgb_THW3[1:], strict=True))
    shape = (len(pairs), *rgb_THW3.shape[1:3], 2)
    forward, backward = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for row, (a, b) in enumerate(pairs):
        forward[row], backward[row] = estimator(a, b), estimator(b, a)
    return Flows(forward, backward)


def disagreement(forward_HW2: np.ndarray, backward_HW2: np.ndarray) -> np.ndarray:
    """Return how far from home each pixel lands that goes along the flow and comes back: |forward + backward there|.

    It is large where the flow is wrong and where the pixel is hidden in the other picture.

    Args:
        forward_HW2: (H, W, 2) pixels, from a to b.
        backward_HW2: (H, W, 2) pixels, from b to a.

    Returns:
        (H, W) float32 pixels; inf where the pixel leaves the picture.
    """
    back = at_targets(backward_HW2.astype(np.float32), forward_HW2)
    distance = np.linalg.norm(forward_HW2 + back, axis=-1).astype(np.float32)
    return np.where(stays_inside(forward_HW2), distance, np.float32(np.inf))


def pixel_targets(flow_HW2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where pixels go, (H, W) float32 each: column and row as array indices, so that 0 is a pixel's centre."""
    height, width = flow_HW2.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    return x + flow_HW2[..., 0].astype(np.float32), y + flow_HW2[..., 1].astype(np.float32)


def stays_inside(flow_HW2: np.ndarray) -> np.ndarray:
    """Return which pixels are still in the picture after moving by the flow, (H, W) bool."""
    x, y = pixel_targets(flow_HW2)
    height, width = x.shape
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def at_targets(values: np.ndarray, flow_HW2: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Return what lies where each pixel goes; beyond the picture that of its border.

    Args:
        values: (H, W) or (H, W, C), uint8 or float32.
        flow_HW2: (H, W, 2) pixels.
        nearest: That of the nearest pixel instead of a linear mix.
    """
    x, y = pixel_targets(flow_HW2)
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(values, x, y, how, borderMode=cv2.BORDER_REPLICATE)


def static_flow(
    depth_HW: np.ndarray, intrinsics_33: np.ndarray, b_from_a_44: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow that a world at rest has when the camera moves, and the depth that it then has.

    Args:
        depth_HW: (H, W) z-depth seen from a; where it is not known, what is returned means nothing.
        intrinsics_33: (3, 3) pixels.
        b_from_a_44: (4, 4) takes points of camera a to camera b.

    Returns:
        (H, W, 2) float32 pixels from a to b, and (H, W) float32 z-depth in b: not positive behind the camera, where the
        flow is infinite.
    """
    height, width = depth_HW.shape
    pixel_HW3 = np.ones((height, width, 3))
    pixel_HW3[..., 0], pixel_HW3[..., 1] = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    turn_33 = intrinsics_33 @ b_from_a_44[:3, :3] @ np.linalg.inv(intrinsics_33)
    moved_HW3 = pixel_HW3 @ turn_33.T * depth_HW[..., None] + intrinsics_33 @ b_from_a_44[:3, 3]
    z_HW = moved_HW3[..., 2]
    in_front = z_HW > 0
    scale = np.divide(1.0, z_HW, out=np.zeros_like(z_HW), where=in_front)
    flow = moved_HW3[..., :2] * scale[..., None] - pixel_HW3[..., :2]
    flow[~in_front] = np.inf
    return flow.astype(np.float32), z_HW.astype(np.float32)
