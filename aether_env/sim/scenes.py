"""Random scenes: where everything is, how large, and what it looks like.

All scenes share one list of shapes (`SHAPES`): surfaces, furniture, boxes, columns, ... A scene hides what it does not
use. So any scenes can be drawn in one call, and a family of scenes is nothing but a way to fill the list.
Scene axes: x and y along the ground, z up, metres; the ground is z = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from aether_env.sim.seeds import Dice, as_seeds
from aether_env.sim.textures import NUM_SKIES, hsv_to_rgb, texture_bank

FAMILIES = ("room", "blocks")
"""Furnished rooms; open blocks under a sky."""

ROOM_SHARE = 0.6
"""Share of rooms where the seed chooses the family."""

PLANE, SPHERE, CAPSULE, CYLINDER, BOX = 0, 2, 3, 5, 6
"""Kinds of shapes, numbered as in MuJoCo. Sizes: radius; radius and half length along z; half lengths."""

FURNITURE, CRATES, STACKS, COLUMNS = 3, 5, 2, 3
_OBJECTS: tuple[tuple[int, ...], ...] = (
    *[(BOX, BOX, BOX)] * FURNITURE,
    *[(BOX,)] * CRATES,
    *[(BOX, BOX)] * STACKS,
    *[(CYLINDER,)] * COLUMNS,
    (SPHERE,),
    (CAPSULE,),
    (CYLINDER, SPHERE),
)
NUM_OBJECTS = len(_OBJECTS)
NUM_DECOR = 4
NUM_MOVERS = 3
MOVER_KINDS = (SPHERE, BOX, CYLINDER)
FLOOR, GROUND_MIDDLE, GROUND_FAR, CEILING, FIRST_WALL = 0, 1, 2, 3, 4
NUM_PLANES = 8
FIRST_DECOR = NUM_PLANES + sum(len(parts) for parts in _OBJECTS)
FIRST_MOVER = FIRST_DECOR + NUM_DECOR
SHAPES = np.array(
    [PLANE] * NUM_PLANES
    + [kind for parts in _OBJECTS for kind in parts]
    + [BOX] * NUM_DECOR
    + [*MOVER_KINDS] * NUM_MOVERS
)
"""(G,) kind of each shape of a scene; the last ones belong to the movers, three for each: sphere, box, cylinder."""
NUM_SHAPES = len(SHAPES)
NUM_LIGHTS = 3

_DIRECTIONAL, _POINT = 1, 2
_CANDIDATES = 8
_GAP = 0.06
_HIDDEN_SIZE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """N scenes with their cameras' starts and their movers' starts."""

    seeds: np.ndarray
    """(N,) int64."""
    family: np.ndarray
    """(N,) index into FAMILIES."""
    visible: np.ndarray
    """(N, G) bool."""
    position: np.ndarray
    """(N, G, 3) centres; of the movers at time 0."""
    rotation: np.ndarray
    """(N, G, 3, 3) scene from shape; of the movers at time 0."""
    size: np.ndarray
    """(N, G, 3), see the kinds of shapes."""
    texture: np.ndarray
    """(N, G) int, number in the texture bank's levels."""
    repeat: np.ndarray
    """(N, G, 2): tiles per face; for planes 2 / metres per tile."""
    tint: np.ndarray
    """(N, G, 3) colour that multiplies the texture."""
    gloss: np.ndarray
    """(N, G) strength of highlights."""
    sky: np.ndarray
    """(N,) int."""
    light_type: np.ndarray
    """(N, L) int, MuJoCo's: 1 directional, 2 point."""
    light_on: np.ndarray
    """(N, L) bool."""
    light_shadow: np.ndarray
    """(N, L) bool."""
    light_position: np.ndarray
    """(N, L, 3)."""
    light_direction: np.ndarray
    """(N, L, 3) unit vectors."""
    light_diffuse: np.ndarray
    """(N, L, 3)."""
    light_ambient: np.ndarray
    """(N, L, 3)."""
    light_attenuation: np.ndarray
    """(N, L, 3)."""
    horizontal_fov: np.ndarray
    """(N,) radians."""
    start_position: np.ndarray
    """(N, 3) camera's position at frame 0."""
    start_angles: np.ndarray
    """(N, 3) camera's yaw (about z, 0 looks along x), pitch (up positive) and roll at frame 0, radians."""
    mover_kind: np.ndarray
    """(N, M) index into MOVER_KINDS, -1 where the mover is absent."""
    mover_velocity: np.ndarray
    """(N, M, 6) velocity and angular velocity at time 0."""
    mover_bounce: np.ndarray
    """(N, M) in [0, 1]: how much it bounces."""

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.seeds)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Self:
        """Return the given scenes."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """Return the scenes of all batches, one after the other."""
        return cls(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(cls)})


def sample_scenes(seeds: Sequence[int] | np.ndarray, *, family: str | None = None) -> Scenes:
    """Return the scenes that seeds stand for; a scene is the same alone and in any batch.

    Args:
        seeds: N integers >= 0, see `seeds`.
        family: One of FAMILIES, or None: the seed chooses.

    Raises:
        ValueError: Bad seeds, or no such family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)} or None, got {family!r}.")
    seeds_N = as_seeds(seeds)
    dice = Dice(seeds_N, 1100, stream=0)
    is_room = dice.take() < ROOM_SHARE
    if family is not None:
        is_room = np.full(len(seeds_N), family == "room")
    return _Builder(seeds_N, is_room, dice).build()


def yaw_matrix(yaw: np.ndarray) -> np.ndarray:
    """Return rotations about z, (..., 3, 3)."""
    cos, sin, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    return np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], axis=-1).reshape(*np.shape(yaw), 3, 3)


class _Builder:
    """Fills the shapes of N scenes; every step draws the same numbers whatever the scene, and then selects."""

    def __init__(self, seeds_N: np.ndarray, is_room: np.ndarray, dice: Dice) -> None:
        n = len(seeds_N)
        self.n, self.seeds, self.is_room, self.dice = n, seeds_N, is_room, dice
        self.visible = np.zeros((n, NUM_SHAPES), dtype=bool)
        self.position = np.zeros((n, NUM_SHAPES, 3))
        self.position[..., 2] = -0.5
        self.rotation = np.broadcast_to(np.eye(3), (n, NUM_SHAPES, 3, 3)).copy()
        self.size = np.full((n, NUM_SHAPES, 3), _HIDDEN_SIZE)
        self.texture = np.zeros((n, NUM_SHAPES), dtype=np.int32)
        self.repeat = np.ones((n, NUM_SHAPES, 2))
        # What is taken: centres and half lengths of axis-aligned rectangles on the ground.
        self.taken_centre: list[np.ndarray] = []
        self.taken_half: list[np.ndarray] = []

    def build(self) -> Scenes:
        dice, n = self.dice, self.n
        self._rooms()
        self._start()
        self._objects()
        self._decor()
        mover_kind, velocity, bounce = self._movers()
        self._looks()
        lights = self._lights()
        hue, saturation, value = (
            dice.take(NUM_SHAPES),
            dice.take(NUM_SHAPES) ** 2 * 0.45,
            dice.between(0.85, 1.15, NUM_SHAPES),
        )
        for same, as_this in (
            ([GROUND_MIDDLE, GROUND_FAR], FLOOR),
            ([FIRST_WALL + 1, FIRST_WALL + 2, FIRST_WALL + 3], FIRST_WALL),
        ):
            for values in (hue, saturation, value):
                values[:, same] = values[:, [as_this]]
        tint = hsv_to_rgb(np.stack([hue, saturation, value], axis=-1))
        return Scenes(
            seeds=self.seeds,
            family=np.where(self.is_room, 0, 1),
            visible=self.visible,
            position=self.position,
            rotation=self.rotation,
            size=self.size,
            texture=self.texture,
            repeat=self.repeat,
            tint=tint,
            gloss=np.maximum(dice.between(-0.4, 0.4, NUM_SHAPES), 0.0),
            sky=dice.choose(np.arange(NUM_SKIES)),
            horizontal_fov=np.deg2rad(dice.between(50.0, 90.0)),
            start_position=self.start_position,
            start_angles=np.stack([self.start_yaw, np.deg2rad(dice.between(-12.0, 8.0)), np.zeros(n)], axis=-1),
            mover_kind=mover_kind,
            mover_velocity=velocity,
            mover_bounce=bounce,
            **lights,
        )

    def _rooms(self) -> None:
        """Lay the ground and put up walls and ceiling."""
        dice = self.dice
        self.half = dice.between(1.5, 4.0, 2)
        self.height = dice.between(2.3, 3.2)
        half_x, half_y, half_z = self.half[:, 0], self.half[:, 1], self.height / 2
        # Inward normals (z axis of the planes) of ceiling and walls; the planes' y axis is up on walls.
        normals = np.array([[0, 0, -1], [-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]], dtype=np.float64)
        ups = np.array([[0, 1, 0], *[[0, 0, 1]] * 4], dtype=np.float64)
        self.rotation[:, CEILING : FIRST_WALL + 4] = np.stack([np.cross(ups, normals), ups, normals], axis=-1)
        zero = np.zeros(self.n)
        centres = [
            (zero, zero, self.height),
            (half_x, zero, half_z),
            (-half_x, zero, half_z),
            (zero, half_y, half_z),
            (zero, -half_y, half_z),
        ]
        sizes = [(half_x, half_y), (half_y, half_z), (half_y, half_z), (half_x, half_z), (half_x, half_z)]
        room = self.is_room[:, None]
        for k, (centre, size) in enumerate(zip(centres, sizes, strict=True)):
            where = CEILING + k
            self.position[:, where] = np.where(room, np.stack(centre, axis=-1), self.position[:, where])
            self.size[:, where, :2] = np.where(room, np.stack(size, axis=-1), self.size[:, where, :2])
            self.visible[:, where] = self.is_room
        self.position[:, FLOOR] = 0
        self.size[:, FLOOR, :2] = np.where(room, self.half, 9.0)
        self.visible[:, FLOOR] = True
        # Without mip maps far ground would flicker: two more planes, a little lower, carry blurred copies.
        for where, lower, reach in ((GROUND_MIDDLE, 0.01, 24.0), (GROUND_FAR, 0.02, 120.0)):
            self.position[:, where] = np.where(room, self.position[:, where], [0.0, 0.0, -lower])
            self.size[:, where, :2] = np.where(room, self.size[:, where, :2], reach)
            self.visible[:, where] = ~self.is_room

    def _start(self) -> None:
        """Choose the camera's place and direction before anything else, and keep both free."""
        dice = self.dice
        reach = np.where(self.is_room[:, None], np.maximum(self.half - 0.7, 0.5 * self.half), 1.0)
        xy = dice.between(-1.0, 1.0, 2) * reach
        z = np.minimum(dice.between(0.5, 1.9), np.where(self.is_room, self.height - 0.35, 9.0))
        self.start_position = np.concatenate([xy, z[:, None]], axis=-1)
        yaw = dice.between(0.0, 2 * np.pi, 6)
        direction = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
        to_wall = np.where(direction > 0, self.half[:, None] - xy[:, None], self.half[:, None] + xy[:, None])
        free = (to_wall / np.maximum(np.abs(direction), 1e-6)).min(axis=-1)
        score = np.minimum(free, 2.2) - 0.01 * np.arange(yaw.shape[1])  # the first one with an open view, else the best
        score = np.where(self.is_room[:, None], score, -np.arange(yaw.shape[1], dtype=np.float64))
        best = score.argmax(axis=1)
        rows = np.arange(self.n)
        self.start_yaw, self.forward = yaw[rows, best], direction[rows, best]
        self._take(xy, np.full((self.n, 2), 0.45))
        self._take(xy + 0.85 * self.forward, np.full((self.n, 2), 0.35))

    def _take(self, centre: np.ndarray, half: np.ndarray) -> None:
        self.taken_centre.append(centre)
        self.taken_half.append(half)

    def _place(
        self, candidates_NK2: np.ndarray, half_N2: np.ndarray, wanted_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take the first candidate that overlaps nothing.

        Returns:
            Centres (N, 2), and whether there was one and it was wanted (N,).
        """
        # One rectangle after the other with the scenes last: much faster than one large array with short axes.
        x_KN, y_KN = np.ascontiguousarray(candidates_NK2.transpose(2, 1, 0))
        half_x, half_y = half_N2.T
        free_KN = (np.abs(x_KN) + half_x < self.half[:, 0]) & (np.abs(y_KN) + half_y < self.half[:, 1])
        free_KN |= ~self.is_room
        for centre, half in zip(self.taken_centre, self.taken_half, strict=True):
            beside = np.abs(x_KN - centre[:, 0]) > half[:, 0] + half_x + _GAP
            free_KN &= beside | (np.abs(y_KN - centre[:, 1]) > half[:, 1] + half_y + _GAP)
        free = free_KN.T
        found = free.any(axis=1) & wanted_N
        chosen = candidates_NK2[np.arange(self.n), free.argmax(axis=1)]
        self._take(np.where(found[:, None], chosen, 1e6), half_N2)
        return chosen, found

    def _candidates(self, half_N2: np.ndarray) -> np.ndarray:
        """Return places anywhere in the room, or around and before the camera, (N, K, 2)."""
        u = self.dice.take(_CANDIDATES, 2)
        in_room = (2 * u - 1) * np.maximum(self.half - half_N2 - 0.01, 0.0)[:, None]
        radius, angle = 5.5 * np.sqrt(u[..., 0]), 2 * np.pi * u[..., 1]
        around = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1) + 2.2 * self.forward[:, None]
        return np.where(self.is_room[:, None, None], in_room, self.start_position[:, None, :2] + around)

    def _put(self, where: int, shown: np.ndarray, position: np.ndarray, yaw: np.ndarray, size: np.ndarray) -> None:
        self.visible[:, where] = shown
        self.position[:, where] = np.where(shown[:, None], position, self.position[:, where])
        self.rotation[:, where] = np.where(shown[:, None, None], yaw_matrix(yaw), np.eye(3))
        self.size[:, where] = np.where(shown[:, None], size, _HIDDEN_SIZE)

    def _objects(self) -> None:
        """Place 5 to 15 objects, fewer where they do not fit."""
        dice, n = self.dice, self.n
        count = 5 + np.floor(dice.take() * 11)
        wanted = dice.take(NUM_OBJECTS).argsort(axis=1).argsort(axis=1) < count[:, None]
        room_scale = np.clip(np.sqrt(self.half.prod(axis=1)) / 2.6, 0.6, 1.0)
        scale = np.where(self.is_room, room_scale, dice.between(1.0, 2.2))
        where = NUM_PLANES
        for number, parts in enumerate(_OBJECTS):
            offset, size = self._shape_object(number, dice.take(6), scale)
            # Half lengths of the footprint in the object's own axes; z needs none.
            reach = [
                np.abs(o[:, :2]) + (s[:, :1] if kind in (SPHERE, CAPSULE, CYLINDER) else s[:, :2])
                for kind, o, s in zip(parts, offset, size, strict=True)
            ]
            footprint = np.max(reach, axis=0)
            yaw_choice, against = dice.take(), dice.take() < 0.5
            aligned = dice.take() < np.where(self.is_room, 0.7, 0.4)
            yaw = np.where(aligned, np.floor(yaw_choice * 4) * np.pi / 2, yaw_choice * 2 * np.pi)
            cos, sin = np.abs(np.cos(yaw)), np.abs(np.sin(yaw))
            half = np.stack(
                [cos * footprint[:, 0] + sin * footprint[:, 1], sin * footprint[:, 0] + cos * footprint[:, 1]], axis=-1
            )
            candidates = self._candidates(half)
            # Aligned objects often stand with their back (-y) against the wall.
            back = np.stack([np.sin(yaw), -np.cos(yaw)], axis=-1).round()
            at_wall = back * (self.half - half - 0.01)
            push = (aligned & against & self.is_room)[:, None] & (back != 0)
            candidates = np.where(push[:, None], at_wall[:, None], candidates)
            centre, found = self._place(candidates, half, wanted[:, number])
            rotation = yaw_matrix(yaw)
            for part in range(len(parts)):
                position = np.einsum("nij,nj->ni", rotation, offset[part])
                position[:, :2] += centre
                self._put(where, found, position, yaw, size[part])
                where += 1
        assert where == FIRST_DECOR and n == len(self.visible)

    def _shape_object(self, number: int, u: np.ndarray, scale: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return offsets and sizes of an object's parts, two lists of (N, 3), in its own axes (z = 0: the ground)."""

        def span(k: int, low: float, high: float) -> np.ndarray:
            return (low + (high - low) * u[:, k]) * scale

        def stack(*columns: np.ndarray | float) -> np.ndarray:
            return np.stack([np.broadcast_to(np.asarray(c, dtype=np.float64), self.n) for c in columns], axis=-1)

        def pick(which: np.ndarray, options: list[np.ndarray]) -> np.ndarray:
            return np.stack(options)[which, np.arange(self.n)]

        top = np.where(self.is_room, self.height, 9.0)
        if number < FURNITURE:
            wide, deep, tall, thin = span(1, 0.3, 0.75), span(2, 0.22, 0.42), span(3, 0.42, 0.8), 0.03 * scale
            high = np.minimum(span(3, 0.9, 2.0), top - 0.1)
            table = [stack(0, 0, tall), stack(-0.85 * wide, 0, tall / 2), stack(0.85 * wide, 0, tall / 2)]
            table_size = [stack(wide, deep, thin), stack(thin, 0.9 * deep, tall / 2), stack(thin, 0.9 * deep, tall / 2)]
            shelf = [stack(0, 0, 0.2 * high), stack(0, thin - deep, high / 2), stack(0, 0, high - thin)]
            shelf_size = [stack(wide, deep, 0.2 * high), stack(wide, thin, high / 2), stack(wide, deep, thin)]
            sofa = [stack(0, 0, 0.2 * scale), stack(0, -deep, 0.4 * scale), stack(0.3 * wide, 0, 0.45 * scale)]
            sofa_size = [
                stack(wide, deep, 0.2 * scale),
                stack(wide, 0.1 * scale, 0.4 * scale),
                stack(0.3 * wide, 0.6 * deep, 0.05 * scale),
            ]
            which = np.floor(u[:, 0] * 3).astype(np.int64)
            options = [(table, table_size), (shelf, shelf_size), (sofa, sofa_size)]
            return [pick(which, [o[0][p] for o in options]) for p in range(3)], [
                pick(which, [o[1][p] for o in options]) for p in range(3)
            ]
        number -= FURNITURE
        if number < CRATES:
            cube = stack(*[span(1, 0.12, 0.4)] * 3)
            cabinet = stack(span(1, 0.2, 0.5), span(2, 0.15, 0.35), np.minimum(span(3, 0.5, 1.1), top / 2 - 0.05))
            slab = stack(span(1, 0.25, 0.8), span(2, 0.25, 0.8), span(3, 0.08, 0.25))
            pillar = stack(span(1, 0.1, 0.22), span(2, 0.1, 0.22), np.where(self.is_room, top / 2, span(3, 1.0, 2.0)))
            size = pick(np.minimum(np.floor(u[:, 0] * 3.6), 3).astype(np.int64), [cube, cabinet, slab, pillar])
            return [size * [0, 0, 1]], [size]
        number -= CRATES
        if number < STACKS:
            lower = stack(span(0, 0.2, 0.45), span(1, 0.2, 0.45), span(2, 0.12, 0.4))
            upper = lower * stack(0.4 + 0.55 * u[:, 3], 0.4 + 0.55 * u[:, 4], 0.3 + 0.7 * u[:, 5])
            return [lower * [0, 0, 1], (2 * lower + upper) * [0, 0, 1]], [lower, upper]
        number -= STACKS
        if number < COLUMNS:
            size = stack(span(0, 0.08, 0.35), np.minimum(span(1, 0.12, 0.9), top / 2 - 0.05), 0)
            return [stack(0, 0, size[:, 1])], [size]
        number -= COLUMNS
        if number == 0:
            radius = span(0, 0.12, 0.42)
            return [stack(0, 0, radius)], [stack(radius, 0, 0)]
        if number == 1:
            radius, half = span(0, 0.08, 0.22), span(1, 0.15, 0.5)
            return [stack(0, 0, radius + half)], [stack(radius, half, 0)]
        half, ball = span(0, 0.4, 0.75), span(1, 0.12, 0.24)
        return [stack(0, 0, half), stack(0, 0, 2 * half + 0.8 * ball)], [
            stack(0.04 * scale, half, 0),
            stack(ball, 0, 0),
        ]

    def _decor(self) -> None:
        """Hang doors and pictures on walls; put buildings behind open blocks."""
        dice = self.dice
        for k in range(NUM_DECOR):
            u = dice.take(8)
            shown = u[:, 0] < 0.75
            wall = np.floor(u[:, 1] * 4).astype(np.int64)
            yaw = wall * np.pi / 2
            along_x = wall % 2 == 1
            wall_half = np.where(along_x, self.half[:, 0], self.half[:, 1])
            distance = np.where(along_x, self.half[:, 1], self.half[:, 0])
            door = u[:, 2] < 0.35
            wide = np.minimum(np.where(door, 0.45 + 0.15 * u[:, 3], 0.2 + 0.45 * u[:, 3]), 0.8 * wall_half)
            tall = np.where(door, 1.0 + 0.07 * u[:, 4], 0.2 + 0.35 * u[:, 4])
            up = np.where(door, tall, 1.2 + 0.4 * u[:, 5])
            side = (2 * u[:, 6] - 1) * (wall_half - wide)
            outward = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1).round()
            tangent = np.stack([-outward[:, 1], outward[:, 0]], axis=-1)
            thick = 0.015 + 0.004 * k
            xy = outward * (distance - thick)[:, None] + tangent * side[:, None]
            on_wall = (
                np.concatenate([xy, up[:, None]], axis=-1),
                np.stack([np.full(self.n, thick), wide, tall], axis=-1),
            )
            angle = self.start_yaw + (u[:, 1] - 0.5) * 2.4
            away = 9.0 + 14.0 * u[:, 2]
            building = np.stack([1.0 + 3 * u[:, 3], 1.0 + 3 * u[:, 4], 1.0 + 3.5 * u[:, 5] ** 2], axis=-1)
            far = self.start_position[:, :2] + away[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            outside = np.concatenate([far, building[:, 2:]], axis=-1)
            self._put(
                FIRST_DECOR + k,
                shown,
                np.where(self.is_room[:, None], on_wall[0], outside),
                np.where(self.is_room, yaw, u[:, 7] * np.pi),
                np.where(self.is_room[:, None], on_wall[1], building),
            )

    def _movers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Place up to three movers, mostly in view, and push them."""
        dice, n = self.dice, self.n
        count = np.where(dice.take() < 0.5, 0, 1 + np.floor(dice.take() * 3))
        kinds, velocities = np.full((n, NUM_MOVERS), -1), np.zeros((n, NUM_MOVERS, 6))
        bounce = dice.take(NUM_MOVERS)
        self._take(self.start_position[:, :2], np.full((n, 2), 0.75))
        for number in range(NUM_MOVERS):
            kind = np.minimum(np.floor(dice.take() * 4), 3).astype(np.int64) % 3  # spheres twice as often
            u = dice.take(6)
            scale = np.where(self.is_room, 1.0, 1.4)[:, None]
            sizes = scale * np.stack(
                [
                    (0.12 + 0.2 * u[:, :1]) * [1, 0, 0],
                    0.1 + 0.17 * u[:, :3],
                    (0.1 + 0.15 * u[:, :2]) @ np.array([[1.0, 0, 0], [0, 1, 0]]),
                ]
            )
            size = sizes[kind, np.arange(n)]
            across = np.where(kind == 1, np.hypot(size[:, 0], size[:, 1]), size[:, 0])
            tall = np.choose(kind, [size[:, 0], size[:, 2], size[:, 1]])
            half = np.stack([across, across], axis=-1)
            angle = self.start_yaw[:, None] + dice.between(-0.5, 0.5, _CANDIDATES)
            away = dice.between(1.3, 3.8, _CANDIDATES)[..., None]
            in_view = self.start_position[:, None, :2] + away * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            candidates = np.where((u[:, 3] < 0.75)[:, None, None], in_view, self._candidates(half))
            centre, found = self._place(candidates, half, number < count)
            drop = np.maximum(dice.between(-0.8, 0.8), 0.0)
            yaw = dice.between(0.0, 2 * np.pi)
            # Mostly across the view, so that the motion is seen.
            heading = self.start_yaw + np.pi / 2 * np.sign(u[:, 4] - 0.5) + (u[:, 5] - 0.5) * 2.0
            speed = dice.between(0.5, 2.2)
            velocities[:, number, 0], velocities[:, number, 1] = speed * np.cos(heading), speed * np.sin(heading)
            velocities[:, number, 3:] = dice.between(-3.0, 3.0, 3) * np.where(drop > 0.05, 1.0, 0.2)[:, None]
            kinds[:, number] = np.where(found, kind, -1)
            for k in range(3):
                shown = found & (kind == k)
                position = np.concatenate([centre, (tall + drop + 0.002)[:, None]], axis=-1)
                self._put(FIRST_MOVER + 3 * number + k, shown, position, yaw, size)
        return kinds, velocities, bounce

    def _looks(self) -> None:
        """Choose textures and how often they repeat."""
        dice, bank = self.dice, texture_bank()
        pictures = len(bank)
        count = NUM_SHAPES - NUM_PLANES
        calm = dice.take(count) < 0.35
        any_picture, calm_picture = dice.choose(bank.roles["object"], count), dice.choose(bank.roles["calm"], count)
        self.texture[:, NUM_PLANES:] = np.where(calm, calm_picture, any_picture)
        # Parts of one object mostly share a texture.
        same, where = dice.take(NUM_OBJECTS) < 0.6, NUM_PLANES
        for number, parts in enumerate(_OBJECTS):
            for part in range(1, len(parts)):
                self.texture[:, where + part] = np.where(
                    same[:, number], self.texture[:, where], self.texture[:, where + part]
                )
            where += len(parts)
        posters = dice.choose(bank.roles["poster"], NUM_DECOR)
        facades = dice.choose(bank.roles["wall"], NUM_DECOR)
        decor = slice(FIRST_DECOR, FIRST_MOVER)
        self.texture[:, decor] = np.where(self.is_room[:, None], posters, facades)

        tile = dice.between(0.3, 1.3, NUM_SHAPES)
        across = 2 * np.maximum(self.size[..., 0], self.size[..., 1])
        box = np.stack([np.maximum(across / tile, 0.5), np.maximum(2 * self.size[..., 2] / tile, 0.5)], axis=-1)
        around = np.maximum(np.round(2 * np.pi * self.size[..., 0] / tile), 1)
        column = np.stack([around, np.maximum(2 * self.size[..., 1] / tile, 0.5)], axis=-1)
        ball = np.stack([np.maximum(np.round(around), 2), np.maximum(np.round(around / 2), 1)], axis=-1)
        round_kind = (SHAPES == CYLINDER) | (SHAPES == CAPSULE)
        self.repeat = np.where((SHAPES == BOX)[:, None], box, np.where(round_kind[:, None], column, ball))
        building = np.maximum(np.round(across[:, decor] / 2.5), 1)[..., None] * [1.0, 1.0]
        self.repeat[:, decor] = np.where(self.is_room[:, None, None], 1.0, building)

        # Surfaces of the room; grazing views need level 1.
        floor, ground = dice.choose(bank.roles["floor"]), dice.choose(bank.roles["ground"])
        floor_tile, ground_tile = dice.between(1.2, 3.0), dice.between(2.5, 5.0)
        self.texture[:, FLOOR] = np.where(self.is_room, floor, ground) + pictures
        self.texture[:, GROUND_MIDDLE], self.texture[:, GROUND_FAR] = ground + 3 * pictures, ground + 4 * pictures
        self.repeat[:, :CEILING] = (2 / np.where(self.is_room, floor_tile, ground_tile))[:, None, None]
        self.texture[:, CEILING] = dice.choose(bank.roles["ceiling"]) + pictures
        self.repeat[:, CEILING] = (2 / dice.between(1.5, 3.0))[:, None]
        walls = slice(FIRST_WALL, FIRST_WALL + 4)
        accent = dice.take(4) < 0.2
        calm = dice.take() < 0.45
        main = np.where(calm, dice.choose(bank.roles["calm"]), dice.choose(bank.roles["wall"]))
        own = dice.choose(bank.roles["wall"], 4)
        self.texture[:, walls] = np.where(accent, own, main[:, None])
        self.repeat[:, walls] = (2 / dice.between(1.0, 2.6))[:, None, None]

    def _lights(self) -> dict[str, np.ndarray]:
        """Return a lamp under the ceiling or a sun, a weak fill, and sometimes a second lamp."""
        dice, n = self.dice, self.n
        room = self.is_room[:, None]
        spots = dice.between(-0.75, 0.75, NUM_LIGHTS, 2) * self.half[:, None]
        height = self.height[:, None] - dice.between(0.2, 0.6, NUM_LIGHTS)
        position = np.concatenate([spots, height[..., None]], axis=-1)
        azimuth, elevation = dice.between(0.0, 2 * np.pi), np.deg2rad(dice.between(28.0, 75.0))
        azimuths = azimuth[:, None] + [0.0, np.pi * 0.8, np.pi / 2]
        elevations = np.stack([elevation, np.full(n, 0.6), np.full(n, 1.0)], axis=-1)
        level = np.cos(elevations)
        direction = -np.stack([level * np.cos(azimuths), level * np.sin(azimuths), np.sin(elevations)], axis=-1)
        warmth = dice.between(-0.12, 0.12, NUM_LIGHTS)[..., None] * [1.0, 0.1, -1.0]
        strength = np.stack([dice.between(0.5, 0.85), dice.between(0.12, 0.35), dice.between(0.3, 0.6)], axis=-1)
        ambient = dice.between(0.3, 0.45)
        on = np.stack([np.ones(n, dtype=bool), np.ones(n, dtype=bool), self.is_room & (dice.take() < 0.4)], axis=-1)
        fade = dice.between(0.0, 0.05, NUM_LIGHTS) * room
        return {
            "light_type": np.where(room, _POINT, _DIRECTIONAL) * np.ones((1, NUM_LIGHTS), dtype=np.int32),
            "light_on": on,
            "light_shadow": np.broadcast_to([True, False, True], (n, NUM_LIGHTS)).copy(),
            "light_position": position,
            "light_direction": direction,
            "light_diffuse": strength[..., None] * (1 + warmth),
            "light_ambient": ambient[:, None, None] * (1 + warmth * 0.5) * np.array([1.0, 0.0, 0.0])[:, None],
            "light_attenuation": np.stack([np.ones_like(fade), np.zeros_like(fade), fade], axis=-1),
        }
