"""Walk into a picture: dream 24 steps of Aether-v0, plan to a goal picture, write videos, pictures and a point cloud.

    python examples/00_demo.py                        # from a bundled picture, the simulator's truth beside it
    python examples/00_demo.py --image my_photo.jpg   # from a picture of your own

What it writes: walk.mp4, contact_sheet.png, cloud.glb, plan.mp4 and plan.png.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

import aether_env  # noqa: F401  (registers the environments)
from aether_env import visual
from aether_env.envs.starts import load_start
from aether_env.pictures import read_picture
from aether_env.pointcloud import depth_edges, unproject_depth, write_points
from policies.planner import GoalPlanner, Plan
from policies.scripted import demo_walk

START = "room-082"
"""The bundled picture that the demo begins with."""
GOAL_FRAME = 16
"""Frame of the walk whose picture is the goal of the plan."""
MAX_POINTS = 120_000


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a walk of S steps showed, frame by frame (T = 1 + S * frames per step)."""

    rgb: np.ndarray
    """(T, H, W, 3) uint8."""
    depth: np.ndarray
    """(T, H, W) float32, metres or the dream's unit."""
    world_from_camera: np.ndarray
    """(T, 4, 4)."""
    intrinsics: np.ndarray
    """(3, 3) pixels."""
    metric: bool
    seconds_per_step: float


def main(
    image: Path | None = None, out: Path = Path("outputs/demo"), model: str = "mini", steps: int = 24, seed: int = 0
) -> None:
    """Dream a walk and a plan.

    Args:
        image: Picture to start from (PNG, JPEG, WebP or BMP); None takes a bundled one, whose truth is known.
        out: Folder for everything that is written.
        model: Checkpoint, a bundled name or a folder.
        steps: Steps of the walk, 4 frames each; at least 4.
        seed: Of the dream.
    """
    try:
        options, actions = start_options(image), demo_walk(max(steps, 4))
        # Imported late: PyTorch takes a while, errors need not wait.
        from aether_env.world_model.own_clips import OwnClips
        from aether_env.world_model.pipeline import AetherPipeline
        from aether_env.world_model.rollout import DreamWorld

        clips = OwnClips.from_checkpoint(model)  # the planner and the env share one set of weights
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    planner = GoalPlanner(AetherPipeline(clips))
    world = DreamWorld(clips.parts)
    dream = take_walk(gym.make("Aether-v0", world=world, frames_in_info=True), actions, options, seed, "dreaming")
    truth = None
    if "scene_seed" in options:
        sim = gym.make(
            "AetherSim-v0", split="test", height=world.height, width=world.width, fps=world.fps, frames_in_info=True
        )
        truth = take_walk(sim, actions, {"scene_seed": options["scene_seed"]}, seed, "rendering the truth")
    goal = (truth or dream).rgb[GOAL_FRAME]
    picture = options.pop("image")
    camera = {name: options[name] for name in ("depth", "intrinsics") if name in options}
    plan = planner.plan(picture, goal, seed=seed, **camera)

    files = [
        visual.write_video(out / "walk.mp4", walk_frames(dream, truth), world.fps, scale=1),
        visual.write_png(out / "contact_sheet.png", sheet(dream, truth)),
        write_cloud(out / "cloud.glb", dream),
        visual.write_video(out / "plan.mp4", plan_frames(plan, goal), plan.fps, scale=1),
        visual.write_png(out / "plan.png", plan_picture(plan, goal, truth)),
    ]
    report(dream, plan, truth, files)


def start_options(image: Path | None) -> dict[str, Any]:
    """Return the options of `reset`: the user's picture, or the bundled one with all that is known about it."""
    if image is not None:
        return {"image": read_picture(image)}
    start = load_start(START)
    known = {"depth": start.depth, "intrinsics": start.intrinsics, "scene_seed": start.scene_seed}
    return {"image": start.rgb} | {name: value for name, value in known.items() if value is not None}


def take_walk(env: gym.Env, actions: np.ndarray, options: dict[str, Any], seed: int, what: str) -> Walk:
    """Run the actions, and return every frame; the env is closed."""
    observation, info = env.reset(seed=seed, options=options)
    rgb, depth, poses = [observation["rgb"][None]], [observation["depth"][None]], [info["world_from_camera"][None]]
    seconds = []
    for action in tqdm(actions, desc=f"{what:<20}", unit="step"):
        began = time.perf_counter()
        *_, info = env.step(action)
        seconds.append(time.perf_counter() - began)
        rgb.append(info["rgb_frames"])
        depth.append(info["depth_frames"])
        poses.append(info["poses"])
    env.close()
    return Walk(
        rgb=np.concatenate(rgb),
        depth=np.concatenate(depth)[..., 0],
        world_from_camera=np.concatenate(poses),
        intrinsics=info["intrinsics"],
        metric=info["metric"],
        seconds_per_step=float(np.median(seconds)),
    )


def walk_frames(dream: Walk, truth: Walk | None) -> np.ndarray:
    """Return the video: colour beside depth, the truth below."""
    near = 0.5 * float(np.quantile(dream.depth[0], 0.1))
    rows = []
    for name, walk in (("dream", dream), ("truth", truth)):
        if walk is not None:
            rows.append(
                visual.side_by_side(large(walk.rgb, name), large(visual.colour_depth(walk.depth, near), "depth"))
            )
    return visual.one_above_other(*rows)


def large(frames: np.ndarray, caption: str) -> np.ndarray:
    """Return frames (..., H, W, 3) at a size that shows well, with a caption."""
    return visual.with_caption(visual.enlarge(frames, max(1, 256 // frames.shape[-3])), caption, size=20)


def sheet(dream: Walk, truth: Walk | None) -> np.ndarray:
    """Return seven moments of the walk as columns; rows are dream and truth, colour and depth."""
    moments = np.linspace(0, len(dream.rgb) - 1, 7).round().astype(int)
    near = 0.5 * float(np.quantile(dream.depth[0], 0.1))
    cells, captions = [], []
    for name, walk in (("dream", dream), ("truth", truth)):
        if walk is None:
            continue
        for what, frames in ((name, walk.rgb), (f"{name}, depth", visual.colour_depth(walk.depth, near))):
            cells += [visual.enlarge(frames[t], 2) for t in moments]
            captions += [f"{what}, frame {t}" for t in moments]
    return visual.contact_sheet(cells, columns=len(moments), captions=captions)


def write_cloud(path: Path, walk: Walk) -> Path:
    """Write the points that the dream shows at the end of each step, and the cameras, as a point cloud."""
    every = slice(None, None, 4)
    rgb, depth, poses = walk.rgb[every], walk.depth[every], walk.world_from_camera[every]
    # Depth edges hang in the air, and the sky has no place.
    solid = ~depth_edges(depth) & (depth < 6 * np.median(depth[0]))
    points, colours = unproject_depth(depth, walk.intrinsics, poses)[solid], rgb[solid]
    thin = slice(None, None, -(-len(points) // MAX_POINTS) or 1)
    return write_points(
        path,
        points[thin],
        colours[thin],
        world_from_camera=poses,
        intrinsics=walk.intrinsics,
        image_hw=depth.shape[1:],
        frustum_depth=0.1 * float(np.median(depth[0])),
    )


def plan_frames(plan: Plan, goal: np.ndarray) -> np.ndarray:
    """Return the video of a plan: the dreamed way, its depth, and the goal all along."""
    still = np.broadcast_to(goal, plan.rgb.shape)
    return visual.side_by_side(
        large(plan.rgb, "plan"), large(visual.colour_depth(plan.depth, 0.5 * float(plan.depth[0].min())), "depth"),
        large(still, "goal"),
    )  # fmt: skip


def plan_picture(plan: Plan, goal: np.ndarray, truth: Walk | None) -> np.ndarray:
    """Return one picture of a plan: observation, goal, end of the plan and the path from above; below, the way."""
    paths = {"plan": plan.path.world_from_camera}
    if truth is not None:
        paths["truth"] = truth.world_from_camera[: GOAL_FRAME + 1]
    pictures = {"observation": plan.rgb[0], "goal": goal, "end of the plan": plan.rgb[-1]}
    cells = {name: visual.enlarge(picture, 3) for name, picture in pictures.items()}
    cells["path from above"] = visual.paths_from_above(paths, *cells["goal"].shape[:2])
    cells |= {f"plan, frame {t}": visual.enlarge(plan.rgb[t], 3) for t in (4, 8, 12, 16)}
    return visual.contact_sheet(list(cells.values()), columns=4, captions=list(cells))


def report(dream: Walk, plan: Plan, truth: Walk | None, files: list[Path]) -> None:
    """Say what was made, where it is and how long a step took."""
    unit = "m" if plan.metric else "units (no scale: the start came without depth)"
    print(f"\nOne step of the dream (4 frames) took {1000 * dream.seconds_per_step:.0f} ms.")
    goal = np.round(plan.goal_pose[:3, 3], 2).tolist()
    print(f"The plan ends at {goal} {unit} (right, down, forward of the start).")
    if truth is not None:
        print(f"The goal picture was taken at {np.round(truth.world_from_camera[GOAL_FRAME, :3, 3], 2).tolist()} m.")
    for file in files:
        print(f"  {file}")


if __name__ == "__main__":
    tyro.cli(main)
