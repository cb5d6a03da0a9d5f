"""Surface pictures of the true world: 75 procedural ones, 28 photographs, and skies.

Every surface picture tiles without a seam in both directions (photographs nearly so). The renderer has no mip maps, so
smaller copies (`LEVELS`) are kept for surfaces that are seen from afar.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

SIZE = 128
"""Pixels along each side of a surface picture."""

LEVELS = 5
"""Copies of each picture: level k has SIZE / 2**k pixels a side. Its number is `number + k * len(bank)`."""

SKY_SIZE = 64
"""Pixels along each side of a face of a sky."""

NUM_SKIES = 16
"""Skies to choose from."""

PHOTO_FOLDER = Path(__file__).with_name("textures")

_PHOTOS = {
    "floor": "cardboard_1 concrete_1 concrete_tiles_1 floor_tiles_bw_1 floor_tiles_white marble_1 marble_2 "
    "metal_grill_1 wood_1 wood_2 wood_planks_1",
    "wall": "brick_wall_1 cardboard_2 cinder_blocks_1 concrete_1 concrete_3 drywall_1 marble_1 marble_2 rock_1 "
    "stucco_1 wood_1 wood_2 wood_planks_1",
    "ceiling": "ceiling_tile_noborder_1 ceiling_tiles_1 concrete_3 drywall_1 stucco_1 wood_2 wood_planks_1",
    "ground": "asphalt_1 concrete_1 concrete_tiles_1 floor_tiles_white grass_1 grass_2 rock_1 wood_planks_1 "
    "cinder_blocks_1 marble_2",
    "poster": "airduct_grate_1 door_garage_red door_garage_white door_steel_grey door_steel_red",
    "calm": "cardboard_1 concrete_1 concrete_3 drywall_1 marble_1 stucco_1 wood_1 wood_2",
}
_PAINTED = {
    "floor": "checker tiles planks noise marble stones plaid chevron",
    "wall": "bricks stripes noise tiles plaid marble spots chevron stones clouds",
    "ceiling": "clouds noise planks tiles",
    "ground": "noise stones tiles checker bricks clouds planks",
    "poster": "painting clouds spots stripes",
    "calm": "clouds noise",
}
_NUM_PAINTED = {
    "checker": 6,
    "bricks": 6,
    "tiles": 7,
    "planks": 6,
    "stripes": 6,
    "noise": 6,
    "clouds": 5,
    "marble": 5,
    "spots": 5,
    "stones": 6,
    "plaid": 5,
    "chevron": 4,
    "painting": 8,
}


@dataclass(frozen=True, kw_only=True)
class TextureBank:
    """All surface pictures and which of them suit a role."""

    pictures: np.ndarray
    """(P, SIZE, SIZE, 3) uint8."""
    names: tuple[str, ...]
    """P names."""
    roles: dict[str, np.ndarray]
    """Numbers of the pictures for "floor", "wall", "ceiling", "ground", "poster", "calm" and "object"."""

    def __len__(self) -> int:
        """Return the number of pictures, without their smaller copies."""
        return len(self.pictures)

    def levels(self) -> list[np.ndarray]:
        """Return every picture at every level, LEVELS * P arrays (side, side, 3) uint8, level by level."""
        pictures = []
        for level in range(LEVELS):
            side = SIZE >> level
            pictures += [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in self.pictures]
        return pictures


@lru_cache(maxsize=1)
def texture_bank() -> TextureBank:
    """Return the surface pictures; made once per process, always the same."""
    names, pictures = [], []
    for kind, count in _NUM_PAINTED.items():
        for number in range(count):
            names.append(f"{kind}_{number}")
            pictures.append(_paint(kind, number))
    for path in sorted(PHOTO_FOLDER.glob("*.jpg")):
        names.append(path.stem)
        pictures.append(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))

    def numbers(role: str) -> np.ndarray:
        kinds, photos = _PAINTED[role].split(), _PHOTOS[role].split()
        return np.array([i for i, name in enumerate(names) if name in photos or name.rsplit("_", 1)[0] in kinds])

    roles = {role: numbers(role) for role in _PHOTOS} | {"object": np.arange(len(names))}
    return TextureBank(pictures=np.stack(pictures), names=tuple(names), roles=roles)


@lru_cache(maxsize=1)
def skies() -> np.ndarray:
    """Return the skies, (NUM_SKIES, 6 * SKY_SIZE, SKY_SIZE, 3) uint8.

    Six faces, one below the other, in the order and orientation of MuJoCo's sky boxes (z is up in the scene).
    """
    s, t = np.meshgrid(*[(np.arange(SKY_SIZE) + 0.5) / SKY_SIZE * 2 - 1] * 2)
    one = np.ones_like(s)
    # Directions in the cube map's own axes, which are the scene's turned by 90 degrees about x.
    faces = [(one, -t, -s), (-one, -t, s), (s, one, t), (s, -one, -t), (s, -t, one), (-s, -t, -one)]
    direction = np.concatenate([np.stack([x, -z, y], axis=-1) for x, y, z in faces])
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return np.stack([_paint_sky(direction, number) for number in range(NUM_SKIES)])


def _paint_sky(direction_HW3: np.ndarray, number: int) -> np.ndarray:
    """Return one sky along the given directions, (H, W, 3) uint8."""
    rng = np.random.Generator(np.random.PCG64(7000 + number))
    zenith = _colour(rng, hue=(0.52, 0.66), saturation=(0.25, 0.75), value=(0.6, 0.95))
    horizon = _colour(rng, hue=(0.0, 0.16) if number % 4 == 3 else (0.5, 0.62), saturation=(0.05, 0.4), value=(0.8, 1))
    below = _colour(rng, hue=(0.05, 0.4), saturation=(0.1, 0.4), value=(0.3, 0.6))
    up = direction_HW3[..., 2:]
    picture = horizon + (zenith - horizon) * np.clip(up, 0, 1) ** rng.uniform(0.4, 0.9)
    waves = np.zeros(up.shape[:2])
    for octave in range(5):  # clouds: a sum of waves over the sphere, stretched along the horizon
        for _ in range(6):
            wave = rng.normal(size=3) * 2.2 * 1.7**octave * (1, 1, 2)
            waves += np.sin(direction_HW3 @ wave + rng.uniform(0, 2 * np.pi)) * 0.75**octave
    waves /= waves.std()
    cover = np.clip(waves * 0.6 + rng.uniform(-0.6, 0.4), 0, 1)[..., None] * np.clip(up * 6, 0, 1)
    picture = picture + (np.array([1.0, 1.0, 1.0]) * rng.uniform(0.85, 1.0) - picture) * cover * 0.85
    return _to_uint8(np.where(up > 0, picture, below))


def _paint(kind: str, number: int) -> np.ndarray:
    """Return one procedural surface picture, (SIZE, SIZE, 3) uint8."""
    rng = np.random.Generator(np.random.PCG64(1000 * list(_NUM_PAINTED).index(kind) + number))
    picture = _PAINTERS[kind](rng)
    grain = _fractal(rng, 0.7) * rng.uniform(0.01, 0.05)
    return _to_uint8(picture * (1 + grain[..., None]))


def _checker(rng: np.random.Generator) -> np.ndarray:
    count = rng.choice([2, 4, 4, 6])
    y, x = _grid()
    odd = (np.floor(x * count) + np.floor(y * count)) % 2
    return _blend(odd, *_two_colours(rng)) * (1 + 0.06 * _fractal(rng, 1.5)[..., None])


def _bricks(rng: np.random.Generator) -> np.ndarray:
    rows = rng.choice([4, 6, 8])
    y, x = _grid()
    row = np.floor(y * rows)
    columns = rows / 2
    shift = x * columns + 0.5 * (row % 2)
    cell = (row * 17 + np.floor(shift) % columns).astype(int)
    joint = (shift % 1 < 0.06) | ((y * rows) % 1 < 0.12)
    brick, mortar = _two_colours(rng)
    tone = rng.uniform(0.75, 1.15, size=400)[cell]
    return np.where(joint[..., None], mortar, brick * (tone * (1 + 0.08 * _fractal(rng, 1.0)))[..., None])


def _tiles(rng: np.random.Generator) -> np.ndarray:
    count = rng.choice([2, 3, 4])
    y, x = _grid()
    cell = (np.floor(y * count) * count + np.floor(x * count)).astype(int)
    edge = np.minimum(
        np.minimum((x * count) % 1, 1 - (x * count) % 1), np.minimum((y * count) % 1, 1 - (y * count) % 1)
    )
    tile, grout = _two_colours(rng)
    other = _colour(rng)
    mix = rng.uniform(0, rng.choice([0.25, 1.0]), size=count * count)[cell]
    surface = _blend(mix, tile, other) * (1 + 0.08 * _fractal(rng, 1.6))[..., None]
    return np.where((edge < 0.035)[..., None], grout, surface)


def _planks(rng: np.random.Generator) -> np.ndarray:
    rows = rng.choice([4, 5, 6])
    y, x = _grid()
    row = np.floor(y * rows).astype(int)
    offset = rng.uniform(size=rows)[row]
    end = ((x + offset) % 1) < 0.015
    gap = ((y * rows) % 1 < 0.06) | end
    wood = _colour(rng, hue=(0.03, 0.13), saturation=(0.25, 0.65), value=(0.45, 0.9))
    tone = rng.uniform(0.75, 1.2, size=rows)[row]
    grain = _fractal(rng, 1.3, stretch=9)
    return np.where(gap[..., None], wood * 0.35, wood * (tone * (1 + 0.13 * grain))[..., None])


def _stripes(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    across = [x, y, x + y, x + 2 * y][rng.integers(4)]
    phase = (across * rng.choice([2, 3, 4, 5])) % 1
    first, second = _two_colours(rng)
    third = _colour(rng)
    width = rng.uniform(0.3, 0.7)
    picture = np.where((phase < width)[..., None], first, second)
    thin = np.abs(phase - (1 + width) / 2) < 0.06
    return np.where(thin[..., None], third, picture)


def _noise(rng: np.random.Generator) -> np.ndarray:
    first, second = _two_colours(rng, contrast=0.25)
    return _blend(_squash(_fractal(rng, rng.uniform(0.8, 1.4))), first, second)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    first, second = _two_colours(rng, contrast=0.15)
    return _blend(_squash(_fractal(rng, rng.uniform(1.7, 2.4))), first, second)


def _marble(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    waves = x * rng.integers(1, 4) + y * rng.integers(0, 3) + _fractal(rng, 1.8) * rng.uniform(0.15, 0.4)
    vein = np.abs(np.sin(np.pi * waves)) ** rng.uniform(0.4, 1.2)
    return _blend(vein, *_two_colours(rng))


def _spots(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    ground, spot = _two_colours(rng)
    if rng.uniform() < 0.5:
        count = rng.choice([3, 4, 5])
        centres = np.array([((i + 0.5 * (j % 2)) / count, j / count) for i in range(count) for j in range(count)])
        radii = np.full(len(centres), rng.uniform(0.2, 0.38) / count)
    else:
        centres, radii = rng.uniform(size=(30, 2)), rng.uniform(0.03, 0.12, size=30)
    picture = np.broadcast_to(ground, (SIZE, SIZE, 3))
    for (cx, cy), radius in zip(centres, radii, strict=True):
        away = np.hypot(_wrap(x - cx), _wrap(y - cy))
        picture = np.where((away < radius)[..., None], spot * rng.uniform(0.8, 1.15), picture)
    return picture


def _stones(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    centres = rng.uniform(size=(rng.choice([12, 20, 32]), 2))
    away = np.hypot(_wrap(x[..., None] - centres[:, 0]), _wrap(y[..., None] - centres[:, 1]))
    order = np.argsort(away, axis=-1)
    nearest, second = np.take_along_axis(away, order[..., :2], axis=-1).transpose(2, 0, 1)
    stone, joint = _two_colours(rng)
    tone = rng.uniform(0.65, 1.2, size=len(centres))[order[..., 0]]
    return np.where(
        (second - nearest < 0.022)[..., None], joint, stone * (tone * (1 + 0.1 * _fractal(rng, 1.2)))[..., None]
    )


def _plaid(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    first, second = _two_colours(rng)
    third = _colour(rng)
    count = rng.choice([2, 3])
    bands = rng.uniform(size=(2, 3))

    def weave(along: np.ndarray) -> np.ndarray:
        phase = (along * count) % 1
        return (np.abs(phase - bands[0, 0]) < 0.18) * 0.5 + (np.abs(phase - bands[0, 1]) < 0.05) * 0.4

    picture = _blend(weave(x), first, second)
    return _blend(weave(y), picture, third)


def _chevron(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    count = rng.choice([2, 3, 4])
    phase = (y * count * 2 + 2 * np.abs((x * count) % 1 - 0.5) * rng.choice([1, 2])) % 1
    return _blend((phase < rng.uniform(0.35, 0.65)).astype(float), *_two_colours(rng))


def _painting(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    picture = _clouds(rng)
    for _ in range(rng.integers(5, 12)):
        cx, cy, half_x, half_y = rng.uniform([0.1, 0.1, 0.05, 0.05], [0.9, 0.9, 0.3, 0.3])
        inside = (np.abs(x - cx) < half_x) & (np.abs(y - cy) < half_y)
        if rng.uniform() < 0.5:
            inside = ((x - cx) / half_x) ** 2 + ((y - cy) / half_y) ** 2 < 1
        picture = np.where(inside[..., None], _colour(rng), picture)
    frame = (np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) < 0.05)[..., None]
    return np.where(frame, _colour(rng, value=(0.25, 0.8)), picture)


_PAINTERS = {
    "checker": _checker,
    "bricks": _bricks,
    "tiles": _tiles,
    "planks": _planks,
    "stripes": _stripes,
    "noise": _noise,
    "clouds": _clouds,
    "marble": _marble,
    "spots": _spots,
    "stones": _stones,
    "plaid": _plaid,
    "chevron": _chevron,
    "painting": _painting,
}


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Return the rows' and the columns' coordinates of the pixel centres, two arrays (SIZE, SIZE) in (0, 1)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return (y + 0.5) / SIZE, (x + 0.5) / SIZE


def _wrap(difference: np.ndarray) -> np.ndarray:
    """Return the shortest difference on a circle of length 1."""
    return (difference + 0.5) % 1 - 0.5


def _fractal(rng: np.random.Generator, power: float, stretch: float = 1.0) -> np.ndarray:
    """Return seamless noise with spectrum 1 / f**power, mean 0 and deviation 1, (SIZE, SIZE)."""
    fy, fx = np.meshgrid(np.fft.fftfreq(SIZE) * SIZE, np.fft.rfftfreq(SIZE) * SIZE, indexing="ij")
    frequency = np.hypot(fy, fx * stretch)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(SIZE, SIZE))) * frequency**-power
    noise = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    return noise / noise.std()


def _squash(noise: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 0.28 * noise, 0, 1)


def _blend(weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + (second - first) * np.asarray(weight, dtype=np.float64)[..., None]


def _colour(
    rng: np.random.Generator,
    hue: tuple[float, float] | None = None,
    saturation: tuple[float, float] | None = None,
    value: tuple[float, float] = (0.4, 0.95),
) -> np.ndarray:
    """Return a random colour, (3,) in [0, 1]; left to itself, two in three are muted and warm, as in most rooms."""
    if hue is None:
        muted = rng.uniform() < 0.65
        hue, saturation = ((0.0, 0.17), (0.05, 0.5)) if muted else ((0.0, 1.0), (0.05, 0.7))
    return hsv_to_rgb(np.array([rng.uniform(*hue), rng.uniform(*(saturation or (0.05, 0.7))), rng.uniform(*value)]))


def _two_colours(rng: np.random.Generator, contrast: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """Return two random colours that differ by at least `contrast` (largest difference of a channel)."""
    first = _colour(rng)
    while True:
        second = _colour(rng)
        if np.abs(first - second).max() >= contrast:
            return first, second


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Return RGB for hue, saturation and value, (..., 3) each in [0, 1]."""
    hue, saturation, value = np.moveaxis(np.asarray(hsv, dtype=np.float64), -1, 0)
    k = (np.array([5.0, 3.0, 1.0]) + hue[..., None] * 6) % 6
    return value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
