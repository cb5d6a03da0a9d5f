"""How far points are from the surfaces of a scene, in closed form."""

from __future__ import annotations

import numpy as np

from aether_env.sim.scenes import BOX, CAPSULE, CYLINDER, FIRST_MOVER, NUM_MOVERS, NUM_PLANES, SHAPES, SPHERE, Scenes

_FREE = 1e3


class Solids:
    """The solids of N scenes. Movers count as the smallest ball around them, which errs on the safe side."""

    def __init__(self, scenes: Scenes) -> None:
        """Gather what is visible."""
        planes = slice(0, NUM_PLANES)
        self._normal = scenes.rotation[:, planes, :, 2]
        offset = (self._normal * scenes.position[:, planes]).sum(axis=-1)
        self._offset = np.where(scenes.visible[:, planes], offset, -_FREE)

        shapes = slice(NUM_PLANES, FIRST_MOVER)
        kind, visible, size = SHAPES[shapes], scenes.visible[:, shapes], scenes.size[:, shapes]
        # Every solid is a box made fatter by a radius; a cylinder is a box in (distance from axis, z).
        zero = np.zeros_like(size[..., 0])
        half = np.where((kind == BOX)[:, None], size, 0.0)
        half = np.where((kind == CAPSULE)[:, None], np.stack([zero, zero, size[..., 1]], axis=-1), half)
        half = np.where((kind == CYLINDER)[:, None], np.stack([size[..., 0], zero, size[..., 1]], axis=-1), half)
        radius = np.where((kind == SPHERE) | (kind == CAPSULE), size[..., 0], 0.0)
        order = np.argsort(~visible, axis=1, kind="stable")[:, : max(1, int(visible.sum(axis=1).max()))]

        def packed(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), axis=1)

        self._centre = packed(scenes.position[:, shapes])
        self._half = packed(half)
        self._radius = packed(radius) - np.where(packed(visible), 0.0, _FREE)
        self._round = packed(np.broadcast_to(kind == CYLINDER, visible.shape))
        # Static shapes are turned about z only.
        rotation = packed(scenes.rotation[:, shapes])
        self._cos, self._sin = rotation[..., 0, 0], rotation[..., 1, 0]

        rows = np.arange(len(scenes))[:, None]
        shape = FIRST_MOVER + 3 * np.arange(NUM_MOVERS) + np.maximum(scenes.mover_kind, 0)
        a, b, c = np.moveaxis(scenes.size[rows, shape], -1, 0)
        reach = np.select(
            [scenes.mover_kind == 0, scenes.mover_kind == 1], [a, np.sqrt(a * a + b * b + c * c)], np.hypot(a, b)
        )
        self.mover_radius = np.where(scenes.mover_kind >= 0, reach, -_FREE)

    def __getitem__(self, rows: np.ndarray) -> Solids:
        """Return the solids of the given scenes."""
        chosen = object.__new__(Solids)
        chosen.__dict__ = {name: values[rows] for name, values in self.__dict__.items()}
        return chosen

    def clearance(self, points_NP3: np.ndarray, mover_position_NM3: np.ndarray | None = None) -> np.ndarray:
        """Return the distance to the nearest surface, (N, P) metres, negative inside of a solid.

        Args:
            points_NP3: (N, P, 3) points, scene axes.
            mover_position_NM3: (N, M, 3) where the movers are; None: leave them out.
        """
        planes = np.einsum("npk,nqk->npq", points_NP3, self._normal) - self._offset[:, None]
        nearest = planes.min(axis=-1)
        x, y, z = np.moveaxis(points_NP3[:, :, None] - self._centre[:, None], -1, 0)
        cos, sin, is_round = self._cos[:, None], self._sin[:, None], self._round[:, None]
        along, across = np.abs(cos * x + sin * y), np.abs(cos * y - sin * x)
        along, across = np.where(is_round, np.hypot(x, y), along), np.where(is_round, 0.0, across)
        over_x, over_y = along - self._half[:, None, :, 0], across - self._half[:, None, :, 1]
        over_z = np.abs(z) - self._half[:, None, :, 2]
        # A round solid has no extent across; only its other two sides say how deep a point is inside.
        inside = np.minimum(np.maximum(np.maximum(over_x, np.where(is_round, -_FREE, over_y)), over_z), 0.0)
        outside = np.sqrt(np.maximum(over_x, 0) ** 2 + np.maximum(over_y, 0) ** 2 + np.maximum(over_z, 0) ** 2)
        nearest = np.minimum(nearest, (outside + inside - self._radius[:, None]).min(axis=-1))
        if mover_position_NM3 is not None:
            away = np.linalg.norm(points_NP3[:, :, None] - mover_position_NM3[:, None], axis=-1)
            nearest = np.minimum(nearest, (away - self.mover_radius[:, None]).min(axis=-1))
        return nearest
