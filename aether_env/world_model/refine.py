"""What a network found of a video, made to fit its pictures: direct bundle adjustment from the network's answer.

Poses, focal length and a smooth correction of each depth map are moved until pictures and depth of frames some steps
apart agree, by Levenberg-Marquardt on colours, without tracks (Engel et al. 2018, "Direct sparse odometry"). The
network says what is where, the pictures say it more exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad, unfold

from aether_env.camera import make_pose
from aether_env.conventions import FAR_DEPTH
from aether_env.raymap import nearest_rotation
from aether_env.world_model.latents import shows_surface
from aether_env.world_model.reproject import Views, inverse_pose, reproject

OFFSETS = (2, 5, 10)
"""Frames between the two of a pair; nearer ones add little, of farther ones too little is seen in both."""
GRID = (6, 8)
"""Nodes of the correction of a depth map, rows and columns."""
CELL = 4
"""Of every cell of so many pixels, the one with the strongest gradient is followed."""
LEAST_SLOPE = 0.01
"""Of a colour in 0..1 per pixel: where there is less, nothing is followed."""
LEAST_SHARE = 0.05
"""Of points that can be followed; with fewer the video is left as it was found."""
BLURS = (4, 2, 0)
"""How often pictures are blurred, from coarse to fine: a blurred picture pulls from farther away."""
ITERATIONS = 8
"""At most, at each blur."""
ENOUGH = 1e-3
"""A relative gain of the cost below which a blur is done with."""
COLOUR_NOISE = 0.007
"""Of a colour in 0..1; what differs by much more is something else (Cauchy)."""
DEPTH_NOISE = 0.05
"""Of the logarithm of depth, where two frames disagree."""
DEPTH_WEIGHT = 0.1
"""Of agreement in depth beside agreement in colour: the network's errors in neighbouring frames are alike."""
HIDDEN = 0.15
"""Where a frame shows something nearer than this (logarithm of depth), the point is hidden in it."""
BEND = 0.2
"""Standard deviation of the difference between neighbouring nodes, in space and time, logarithm of depth."""
CHANGE = 0.7
"""Of a node itself."""
FOCAL = 0.05
"""Of the logarithm of the focal length."""
TURN = 0.1
"""Of a pose beside the given one, radians."""
MOVE = 0.2
"""The same for its position, in median depths."""
NEIGHBOURS = (1, 2, 4, 6, 8)
"""Frames before and after that have a say in a frame's depth at the end."""
LIKE = 0.05
"""Mean difference of colours in [-1, 1] at which a neighbour's say falls to 1 / e."""
LONGEST = 96
"""Pixels of the longer side at which pictures are compared."""
_NEAREST = 1e-3
_STEADY = 1e-6


@dataclass(frozen=True)
class Refined:
    """A video as it was found, closer to its pictures."""

    depth: np.ndarray
    """(T, H, W) float32, in the unit of what was given."""
    world_from_camera: np.ndarray
    """(T, 4, 4) float64, world = first frame."""
    intrinsics: np.ndarray
    """(3, 3) float64 pixels."""
    cost: tuple[float, float]
    """Mean robust cost of a point at the finest level, before and after."""


class _State(NamedTuple):
    """What is moved."""

    pose: Tensor
    """(T, 4, 4) float64 world from camera."""
    log_focal: Tensor
    """() float64, beside the given focal length."""
    node: Tensor
    """(T, G) float64, added to the logarithm of depth."""
    change: Tensor
    """(T, 6) float64, how much the poses were moved in all: translation, rotation vector."""


class _Level(NamedTuple):
    """Pictures of one blur."""

    rgb: Tensor
    """(T, 3, H, W)."""
    slope: Tensor
    """(T, 6, H, W) of the three colours along x, then along y, per pixel."""


@torch.inference_mode()
def refine(
    rgb: np.ndarray,
    depth: np.ndarray,
    world_from_camera: np.ndarray,
    intrinsics: np.ndarray,
    *,
    hold_depth: np.ndarray | None = None,
    hold_path: bool = False,
    hold_focal: bool = False,
    device: torch.device | str = "cpu",
) -> Refined:
    """Return depth, path and focal length that fit the pictures better.

    Args:
        rgb: (T, H, W, 3) uint8.
        depth: (T, H, W) in any unit, FAR_DEPTH for the sky.
        world_from_camera: (T, 4, 4) in the same unit.
        intrinsics: (3, 3) pixels, of all frames, square pixels and the principal point at the centre.
        hold_depth: (T,) bool, frames whose depth is known; None: none.
        hold_path: The path is known.
        hold_focal: The intrinsics are known.
        device: Where to compute.

    Returns:
        The same in the same unit: the median of the first depth map about stays, unless some depth or the path is
        known.
        What was given comes back where there are fewer than three frames or nothing to follow in them.
    """
    given = Refined(depth.astype(np.float32), world_from_camera.copy(), intrinsics.copy(), (0.0, 0.0))
    if len(rgb) <= OFFSETS[0]:
        return given
    hold = np.zeros(len(rgb), dtype=bool) if hold_depth is None else np.asarray(hold_depth, dtype=bool)
    problem = _Problem(rgb, depth, world_from_camera, intrinsics, device)
    free = problem.free(hold, hold_path, hold_focal)
    if not len(free):
        return given
    state = problem.start
    for blur in BLURS:
        level = problem.level(blur)
        before, state = problem.cost(level, problem.start), problem.descend(level, state, free)
    after = problem.cost(level, state)
    if not (np.isfinite(after) and after < before):
        return given
    refined = problem.answer(state, given, not (hold_path or hold.any()), (before, after))
    return replace(refined, depth=_fused(rgb, refined, hold, device))


class _Problem:
    """A video and the points that are followed in it."""

    def __init__(
        self, rgb: np.ndarray, depth: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray, device: torch.device | str
    ):
        frames, full_height, full_width = depth.shape
        shrink = max(1, round(max(full_height, full_width) / LONGEST))
        self.height, self.width = full_height // shrink, full_width // shrink
        size = (self.height, self.width)
        pictures = torch.as_tensor(rgb, device=device).movedim(-1, 1).float() / 255
        away = torch.as_tensor(depth, device=device).float()
        if shrink > 1:
            pictures = interpolate(pictures, size, mode="area")
            away = interpolate(away[:, None], size, mode="nearest-exact")[:, 0]
        self.rgb, self.surface = pictures, shows_surface(away)
        # Lengths are counted in the median depth, or damping and rounding would depend on the unit.
        self.unit = away[self.surface].median() if self.surface.any() else away.new_tensor(1.0)
        self.log_depth = (away / self.unit).clamp_min(_NEAREST).log()
        self.focal = float(intrinsics[0, 0] + intrinsics[1, 1]) / 2 * self.width / full_width
        pose_t = torch.as_tensor(pose, dtype=torch.float64, device=device).clone()
        pose_t[:, :3, 3] /= self.unit.double()
        nodes = GRID[0] * GRID[1]
        zero = torch.zeros(frames, nodes, dtype=torch.float64, device=device)
        self.start = _State(pose_t, zero.new_zeros(()), zero, zero.new_zeros(frames, 6))
        pairs = [(i, j) for step in OFFSETS for i in range(frames) for j in (i - step, i + step) if 0 <= j < frames]
        self.one, self.other = torch.tensor(pairs, device=device).T
        self.share = _shares(*size, device)
        self._choose_points()
        self.prior = self._prior(frames).to(device)

    def _choose_points(self) -> None:
        """Take a point (T, N) of each cell: its number among the pixels, and where it is from the centre."""
        slope = _slopes(_blurred(self.rgb.mean(1, keepdim=True), 1)).square().sum(1, keepdim=True)
        rim = torch.ones_like(slope)
        rim[..., 1:-1, 1:-1] = 0.0
        rows, columns = self.height // CELL, self.width // CELL
        slope -= rim
        cells = slope[..., : rows * CELL, : columns * CELL]
        best = unfold(cells, CELL, stride=CELL).argmax(1)
        cell = torch.arange(rows * columns, device=best.device)
        row, column = cell // columns * CELL + best // CELL, cell % columns * CELL + best % CELL
        self.point = row * self.width + column
        self.followed = slope.flatten(1).gather(1, self.point) > LEAST_SLOPE**2
        self.x = column + 0.5 - self.width / 2
        self.y = row + 0.5 - self.height / 2

    def _prior(self, frames: int) -> Tensor:
        """Return the matrix (D, D) of the quadratic cost of nodes, changes of poses and focal length."""
        rows, columns = GRID
        number = torch.arange(frames * rows * columns).unflatten(0, (frames, rows, columns))
        size = number.numel() + 6 * frames + 1
        prior = torch.zeros(size, size, dtype=torch.float64)
        flat = number.flatten()
        prior[flat, flat] = 1 / CHANGE**2
        poses = torch.arange(len(flat), size - 1).unflatten(0, (frames, 6))
        prior[poses[:, :3], poses[:, :3]] = 1 / MOVE**2
        prior[poses[:, 3:], poses[:, 3:]] = 1 / TURN**2
        prior[-1, -1] = 1 / FOCAL**2
        for axis, length in enumerate(number.shape):
            here = number.narrow(axis, 0, length - 1).flatten()
            there = number.narrow(axis, 1, length - 1).flatten()
            for a, b, sign in ((here, here, 1), (there, there, 1), (here, there, -1), (there, here, -1)):
                prior[a, b] += sign / BEND**2
        return prior

    def free(self, hold_depth: np.ndarray, hold_path: bool, hold_focal: bool) -> Tensor:
        """Return which of the D unknowns are moved: nodes of all frames, poses but the first, focal length."""
        if self.followed.float().mean() < LEAST_SHARE:
            return self.point.new_zeros(0)
        frames, nodes = self.start.node.shape
        held = torch.as_tensor(hold_depth)[:, None].expand(-1, nodes).flatten()
        poses = torch.ones(frames, 6, dtype=torch.bool)
        poses[0] = False
        if hold_path:
            poses[:] = False
        moved = torch.cat([~held, poses.flatten(), torch.tensor([not hold_focal])])
        return moved.nonzero()[:, 0].to(self.point.device)

    def level(self, blur: int) -> _Level:
        """Return the pictures, blurred so many times."""
        rgb = _blurred(self.rgb, blur)
        return _Level(rgb, _slopes(rgb))

    def descend(self, level: _Level, state: _State, free: Tensor) -> _State:
        """Return a state of less cost."""
        damping = 1e-3
        cost = self.cost(level, state)
        for _ in range(ITERATIONS):
            matrix, slope = self.normal_equations(level, state)
            matrix, slope = matrix[free][:, free], slope[free]
            better = None
            while better is None and damping < 1e3:
                damped = matrix + torch.diag(damping * matrix.diagonal() + _STEADY)
                factor, failed = torch.linalg.cholesky_ex(damped)
                step = torch.zeros(len(self.prior), dtype=torch.float64, device=slope.device)
                step[free] = -torch.cholesky_solve(slope[:, None], factor)[:, 0]
                moved = self._moved(state, step)
                new_cost = self.cost(level, moved) if not failed else np.inf
                if new_cost < cost:
                    better = moved
                damping *= 0.2 if better is not None else 10.0
            if better is None:
                break
            gain, cost, state = 1 - new_cost / cost, new_cost, better
            if gain < ENOUGH:
                break
        return state

    def _moved(self, state: _State, step: Tensor) -> _State:
        frames, nodes = state.node.shape
        turn = step[frames * nodes : -1].unflatten(0, (frames, 6))
        change = torch.zeros(frames, 4, 4, dtype=torch.float64, device=step.device)
        change[:, :3, :3], change[:, :3, 3] = _cross(turn[:, 3:]), turn[:, :3]
        pose = state.pose @ torch.linalg.matrix_exp(change)
        node = state.node + step[: frames * nodes].unflatten(0, (frames, -1))
        return _State(pose, state.log_focal + step[-1], node, state.change + turn)

    def _seen(self, level: _Level, state: _State, slopes: bool) -> _Seen:
        """Return what points of the first frames of all pairs (P, N) look like in the second ones."""
        one, other, focal = self.one, self.other, self.focal * float(state.log_focal.exp())
        log_depth = self.log_depth.double() + self.surface * self._correction(state.node)
        log_depth = log_depth.float().clamp(-7.0, 7.0)
        away = self._at(log_depth[:, None])[:, 0].exp()[one]
        point = torch.stack([self.x[one] / focal, self.y[one] / focal, torch.ones_like(away)], dim=1) * away[:, None]
        motion = (inverse_pose(state.pose)[other] @ state.pose[one]).float()
        there = motion[:, :3, :3] @ point + motion[:, :3, 3:]
        z = there[:, 2].clamp_min(_NEAREST)
        u, v = there[:, 0] / z * focal, there[:, 1] / z * focal
        grid = torch.stack([u * (2 / self.width), v * (2 / self.height)], dim=-1)[:, None]
        # Disparity is linear on every plane, so that its interpolation is exact but at edges.
        disparity = (-log_depth).exp()[:, None]
        layers = [level.rgb, disparity] + ([level.slope, _slopes(disparity)] if slopes else [])
        sampled = grid_sample(torch.cat(layers, dim=1)[other], grid, padding_mode="border", align_corners=False)[
            :, :, 0
        ]
        colour = sampled[:, :3] - self._at(level.rgb)[one]
        depth = (sampled[:, 3] * z).log()
        inside = (there[:, 2] > _NEAREST) & (grid[:, 0].abs().amax(-1) <= 1) & (depth <= HIDDEN) & self.followed[one]
        surface = self._at(self.surface[:, None].float())[:, 0][one]
        return _Seen(
            point, there, u, v, focal, motion[:, :3, :3], colour, depth, inside.float(), inside.float() * surface,
            sampled[:, 4:],
        )  # fmt: skip

    def cost(self, level: _Level, state: _State) -> float:
        """Return the robust cost of a state, for each point that is seen, with that of the prior."""
        seen = self._seen(level, state, slopes=False)
        colour = torch.log1p(seen.colour.square().mean(1) / COLOUR_NOISE**2)
        depth = DEPTH_WEIGHT * torch.log1p((seen.depth / DEPTH_NOISE) ** 2)
        total = (colour * seen.inside + depth * seen.on_surface).double().sum()
        unknown = _unknown(state)
        # For each point, not the sum: losing sight of points must not pay.
        return float((total + unknown @ self.prior @ unknown) / seen.inside.sum().clamp_min(1))

    def normal_equations(self, level: _Level, state: _State) -> tuple[Tensor, Tensor]:
        """Return matrix (D, D) and slope (D,) of half the cost of all points, robust weights held (Gauss-Newton)."""
        frames, nodes = state.node.shape
        seen = self._seen(level, state, slopes=True)
        by_camera, by_log_depth = _derivatives(seen)
        robust = seen.inside / (3 * COLOUR_NOISE**2 + seen.colour.square().sum(1))
        robust_depth = seen.on_surface * DEPTH_WEIGHT / (DEPTH_NOISE**2 + seen.depth.square())
        weight = torch.cat([robust[:, None].expand(-1, 3, -1), robust_depth[:, None]], dim=1).sqrt()
        residual = torch.cat([seen.colour, seen.depth[:, None]], dim=1) * weight
        by_camera = (by_camera * weight[:, :, None]).movedim(2, 3)
        own, theirs = self._shares_of_points(seen)
        by_own = (by_log_depth * weight)[..., None] * own[:, None]
        by_theirs = -weight[:, 3, :, None] * theirs
        colour_rows = torch.cat([by_own[:, :3], by_camera[:, :3]], dim=-1).flatten(1, 2)
        depth_rows = torch.cat([by_own[:, 3], by_camera[:, 3], by_theirs], dim=-1)

        index = self._places(frames, nodes)
        matrix, slope = self.prior.clone(), self.prior @ _unknown(state)
        for rows, values in ((colour_rows, residual[:, :3].flatten(1)), (depth_rows, residual[:, 3])):
            where = index[:, : rows.shape[-1]]
            block, part = rows.mT @ rows, (rows.mT @ values[..., None])[..., 0]
            cells = where[:, :, None] * len(slope) + where[:, None]
            matrix.view(-1).index_add_(0, cells.flatten(), block.double().flatten())
            slope.index_add_(0, where.flatten(), part.double().flatten())
        return matrix, slope

    def _shares_of_points(self, seen: _Seen) -> tuple[Tensor, Tensor]:
        """Return how much of the nodes' change points take, (P, N, G), and what they are compared with in the other."""
        surface = self.surface.flatten(1).float()
        own = self.share[self.point] * surface.gather(1, self.point)[..., None]
        row = (seen.v + self.height / 2).long().clamp(0, self.height - 1)
        column = (seen.u + self.width / 2).long().clamp(0, self.width - 1)
        pixel = row * self.width + column
        return own[self.one], self.share[pixel] * surface[self.other].gather(1, pixel)[..., None]

    def _places(self, frames: int, nodes: int) -> Tensor:
        """Return which unknowns a pair has to do with, (P, G + 13 + G): own nodes, two poses, focal length, others."""
        first_pose, device = frames * nodes, self.one.device
        node, turn = torch.arange(nodes, device=device), first_pose + torch.arange(6, device=device)
        one, other = self.one[:, None], self.other[:, None]
        focal = torch.full_like(one, first_pose + 6 * frames)
        return torch.cat([one * nodes + node, one * 6 + turn, other * 6 + turn, focal, other * nodes + node], dim=1)

    def answer(self, state: _State, given: Refined, keep_unit: bool, cost: tuple[float, float]) -> Refined:
        """Return a state as what was asked for."""
        correction = (
            interpolate(
                state.node.float().unflatten(1, (1, *GRID)), given.depth.shape[1:], mode="bilinear", align_corners=False
            )[:, 0]
            .cpu()
            .numpy()
        )
        surface = (given.depth > 0) & (given.depth < 0.999 * FAR_DEPTH)
        depth = np.where(surface, given.depth * np.exp(correction), given.depth)
        pose = inverse_pose(state.pose[:1]) @ state.pose
        rotation, centre = (
            nearest_rotation(pose[:, :3, :3]).cpu().numpy(),
            pose[:, :3, 3].cpu().numpy() * float(self.unit),
        )
        scale = (
            np.median(given.depth[0][surface[0]]) / np.median(depth[0][surface[0]])
            if keep_unit and surface[0].any()
            else 1.0
        )
        intrinsics = given.intrinsics.copy()
        intrinsics[[0, 1], [0, 1]] *= float(state.log_focal.exp())
        depth = np.where(surface, np.minimum(depth * scale, FAR_DEPTH), depth).astype(np.float32)
        return Refined(depth, make_pose(rotation, centre * scale), intrinsics, cost)

    def _correction(self, node: Tensor) -> Tensor:
        """Return the correction (T, H, W) of the logarithm of depth."""
        return (node @ self.share.double().T).unflatten(1, (self.height, self.width))

    def _at(self, picture: Tensor) -> Tensor:
        """Return the values (T, C, N) of pictures (T, C, H, W) at each frame's points."""
        return picture.flatten(2).gather(2, self.point[:, None].expand(-1, picture.shape[1], -1))


def _fused(rgb: np.ndarray, found: Refined, hold: np.ndarray, device: torch.device | str) -> np.ndarray:
    """Return depth (T, H, W) that is the mean disparity of each frame and of what its neighbours show from its pose.

    A neighbour counts where it shows the same colour. What is held, and the sky, stay.
    """
    pictures, depth = (torch.as_tensor(a, device=device) for a in (rgb, found.depth))
    pose = torch.as_tensor(found.world_from_camera, device=device)
    intrinsics = torch.as_tensor(found.intrinsics, dtype=torch.float32, device=device)[None]
    fused = depth.clone()
    for frame in np.flatnonzero(~hold).tolist():
        others = [frame + step for n in NEIGHBOURS for step in (-n, n) if 0 <= frame + step < len(rgb)]
        there = torch.ones(len(others), 1, dtype=torch.bool, device=device)
        views = Views(pictures[others, None], depth[others, None], pose[others, None], there)
        told = reproject(views, intrinsics.expand(len(others), -1, -1), pose[frame].expand(len(others), 1, 4, 4))
        colour = pictures[frame].movedim(-1, 0).float() / 127.5 - 1
        say = torch.exp((told.rgb[:, 0] - colour).abs().mean(1) / -LIKE) * told.seen[:, 0]
        # Its own say is 1; nothing comes from where a neighbour sees nothing.
        disparity = torch.where(say > 0, say / told.depth[:, 0], 0.0).sum(0) + 1 / depth[frame]
        fused[frame] = torch.where(shows_surface(depth[frame]), (say.sum(0) + 1) / disparity, depth[frame])
    return fused.cpu().numpy()


class _Seen(NamedTuple):
    """P pairs of frames, N points of the first of each, in the second one."""

    point: Tensor
    """(P, 3, N) in its own camera."""
    there: Tensor
    """(P, 3, N) in the other."""
    u: Tensor
    """(P, N) column in the other, from the centre."""
    v: Tensor
    """(P, N)."""
    focal: float
    """Pixels."""
    turn: Tensor
    """(P, 3, 3) rotation of points into the other camera."""
    colour: Tensor
    """(P, 3, N) difference of colour."""
    depth: Tensor
    """(P, N) difference of the logarithms of depth: of the point, less what the other frame has there."""
    inside: Tensor
    """(P, N) 1 where it is seen."""
    on_surface: Tensor
    """(P, N) 1 where it is seen and no sky."""
    slopes: Tensor
    """(P, 8, N), where asked for: of the colours along x and y, of disparity along x and y."""


def _derivatives(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Return how colours and depth change (P, 4, ...), by cameras (..., 13, N) and by the point's log depth (..., N).

    The 13 are a small motion of the first camera in its own axes (translation, rotation vector), one of the other, and
    the logarithm of the focal length.
    """
    z = seen.there[:, 2].clamp_min(_NEAREST)
    disparity = seen.depth.exp() / z
    # Per pixel of column and row in the other frame: of three colours, and of the logarithm of its disparity.
    along_u, along_v = (
        torch.cat([seen.slopes[:, first : first + 3], seen.slopes[:, last : last + 1] / disparity[:, None]], dim=1)
        for first, last in ((0, 6), (3, 7))
    )
    per_metre = (seen.focal / z)[:, None]
    by_there = torch.stack(
        [
            along_u * per_metre,
            along_v * per_metre,
            -(along_u * seen.u[:, None] + along_v * seen.v[:, None]) / z[:, None],
        ],
        dim=2,
    )  # (P, 4, 3, N)
    by_there[:, 3, 2] += 1 / z  # the depth that is compared is the point's own there
    by_point = torch.einsum("pij,pcin->pcjn", seen.turn, by_there)
    point, there = (x[:, None].expand_as(by_there) for x in (seen.point, seen.there))
    by_one = [by_point, torch.linalg.cross(point, by_point, dim=2)]
    by_other = [-by_there, -torch.linalg.cross(there, by_there, dim=2)]
    by_focal = along_u * seen.u[:, None] + along_v * seen.v[:, None] - (by_point * point)[:, :, :2].sum(2)
    return torch.cat([*by_one, *by_other, by_focal[:, :, None]], dim=2), (by_point * point).sum(2)


def _unknown(state: _State) -> Tensor:
    """Return the D unknowns."""
    return torch.cat([state.node.flatten(), state.change.flatten(), state.log_focal[None]])


def _shares(height: int, width: int, device: torch.device | str) -> Tensor:
    """Return how much of each node a pixel takes, (H * W, G): bilinear."""
    nodes = GRID[0] * GRID[1]
    each = torch.eye(nodes, device=device).unflatten(1, (1, *GRID))
    return interpolate(each, (height, width), mode="bilinear", align_corners=False).flatten(1).T.contiguous()


def _blurred(pictures: Tensor, times: int) -> Tensor:
    """Blur (T, C, H, W) by a binomial of five pixels, so many times."""
    line = pictures.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    channels = pictures.shape[1]
    for _ in range(times):
        for kernel in (line.view(1, 1, 1, 5), line.view(1, 1, 5, 1)):
            rows, columns = kernel.shape[2] // 2, kernel.shape[3] // 2
            wide = pad(pictures, (columns, columns, rows, rows), mode="replicate")
            pictures = conv2d(wide, kernel.expand(channels, -1, -1, -1), groups=channels)
    return pictures


def _slopes(pictures: Tensor) -> Tensor:
    """Return central differences of (T, C, H, W) along x, then along y: (T, 2 C, H, W) per pixel."""
    wide = pad(pictures, (1, 1, 1, 1), mode="replicate")
    along_x, along_y = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2], wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    return torch.cat([along_x, along_y], dim=1) / 2


def _cross(vector: Tensor) -> Tensor:
    """Return the matrices (..., 3, 3) that take the cross product with (..., 3) from the left."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
