"""An honest double of the chain, importable in other processes: what it does to a video is told by the video's name."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from training.annotate.results import PieceResult, SliceResult
from training.clips import Clip

CALLS = "TEST_ANNOTATE_CALLS"
"""Environment variable: folder in which every call leaves a file."""


def annotate_known(footage, settings):
    """Keep the first frames as a clip with a straight path, refuse a slice, and drop the last frame."""
    calls = Path(os.environ[CALLS])
    (calls / f"{footage.name}.{os.getpid()}.{time.monotonic_ns()}").touch()
    if footage.name == "bad":
        raise RuntimeError("this <video> is bad")
    if footage.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if footage.name.startswith("slow"):
        time.sleep(0.5)
    if footage.name.startswith("meet"):  # two of them must be at work at once
        limit = time.monotonic() + 60
        while len(list(calls.glob("meet*"))) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
    if footage.name == "endless":
        time.sleep(600)
    kept, refused = np.arange(len(footage) - 3), np.arange(len(footage) - 3, len(footage) - 1)
    moving = np.zeros(footage.depth.shape, bool)
    moving[:, :4] = True
    figures = {"focal": 30.0, "focal_std": 0.5, "reprojection": np.full(len(kept), 0.25), "nothing": np.nan}
    return PieceResult(
        slices=(
            SliceResult(
                frames=footage.frame[kept], clip=clip_of(footage, kept, moving), quality=0.875, figures=figures,
                world_from_camera=path(len(kept)),
            ),
            SliceResult(frames=footage.frame[refused], clip=None, reason="inconsistent", figures={"focal": 60.0}),
        ),
        dropped={int(footage.frame[-1]): "blurred"},
        moving=moving,
        seconds={"all": 0.5},
    )  # fmt: skip


def path(length):
    poses = np.tile(np.eye(4), (length, 1, 1))
    poses[:, 2, 3] = 0.1 * np.arange(length)
    return poses


def clip_of(footage, rows, moving):
    height, width = footage.size
    intrinsics = np.array([[30.0, 0, width / 2], [0, 30.0, height / 2], [0, 0, 1]])
    return Clip(
        rgb=footage.rgb[rows],
        depth=footage.depth[rows],
        valid=footage.valid[rows],
        moving=moving[rows],
        world_from_camera=path(len(rows)),
        intrinsics=np.tile(intrinsics, (len(rows), 1, 1)),
        fps=footage.fps,
        name="overwritten",
    )
