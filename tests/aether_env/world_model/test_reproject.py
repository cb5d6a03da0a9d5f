"""What known frames show from other poses: closed forms of planes and sky, and the simulator's own later frames."""

import numpy as np
import pytest
import torch

from aether_env.camera import se3_exp
from aether_env.conventions import FAR_DEPTH
from aether_env.sim import render_clips, seed_in
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.latents import CELL, Codec, at_rest
from aether_env.world_model.reproject import Guess, Views, guess_latents, reproject
from tests.tiny import tiny_components
from training.evaluation.baselines import visible_part, warp_first_frame

HEIGHT, WIDTH, FOCAL = 16, 24, 20.0
K = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
INTRINSICS = torch.tensor(K)[None]
HERE = np.eye(4)
V, U = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
RAYS = np.stack([U, V, np.ones_like(U)], axis=-1) @ np.linalg.inv(K).T
MOTIONS = {
    "a step aside and up": (0.3, -0.2, 0, 0, 0, 0),
    "a step ahead": (0, 0, 0.7, 0, 0, 0),
    "a step back": (0, 0, -0.7, 0, 0, 0),
    "a turn": (0, 0, 0, 0.05, 0.1, 0.2),
    "all of it": (-0.4, 0.1, 0.5, -0.08, 0.12, -0.1),
}


def pose(*twist: float) -> np.ndarray:
    return se3_exp(np.array(twist, float))


def moved(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    return pose(x, 0, z, 0, 0, 0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, HEIGHT, WIDTH, 3), dtype=np.uint8)


def views(rgb, depth, poses, there=None) -> Views:
    """One dream's views: (S, H, W, 3), (S, H, W), (S, 4, 4), (S,)."""
    there = np.ones(len(rgb), bool) if there is None else there
    return Views(*(torch.as_tensor(np.asarray(part))[None] for part in (rgb, depth, poses, there)))


def seen_from(shown: Views, *targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return colour in grey levels (T, H, W, 3), depth and what is seen (T, H, W)."""
    guess = reproject(shown, INTRINSICS, torch.tensor(np.stack(targets))[None])
    rgb = (guess.rgb[0].movedim(1, -1).numpy() + 1) * 127.5
    return rgb, guess.depth[0].numpy(), guess.seen[0].numpy()


def wall(depth: float = 5.0) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), depth, np.float32)


def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth colours, grey levels (..., 3): of points on a plane, or of directions."""
    return 127 + 100 * np.stack([np.sin(1.5 * x + y), np.cos(2 * x), np.sin(1.7 * y - x)], axis=-1)


def pixels(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (..., 3) in camera axes lie in the picture."""
    image = points @ K.T
    return image[..., 0] / image[..., 2], image[..., 1] / image[..., 2]


def inside(u: np.ndarray, v: np.ndarray, margin: float) -> np.ndarray:
    return (u > margin) & (u < WIDTH - margin) & (v > margin) & (v < HEIGHT - margin)


def test_a_camera_that_stands_still_gets_its_picture_and_depth_back_whatever_they_are():
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = FAR_DEPTH
    far_off = pose(3, -2, 5, 0.4, 0.2, 0.1)
    rgb, again, seen = seen_from(views(noise(1), depth[None], far_off[None]), far_off)
    assert seen.all()
    np.testing.assert_allclose(rgb[0], noise(1)[0], atol=0.05)
    np.testing.assert_allclose(again[0], depth, rtol=1e-4)


def test_a_sideways_step_before_a_wall_shifts_the_picture_by_focal_times_step_over_depth():
    rgb, depth, seen = seen_from(views(noise(1), wall()[None], HERE[None]), moved(x=1.0))  # 20 * 1 / 5 = 4 pixels
    np.testing.assert_allclose(rgb[0, :, :-4], noise(1)[0, :, 4:], atol=0.05)
    np.testing.assert_allclose(depth[0, :, :-4], 5.0, rtol=1e-5)
    assert seen[0, :, :-4].all() and not seen[0, :, -4:].any()


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_plane_is_shown_in_the_colours_and_depth_of_where_the_rays_meet_it(motion):
    distance, target = 4.0, pose(*MOTIONS[motion])
    picture = pattern(*(RAYS[..., :2] * distance).transpose(2, 0, 1)).round().astype(np.uint8)
    rgb, depth, seen = seen_from(views(picture[None], wall(distance)[None], HERE[None]), target)

    direction = RAYS @ target[:3, :3].T
    z = (distance - target[2, 3]) / direction[..., 2]
    point = target[:3, 3] + z[..., None] * direction
    assert not seen[0][~inside(*pixels(point), -0.01)].any()
    certain = inside(*pixels(point), 1.0)
    assert certain.mean() > 0.5 and seen[0][certain].all()
    np.testing.assert_allclose(depth[0][certain], z[certain], rtol=2e-3)
    # Half a level of rounding, and what bilinear interpolation bends.
    np.testing.assert_allclose(rgb[0][certain], pattern(point[..., 0], point[..., 1])[certain], atol=2.5)


def sky_seen_after(target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    picture = pattern(2 * RAYS[..., 0], 2 * RAYS[..., 1]).round().astype(np.uint8)
    return seen_from(views(picture[None], wall(FAR_DEPTH)[None], HERE[None]), target)


def test_a_turn_under_the_sky_shows_each_direction_in_its_colour():
    target = pose(0, 0, 0, 0.1, -0.3, 0.2)
    rgb, _, seen = sky_seen_after(target)
    direction = RAYS @ target[:3, :3].T
    certain = inside(*pixels(direction), 1.0)
    assert certain.mean() > 0.3 and seen[0][certain].all()
    wanted = pattern(*(2 * direction[..., :2] / direction[..., 2:]).transpose(2, 0, 1))
    np.testing.assert_allclose(rgb[0][certain], wanted[certain], atol=2.5)
    assert not seen[0][~inside(*pixels(direction), -0.01)].any()


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_sky_stays_sky_from_every_pose(motion):
    _, depth, seen = sky_seen_after(pose(*MOTIONS[motion]))
    assert seen.mean() > 0.4 and (depth[seen] == FAR_DEPTH).all()


def test_no_way_moves_the_sky_and_what_is_before_it_covers_it():
    bar = (U > 8) & (U < 12)
    depth = np.where(bar, 2.0, FAR_DEPTH).astype(np.float32)
    rgb, found, seen = seen_from(views(noise(1), depth[None], HERE[None]), moved(x=0.6))
    # The bar goes 20 * 0.6 / 2 = 6 pixels to the left, the sky nowhere: columns 8 to 11 were behind the bar.
    columns = np.arange(WIDTH)
    behind, covered = (columns >= 8) & (columns < 12), (columns >= 2) & (columns < 6)
    sky = ~behind & ~covered & (columns != 7)  # the last column before the bar is mixed with it
    assert not seen[0, :, behind].any() and seen[0, :, covered | sky].all()
    np.testing.assert_allclose(found[0, :, covered], 2.0, rtol=1e-5)
    assert (found[0, :, sky] == FAR_DEPTH).all()
    picture = noise(1)[0]
    np.testing.assert_allclose(rgb[0][:, covered], picture[:, 8:12], atol=0.05)
    # It is so far away that 0.6 m shift it by 0.0012 pixels of up to 255 grey levels.
    np.testing.assert_allclose(rgb[0][:, sky], picture[:, sky], atol=0.5)


def test_what_is_near_covers_what_is_far_and_what_it_uncovers_is_not_seen():
    bar = (U > 8) & (U < 12)
    depth = np.where(bar, 2.0, 6.0).astype(np.float32)
    picture = np.where(bar[..., None], np.uint8([250, 250, 250]), noise(1)[0] // 2)
    rgb, found, seen = seen_from(views(picture[None], depth[None], HERE[None]), moved(x=0.6))
    # The bar goes 20 * 0.6 / 2 = 6 pixels to the left, the wall 2: columns 6 to 9 were behind the bar.
    columns = np.arange(WIDTH)
    hidden, out = (columns >= 6) & (columns < 10), columns >= WIDTH - 2
    assert np.array_equal(seen[0], np.broadcast_to(~hidden & ~out, seen[0].shape))
    np.testing.assert_allclose(rgb[0, :, 2:6], 250, atol=0.05)
    np.testing.assert_allclose(found[0, :, 2:6], 2.0, rtol=1e-5)
    for shown in (slice(0, 2), slice(10, WIDTH - 2)):
        np.testing.assert_allclose(rgb[0, :, shown], picture[:, shown.start + 2 : shown.stop + 2], atol=0.05)
        np.testing.assert_allclose(found[0, :, shown], 6.0, rtol=1e-5)


@pytest.mark.parametrize("target", [moved(z=9.0), pose(0, 0, 0, 0, np.pi, 0), moved(x=40.0)])
def test_from_beyond_the_wall_or_turned_away_nothing_is_seen_and_all_numbers_are_finite(target):
    rgb, depth, seen = seen_from(views(noise(1), wall()[None], HERE[None]), target)
    assert not seen.any()
    assert np.isfinite(rgb).all() and np.isfinite(depth).all()


def test_every_view_fills_only_what_those_before_it_have_not_seen():
    colours = [200, 0, 0], [0, 200, 0], [0, 0, 200]
    pictures = [np.broadcast_to(np.uint8(colour), (HEIGHT, WIDTH, 3)) for colour in colours]
    # The first two miss eight and four columns on the right; walls that are nearer do not count for being so.
    shown = views(pictures, [wall(5.0), wall(4.0), wall(3.0)], [moved(x=-2.0), moved(x=-0.8), HERE])
    rgb, depth, seen = seen_from(shown, HERE)
    top = np.repeat([0, 1, 2], [WIDTH - 8, 4, 4])
    assert seen[0].all()
    np.testing.assert_allclose(rgb[0], np.broadcast_to(np.array(colours)[top], rgb[0].shape), atol=0.05)
    np.testing.assert_allclose(depth[0], np.broadcast_to(5.0 - top, depth[0].shape), rtol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_view_that_is_not_there_contributes_nothing(place):
    target = pose(*MOTIONS["all of it"])
    alone = seen_from(views(noise(1), wall()[None], HERE[None]), target)
    full = np.arange(3) == place
    rgb, depth, poses = np.zeros((3, HEIGHT, WIDTH, 3), np.uint8), np.zeros((3, HEIGHT, WIDTH)), np.stack([HERE] * 3)
    rgb[place], depth[place] = noise(1)[0], wall()
    for garbage in (0.0, 3.0):
        depth[~full] = garbage
        both = seen_from(views(rgb, depth.astype(np.float32), poses, full), target)
        assert np.array_equal(both[2], alone[2]) and 0.3 < alone[2].mean() < 1
        for a, b in zip(both, alone, strict=True):
            assert np.array_equal(a[alone[2]], b[alone[2]])
    nothing = seen_from(views(rgb, depth.astype(np.float32), poses, np.zeros(3, bool)), target)
    assert not nothing[2].any() and np.isfinite(nothing[0]).all()


def crowd(count: int, seed: int = 0) -> tuple[Views, torch.Tensor, torch.Tensor]:
    """Dreams with three views each and four wanted poses, all different."""
    rng = np.random.default_rng(seed)
    shown = Views(
        rgb=torch.tensor(noise(count, 3, seed=seed)),
        depth=torch.tensor(rng.uniform(1, 5, (count, 3, HEIGHT, WIDTH)).astype(np.float32)),
        world_from_camera=torch.tensor(se3_exp(rng.normal(0, 0.1, (count, 3, 6)))),
        there=torch.tensor(rng.random((count, 3)) < 0.7),
    )
    focal = torch.tensor(rng.uniform(0.8, 1.2, (count, 1, 1)))
    return (
        shown,
        INTRINSICS * torch.cat([focal, focal, torch.ones_like(focal)], dim=1),
        torch.tensor(se3_exp(rng.normal(0, 0.1, (count, 4, 6)))),
    )


@pytest.mark.parametrize("count", [3, 17])
def test_rows_are_independent_to_the_bit(count):
    shown, intrinsics, targets = crowd(count)
    together = reproject(shown, intrinsics, targets)
    assert 0.1 < together.seen.float().mean() < 0.99
    for row in range(count):
        own = slice(row, row + 1)
        alone = reproject(Views(*(part[own] for part in shown)), intrinsics[own], targets[own])
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[row])


def test_only_relative_poses_count_also_far_from_the_origin():
    shown, intrinsics, targets = crowd(3)
    away = torch.tensor(pose(4e4, -3e4, 2e4, 1.0, 0.5, -2.0))
    near = reproject(shown, intrinsics, targets)
    far = reproject(shown._replace(world_from_camera=away @ shown.world_from_camera), intrinsics, away @ targets)
    assert (near.seen == far.seen).float().mean() > 0.999
    both = near.seen & far.seen
    torch.testing.assert_close(far.depth[both], near.depth[both], atol=0, rtol=1e-3)
    assert ((far.rgb - near.rgb).abs().amax(dim=2)[both] < 0.02).float().mean() > 0.999


@pytest.fixture(scope="module")
def clips():
    return render_clips([seed_in("test", index) for index in range(4)], num_frames=5, height=64, width=96)


def test_the_simulators_next_frames_are_shown_better_than_by_splatting_colours(clips):
    """By hand over 8 clips, frame 4: PSNR 32.2 against 30.5; seen 0.855, visible 0.824, both 0.821 of the pixels."""
    count, k = len(clips.rgb), clips.intrinsics[:, 0]
    depth = torch.where(clips.valid, clips.depth, FAR_DEPTH).half()
    there = torch.ones(count, 1, dtype=torch.bool)
    shown = Views(clips.rgb[:, :1], depth[:, :1], clips.world_from_camera[:, :1], there)
    guess = reproject(shown, k, clips.world_from_camera[:, 1:])
    truth = clips.rgb.movedim(-1, 2).float() / 127.5 - 1
    for time in range(1, 5):
        at = clips.depth[:, time], clips.valid[:, time], clips.moving[:, time], k, clips.world_from_camera[:, time]
        visible = visible_part(*at, clips.depth[:, 0], clips.valid[:, 0], clips.world_from_camera[:, 0])
        seen, found = guess.seen[:, time - 1], guess.depth[:, time - 1]
        first = truth[:, 0], clips.depth[:, 0], clips.valid[:, 0], k, clips.world_from_camera[:, 0]
        warped = warp_first_frame(*first, clips.world_from_camera[:, time])

        def psnr(picture, time=time, where=visible & seen):
            error = (picture - truth[:, time]).square().movedim(1, -1)[where].mean()
            return float(10 * torch.log10(4 / error))

        assert psnr(guess.rgb[:, time - 1]) > psnr(warped) + 0.7  # it was 1.1 to 1.9 dB
        covered = [float(s[v].float().mean()) for s, v in zip(seen, visible, strict=True)]
        assert min(covered) > 0.98 and visible.float().mean() > 0.85
        # What it says it sees beyond that are rims of objects, where one sample stands for two surfaces.
        assert (seen & ~visible & ~clips.moving[:, time]).float().mean() < 0.04
        off = (found / torch.where(clips.valid, clips.depth, FAR_DEPTH)[:, time] - 1).abs() > 0.05
        assert off[visible & seen].float().mean() < 0.01


def test_a_cells_share_is_that_of_its_seen_pixels_in_all_four_pictures():
    rng = np.random.default_rng(3)
    seen = rng.random((2, 4, HEIGHT, WIDTH)) < rng.random((2, 1, HEIGHT, WIDTH))
    guess = Guess(torch.zeros(2, 4, 3, HEIGHT, WIDTH), torch.full(seen.shape, 3.0), torch.tensor(seen))
    with torch.no_grad():
        _, share = guess_latents(Codec(tiny_components()), guess, torch.ones(2))
    assert share.shape == (2, HEIGHT // CELL, WIDTH // CELL)
    for row in range(2):
        for i in range(HEIGHT // CELL):
            for j in range(WIDTH // CELL):
                cell = seen[row, :, CELL * i : CELL * (i + 1), CELL * j : CELL * (j + 1)]
                assert float(share[row, i, j]) == pytest.approx(cell.sum() / cell.size, abs=1e-6)


def test_a_guess_from_the_same_pose_has_the_latents_of_the_picture_at_rest(clips):
    """By the weights of `mini`, with sky and units of different sizes."""
    codec, unit = Codec(load_checkpoint("mini")), torch.tensor([0.7, 2.5])
    rgb, depth = clips.rgb[:2, 0], torch.where(clips.valid, clips.depth, FAR_DEPTH)[:2, 0]
    assert (depth == FAR_DEPTH).any()
    here = clips.world_from_camera[:2, :1]
    shown = Views(rgb[:, None], depth[:, None], here, torch.ones(2, 1, dtype=torch.bool))
    with torch.inference_mode():
        guess = reproject(shown, clips.intrinsics[:2, 0], here.expand(-1, 4, -1, -1))
        latents, share = guess_latents(codec, guess, unit)
        wanted = [codec.encode_colour(at_rest(rgb)), codec.encode_depth(at_rest(depth), unit)]
    assert (share == 1).all()
    torch.testing.assert_close(latents, torch.cat(wanted, dim=2)[:, 0], atol=2e-3, rtol=0)


def test_holes_are_filled_from_around_them():
    codec = Codec(tiny_components())
    seen = torch.ones(1, 4, HEIGHT, WIDTH, dtype=torch.bool)
    whole = Guess(torch.full((1, 4, 3, HEIGHT, WIDTH), 0.3), torch.full(seen.shape, 2.0), seen)
    seen = seen.clone()
    seen[:, :, 3:11, 5:19] = False
    holed = Guess(torch.where(seen[:, :, None], whole.rgb, -1.0), torch.where(seen, whole.depth, 0.0), seen)
    with torch.no_grad():
        (latents, share), (wanted, _) = (guess_latents(codec, g, torch.ones(1)) for g in (holed, whole))
    torch.testing.assert_close(latents, wanted, atol=1e-5, rtol=0)
    assert share.min() == 0


def test_where_nothing_is_seen_the_latents_are_finite_and_the_share_is_0():
    nothing = torch.zeros(1, 4, HEIGHT, WIDTH, dtype=torch.bool)
    guess = Guess(torch.full((1, 4, 3, HEIGHT, WIDTH), torch.nan), torch.zeros(nothing.shape), nothing)
    with torch.no_grad():
        latents, share = guess_latents(Codec(tiny_components()), guess, torch.ones(1))
    assert latents.isfinite().all() and (share == 0).all()
