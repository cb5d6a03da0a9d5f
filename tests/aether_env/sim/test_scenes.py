from dataclasses import fields

import numpy as np
import pytest

from aether_env.sim.physics import mover_starts, simulate
from aether_env.sim.scenes import FIRST_DECOR, FIRST_MOVER, NUM_PLANES, SHAPES, sample_scenes
from aether_env.sim.solids import Solids
from aether_env.sim.textures import LEVELS, PHOTO_FOLDER, skies, texture_bank
from aether_env.sim.walks import CLEARANCE, MAX_SPEED, plan_walks


def test_a_scene_is_the_same_alone_and_in_any_batch():
    batch = sample_scenes(range(20))
    alone = sample_scenes([13])
    for field in fields(batch):
        np.testing.assert_array_equal(getattr(alone, field.name)[0], getattr(batch, field.name)[13], err_msg=field.name)


def test_scenes_differ_and_both_families_occur():
    scenes = sample_scenes(range(60))
    assert 0.4 < (scenes.family == 0).mean() < 0.8
    assert len(np.unique(scenes.horizontal_fov)) == 60
    fov = np.rad2deg(scenes.horizontal_fov)
    assert fov.min() >= 50 and fov.max() <= 90
    assert set(sample_scenes(range(9), family="blocks").family) == {1}


def test_objects_stay_inside_the_room_and_do_not_overlap_on_the_ground():
    scenes = sample_scenes(range(40), family="room")
    half = np.stack([scenes.position[:, 4, 0], scenes.position[:, 6, 1]], axis=-1)
    statics = slice(NUM_PLANES, FIRST_DECOR)
    inside = np.abs(scenes.position[:, statics, :2]) <= half[:, None]
    assert inside[scenes.visible[:, statics]].all()
    balls = np.flatnonzero(SHAPES[:FIRST_DECOR] == 2)
    centre = scenes.position[:, balls]
    for other in range(len(balls)):
        # Pictures on the wall are thin enough to stand before.
        solids = Solids(_without(scenes, [balls[other], *range(FIRST_DECOR, FIRST_MOVER)]))
        room = solids.clearance(centre[:, [other]])[:, 0] - scenes.size[:, balls[other], 0]
        # The ball of a lamp sits on its own pole.
        assert (room[scenes.visible[:, balls[other]]] > (-0.02 if other == 0 else -0.5)).all()


def test_between_five_and_fifteen_objects_are_wanted_and_most_fit():
    scenes = sample_scenes(range(200))
    parts = scenes.visible[:, NUM_PLANES:FIRST_DECOR].sum(axis=1)
    assert parts.min() >= 2 and 10 < parts.mean() < 20


def test_clearance_agrees_with_points_on_the_surface():
    scenes = sample_scenes(range(10), family="blocks")
    solids = Solids(scenes)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(10, 500, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    origin = np.repeat(scenes.start_position[:, None], 500, axis=1)
    point = origin.copy()
    for _ in range(200):  # sphere tracing: a distance that overshoots would end up inside
        point = point + direction * np.maximum(solids.clearance(point), 0.0)[..., None]
        assert solids.clearance(point).min() > -1e-6
    near = np.linalg.norm(point - origin, axis=-1) < 20
    assert near.any() and np.abs(solids.clearance(point)[near]).max() < 0.02


@pytest.mark.parametrize("fps", [6.0, 12.0])
def test_walks_keep_clear_of_every_surface_and_of_movers(fps):
    scenes = sample_scenes(range(100))
    pose, velocity = mover_starts(scenes)
    later, _ = simulate(scenes, pose, velocity, num_frames=32, fps=fps)
    movers = np.concatenate([pose[:, None], later], axis=1)[..., :3]
    walk = plan_walks(scenes, movers, num_frames=33, fps=fps)
    solids = Solids(scenes)
    static = np.stack([solids.clearance(walk[:, t, None, :3, 3])[:, 0] for t in range(33)], axis=1)
    assert static.min() >= 0.6 * CLEARANCE
    both = np.stack([solids.clearance(walk[:, t, None, :3, 3], movers[:, t])[:, 0] for t in range(33)], axis=1)
    assert (both.min(axis=1) >= 0.6 * CLEARANCE).mean() > 0.97
    speed = np.linalg.norm(np.diff(walk[:, :, :3, 3], axis=1), axis=-1) * fps
    assert speed.max() < 1.1 * MAX_SPEED and np.median(speed) > 0.1
    rotation = walk[..., :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-12
    )
    assert (np.linalg.det(rotation) > 0).all()
    assert np.abs(np.rad2deg(np.arcsin(walk[..., 2, 2]))).max() < 45.1


def test_physics_goes_on_where_it_stopped():
    scenes = sample_scenes(range(20))
    pose, velocity = mover_starts(scenes)
    whole, _ = simulate(scenes, pose, velocity, num_frames=10, fps=12.0)
    first, speed = simulate(scenes, pose, velocity, num_frames=4, fps=12.0)
    second, _ = simulate(scenes, first[:, -1], speed[:, -1], num_frames=6, fps=12.0)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)


def test_a_dropped_ball_falls_like_a_stone_and_comes_to_rest_on_the_ground():
    scenes = sample_scenes(range(300), family="blocks")
    ball = (scenes.mover_kind[:, 0] == 0) & (scenes.mover_kind[:, 1] < 0)
    scenes = scenes[np.flatnonzero(ball)[:5]]
    assert len(scenes) == 5
    pose, velocity = mover_starts(scenes)
    pose = pose.copy()
    pose[:, 0, :3] = [50.0, 50.0, 3.0]
    fallen, _ = simulate(scenes, pose, velocity * 0, num_frames=120, fps=24.0)
    seconds = 6 / 24
    np.testing.assert_allclose(fallen[:, 5, 0, 2], 3.0 - 0.5 * 9.81 * seconds**2, atol=0.04)
    radius = scenes.size[:, FIRST_MOVER, 0]
    np.testing.assert_allclose(fallen[:, -1, 0, 2], radius, atol=0.03)


def test_textures_are_many_and_their_files_small():
    bank = texture_bank()
    assert len(bank) >= 84 and bank.pictures.shape[1:] == (128, 128, 3)
    assert len(bank.levels()) == LEVELS * len(bank)
    assert all(len(numbers) >= 8 for numbers in bank.roles.values())
    assert sum(path.stat().st_size for path in PHOTO_FOLDER.iterdir()) < 300_000
    assert skies().std(axis=(1, 2, 3)).min() > 5


def _without(scenes, shapes):
    visible = scenes.visible.copy()
    visible[:, shapes] = False
    return type(scenes)(**({f.name: getattr(scenes, f.name) for f in fields(scenes)} | {"visible": visible}))
