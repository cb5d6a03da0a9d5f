"""Walks through Freedoom's maps with exact cameras: videos of a game, recorded with ViZDoom.

What ViZDoom 1.3.2 gives was measured by casting rays through the map's own lines and heights along a walk (320 x 240;
99.7 % of the depth levels came out exactly as predicted, and colours carried between frames agree best there too):

    pose        the game variables CAMERA_* are those of the picture itself, not of the tic before or after; height
                includes the bobbing of a walk
    height      Doom's pixels were 1.2 times as high as wide: heights times 1.2 make pixels square
    focal       160 pixels, 90 degrees from left to right; a column's ray goes through its left edge and a row's through
                its lower one, so that the principal point lies at (160.5, 119.5) in our pixels
    depth       z-depth (not distance), 8 bits, linear: level n holds 5.42 + 7.139 n to 5.42 + 7.139 (n + 1) map units;
                0 is nearer, too; the sky is 127 (its own 255 halved with the picture's height) and so are the few
                surfaces about 912 units away
    looking up  shears the picture instead of turning the camera, so walks keep their pitch at 0

A map unit is taken as 1/32 metre (a marine of 56 units is 1.75 m tall), so all depth is below `FAR_DEPTH`.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HEIGHT, WIDTH = 240, 320
TICS_PER_SECOND = 35
METRES_PER_UNIT = 1 / 32
HEIGHT_SCALE = 1.2
INTRINSICS = np.array([[160.0, 0, 160.5], [0, 160.0, 119.5], [0, 0, 1]])
LEVEL = 7.139 * METRES_PER_UNIT
"""Metres of a level of depth."""
NEAR = (5.42 + 7.139 / 2) * METRES_PER_UNIT
"""Metres in the middle of level 0."""
SKY = 127
MAPS = (
    *(("freedoom2.wad", f"map{number:02d}") for number in (1, 2, 3, 6, 8, 4)),
    *(("freedoom1.wad", name) for name in ("E1M1", "E1M2", "E1M3", "E2M1", "E2M2", "E3M2")),
)
"""File and map of walk 0, 1 and so on."""
_VARIABLES = ("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "PITCH", "ROLL", "FOV")
_NEAR_LEVEL = 9
_WARM_UP = 12


class Walk(NamedTuple):
    """A recorded walk of T frames."""

    rgb: np.ndarray
    """(T, 240, 320, 3) uint8."""
    levels: np.ndarray
    """(T, 240, 320) uint8 depth as the game tells it."""
    moving: np.ndarray
    """(T, 240, 320) bool: shows a monster, or something that flies."""
    world_from_camera: np.ndarray
    """(T, 4, 4) float64, metres; the world is the first camera."""
    fps: float


def record_walk(number: int, num_frames: int, fps: float, *, seed: int = 0) -> Walk:
    """Return a scripted walk: forward with some strafing and turning, away from walls that come near.

    Args:
        number: Of the walk: it chooses the map; even ones have no monsters.
        num_frames: T.
        fps: Frames per second; the game counts 35 tics a second, so that is 35 over a whole number.
        seed: Of the game and the walk.

    Raises:
        ValueError: ViZDoom is not installed.
    """
    from aether_env.camera import relative_to

    vizdoom = import_vizdoom()
    tics = max(1, round(TICS_PER_SECOND / fps))
    generator = np.random.default_rng([seed, number])
    litter = Path("_vizdoom")  # an empty folder that the game leaves wherever it is started
    is_ours = not litter.exists()
    with tempfile.TemporaryDirectory() as folder:
        game = _game(vizdoom, number, seed, Path(folder) / "vizdoom.ini")
        try:
            game.send_game_command("god")
            if number % 2:
                _summon(game)
            frames = _walk(game, num_frames, tics, generator)
        finally:
            game.close()
            if is_ours and litter.is_dir() and not any(litter.iterdir()):
                litter.rmdir()
    rgb, levels, moving, variables = (np.stack(part) for part in zip(*frames, strict=True))
    if not np.allclose(variables[:, 4:], (0, 0, 90), atol=1e-3):
        raise ValueError(f"walk {number} must keep pitch and roll at 0 and 90 degrees of view, it does not.")
    poses = camera_poses(variables[:, :4])
    return Walk(rgb, levels, moving, relative_to(poses, poses[0]), TICS_PER_SECOND / tics)


def import_vizdoom() -> Any:
    """Return the module.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import vizdoom
    except ImportError as error:
        raise ValueError("world vizdoom needs ViZDoom: pip install 'aether-env[annotate]'.") from error
    return vizdoom


def camera_poses(variables: np.ndarray) -> np.ndarray:
    """Return world_from_camera (T, 4, 4), metres, in Doom's axes (east, north, up) made square.

    Args:
        variables: (T, 4) x, y and z in map units, and the angle from east to north in degrees.
    """
    sine, cosine = np.sin(np.deg2rad(variables[:, 3])), np.cos(np.deg2rad(variables[:, 3]))
    poses = np.tile(np.eye(4), (len(variables), 1, 1))
    zero = np.zeros_like(sine)
    poses[:, :3, 0] = np.stack([sine, -cosine, zero], -1)
    poses[:, :3, 1] = (0, 0, -1)
    poses[:, :3, 2] = np.stack([cosine, sine, zero], -1)
    poses[:, :3, 3] = variables[:, :3] * (1, 1, HEIGHT_SCALE) * METRES_PER_UNIT
    return poses


def _game(vizdoom: Any, number: int, seed: int, config: Path) -> Any:
    wad, level = MAPS[number % len(MAPS)]
    game = vizdoom.DoomGame()
    game.set_doom_config_path(str(config))
    path = str(Path(vizdoom.__file__).parent / wad)
    game.set_doom_game_path(path)
    game.set_doom_scenario_path(path)
    game.set_doom_map(level)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    for part in ("hud", "weapon", "crosshair", "screen_flashes", "messages"):
        getattr(game, f"set_render_{part}")(False)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_available_game_variables([getattr(vizdoom.GameVariable, f"CAMERA_{name}") for name in _VARIABLES])
    buttons = ("MOVE_FORWARD_BACKWARD_DELTA", "MOVE_LEFT_RIGHT_DELTA", "TURN_LEFT_RIGHT_DELTA")
    game.set_available_buttons([getattr(vizdoom.Button, f"{name}") for name in buttons])
    game.set_seed(seed + 1)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_doom_skill(3)
    game.set_episode_timeout(0)
    if number % 2 == 0:
        game.add_game_args("-nomonsters")
    game.init()
    return game


def _summon(game: Any) -> None:
    """Put a monster before the camera and step back from it, so that something moves and the way is not blocked."""
    game.make_action([0, 0, 3], 10)
    game.send_game_command("summon DoomImp")
    game.make_action([-12, 0, 0], 25)
    game.make_action([-12, 0, -3], 10)


def _walk(game: Any, num_frames: int, tics: int, generator: np.random.Generator) -> list[tuple]:
    """Return pictures, depth levels, masks and game variables."""
    game.make_action([0, 0, 0], _WARM_UP)
    phase_2 = generator.uniform(0, 2 * math.pi, 2)
    speed, side, frames = generator.uniform(8, 13), 0.0, []
    for t in range(num_frames):
        state = game.get_state()
        if state is None:
            raise ValueError(f"the game ended after {t} of {num_frames} frames; take another seed.")
        variables = np.array(state.game_variables)
        frames.append((state.screen_buffer.copy(), state.depth_buffer.copy(), _moving(state), variables))
        seconds = t * tics / TICS_PER_SECOND
        ahead, left, right = _clearance(state.depth_buffer)
        if ahead > _NEAR_LEVEL:
            side = 0.0
            turn = 0.9 * math.sin(1.1 * seconds + phase_2[0])
        else:  # the side is kept until the way is free, or the walk would tremble in a corner
            side = side or math.copysign(1.0, right - left)
            turn = 2.2 * side
        strafe = 3.0 * math.sin(0.8 * seconds + phase_2[1])
        game.make_action([speed * min(1.0, ahead / 20), strafe, turn], tics)
    return frames


def _clearance(levels: np.ndarray) -> tuple[float, float, float]:
    """Return how far it is ahead, to the left and to the right, in levels of depth."""
    band = levels[HEIGHT // 2 - 10 : HEIGHT // 2 + 30]
    third = WIDTH // 3
    return (
        float(np.quantile(band[:, third : 2 * third], 0.1)),
        float(band[:, :third].mean()),
        float(band[:, -third:].mean()),
    )


def _moving(state: Any) -> np.ndarray:
    """Return where monsters are and whatever has a speed, (240, 320) bool. Doors and lifts have no labels."""
    values = [
        label.value
        for label in state.labels
        if label.object_category == "Monster"
        or any((label.object_velocity_x, label.object_velocity_y, label.object_velocity_z))
    ]
    return np.isin(state.labels_buffer, values)
