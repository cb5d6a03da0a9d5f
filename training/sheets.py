"""Sheets of samples: clips of fixed validation seeds, and below the truth what a model in training makes of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aether_env.conventions import FAR_DEPTH, FRAMES_PER_LATENT
from aether_env.disparity import decode_disparity, encode_disparity, unit_from_depth
from aether_env.sim import SimClips, draw_clips, plan_clips, seed_in
from aether_env.visual import colour_depth, contact_sheet
from aether_env.world_model.clip_model import ClipModel
from training.config import TrainConfig
from training.simulate import CLIP_FRAMES, stored_to_network, to_network

Sheet = Callable[[dict[str, Tensor]], np.ndarray]
"""What `Run.loop` takes: draws a picture (H, W, 3) uint8 of the model with these weights."""
COLUMNS = 5
"""Frames of a clip on a sheet: the first, the last, and three between them."""


class SampleSheet:
    """Clips of the simulator, rendered when a sheet is drawn first: most processes draw none.

    Args:
        count: How many, the first of the validation seeds.
        device: Where they are rendered, and where autoencoders are.
        num_frames: Of each, 4 k + 1.
        fps: Frames per second.
        height: Rows of a picture.
        width: Columns of a picture.
        rendering: Scene family and supersampling, see `plan_clips` and `draw_clips`.
    """

    def __init__(
        self,
        count: int,
        device: str,
        *,
        num_frames: int,
        fps: float,
        height: int,
        width: int,
        supersample: int = 2,
        family: str | None = None,
    ):
        self.count, self.device, self.num_frames, self.fps = count, device, num_frames, fps
        self.height, self.width, self.supersample, self.family = height, width, supersample, family

    @classmethod
    def of_our_layout(cls, config: TrainConfig, device: str) -> SampleSheet:
        """Return one of windows of our layout."""
        data = config.data
        return cls(
            config.watch.sheet_clips,
            device,
            num_frames=CLIP_FRAMES + 1,
            fps=data.fps,
            height=data.height,
            width=data.width,
            supersample=data.supersample,
            family=data.family,
        )

    @functools.cached_property
    def clips(self) -> SimClips:
        """The truth, on the CPU: it stays there for the whole run."""
        seeds = [seed_in("validation", index) for index in range(self.count)]
        plans = plan_clips(seeds, num_frames=self.num_frames, fps=self.fps, family=self.family, threads=1)
        clips = draw_clips(
            plans, height=self.height, width=self.width, device=self.device, supersample=self.supersample
        )
        return dataclasses.replace(clips, **{name: tensor.cpu() for name, tensor in vars(clips).items()})

    def predicted(self, model: ClipModel) -> np.ndarray:
        """Return a sheet of what a model predicts from each first picture, its depth and the path; see `draw`."""
        clips = self.clips
        rgb, depth = clips.rgb[:, 0].numpy(), clips.depth[:, 0].numpy()
        path, intrinsics = clips.world_from_camera.numpy(), clips.intrinsics[:, 0].double().numpy()
        dreams = []
        for first in range(0, self.count, model.at_once):
            rows = slice(first, min(first + model.at_once, self.count))
            dreams.append(
                model.predict(
                    rgb[rows], depth=depth[rows], world_from_camera=path[rows], intrinsics=intrinsics[rows],
                    seeds=list(range(rows.start, rows.stop)), fps=self.fps,
                )
            )  # fmt: skip
        return self.draw(np.concatenate([d.rgb for d in dreams]), np.concatenate([d.depth for d in dreams]))

    @torch.no_grad()
    def decoded(self, colour: Any, disparity: Any | None = None) -> np.ndarray:
        """Return a sheet of what is left of the clips by autoencoders of our layout; see `draw`."""
        video = _through(colour, to_network(self.clips.rgb.to(self.device)))
        rgb = ((video.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8).movedim(2, -1).cpu().numpy()
        if disparity is None:
            return self.draw(rgb)
        depth, valid = self.clips.depth.to(self.device), self.clips.valid.to(self.device)
        unit = unit_from_depth(depth[:, 0], valid[:, 0])
        stored = _through(disparity, stored_to_network(encode_disparity(depth, valid, unit)))
        return self.draw(rgb, decode_disparity((stored[:, :, 0] + 1.0) / 2.0, unit).cpu().numpy())

    def draw(self, rgb: np.ndarray, depth: np.ndarray | None = None) -> np.ndarray:
        """Return a sheet (H, W, 3) uint8, for each clip rows of true colour, colour, true depth, depth.

        Args:
            rgb: (B, T, H, W, 3) uint8, what a model makes of the clips.
            depth: (B, T, H, W) metres; None leaves both rows of depth out.
        """
        frames = list(range(0, self.num_frames, (self.num_frames - 1) // (COLUMNS - 1)))
        true_rgb, true_depth = self.clips.rgb.numpy(), self.clips.depth.numpy()
        cells: list[np.ndarray] = []
        for row in range(self.count):
            cells += [*true_rgb[row, frames], *rgb[row, frames]]
            if depth is not None:
                near = float(np.clip(np.quantile(true_depth[row], 0.02), 1e-3, 0.5 * FAR_DEPTH))
                for video in (true_depth[row, frames], depth[row, frames]):
                    cells += list(colour_depth(video, near, FAR_DEPTH))
        return contact_sheet(cells, columns=COLUMNS)


def decoded_sheet(
    config: TrainConfig, device: str, trained: nn.Module, colour: Any, disparity: Any | None = None
) -> Sheet:
    """Return what draws sheets of autoencoders in training, with copies that are made once.

    Args:
        config: Of the run.
        device: Where the autoencoders are.
        trained: Whose weights come; autoencoders or parts of them.
        colour: The autoencoder of colour.
        disparity: That of disparity, if it is to be seen.
    """
    sheet = SampleSheet.of_our_layout(config, device)

    @functools.cache
    def copies() -> tuple[nn.Module, Any, Any]:
        # Together, so that the copy of what is trained is a part of the others' copies.
        return copy.deepcopy((trained, colour, disparity))

    def draw(weights: dict[str, Tensor]) -> np.ndarray:
        part, *autoencoders = copies()
        part.load_state_dict(weights)
        return sheet.decoded(*autoencoders)

    return draw


def _through(autoencoder: Any, video: Tensor) -> Tensor:
    """Return videos (B, 4 k + 1, C, H, W) in [-1, 1] coded and decoded, the first picture as one at rest, as in use."""
    rest = FRAMES_PER_LATENT - 1
    whole = torch.cat([video[:, :1].expand(-1, rest, -1, -1, -1), video], dim=1).transpose(1, 2)
    return autoencoder.decode(autoencoder.encode(whole).latent_dist.mode()).sample.transpose(1, 2)[:, rest:]
