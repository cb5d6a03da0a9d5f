from __future__ import annotations

import numpy as np
import torch

from training.evaluation.baselines import push_pull, visible_part, warp_first_frame

HEIGHT, WIDTH, FOCAL = 12, 20, 15.0
INTRINSICS = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])[None]
STILL = torch.eye(4, dtype=torch.float64)[None]
ALL = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def moved(x: float = 0.0, z: float = 0.0) -> torch.Tensor:
    pose = STILL.clone()
    pose[0, 0, 3], pose[0, 2, 3] = x, z
    return pose


def turned(degrees: float) -> torch.Tensor:
    pose, angle = STILL.clone(), np.deg2rad(degrees)
    pose[0, 0, 0] = pose[0, 2, 2] = np.cos(angle)
    pose[0, 0, 2], pose[0, 2, 0] = np.sin(angle), -np.sin(angle)
    return pose


def plane(depth: float) -> torch.Tensor:
    return torch.full((1, HEIGHT, WIDTH), depth)


def seen(depth: torch.Tensor, pose: torch.Tensor, first_depth: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
    given = {"valid": ALL, "moving": ~ALL, "first_valid": ALL} | kwargs
    return visible_part(
        depth, given["valid"], given["moving"], INTRINSICS, pose, first_depth, given["first_valid"], STILL
    )


def test_a_camera_that_stands_still_gets_its_picture_back_whatever_the_depth():
    depth = 1 + 5 * torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    valid = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) < 0.7
    assert torch.equal(warp_first_frame(picture(), depth, valid, INTRINSICS, STILL, STILL), picture())


def test_a_sideways_step_before_a_wall_shifts_the_picture_by_focal_times_step_over_depth():
    step, depth = 0.8, 3.0
    shift = round(FOCAL * step / depth)  # 4 pixels exactly
    warped = warp_first_frame(picture(), plane(depth), ALL, INTRINSICS, STILL, moved(x=step))
    assert torch.equal(warped[..., :-shift], picture()[..., shift:])


def test_the_sky_does_not_move_with_a_step():
    warped = warp_first_frame(picture(), plane(100.0), ~ALL, INTRINSICS, STILL, moved(x=2.0))
    assert torch.allclose(warped, picture(), atol=0.02)


def test_what_is_near_covers_what_is_far():
    depth, colour = plane(6.0), torch.zeros(1, 3, HEIGHT, WIDTH)
    depth[..., 8:12], colour[..., 8:12] = 2.0, 1.0  # a white bar before a black wall
    warped = warp_first_frame(colour, depth, ALL, INTRINSICS, STILL, moved(x=0.8))
    assert torch.all(warped[..., 2:6] == 1)  # the bar went 6 pixels to the left, over the wall


def test_a_hole_in_a_constant_picture_is_filled_with_the_constant():
    known = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    known[:, 2:9, 3:17] = False
    constant = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, HEIGHT, WIDTH)
    holed = torch.where(known[:, None], constant, torch.nan)
    assert torch.allclose(push_pull(holed, known), constant)


def test_one_known_pixel_fills_everything_and_known_pixels_stay():
    known = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    known[:, 5, 7] = True
    filled = push_pull(picture(), known)
    assert torch.allclose(filled, picture()[:, :, 5:6, 7:8].expand_as(filled))
    assert torch.equal(push_pull(picture(), ALL), picture())


def test_without_motion_everything_at_rest_is_visible():
    depth = 1 + 5 * torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    sky = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) < 0.3
    assert seen(depth, STILL, depth, valid=~sky, first_valid=~sky).all()


def test_what_moves_is_not_of_the_visible_part():
    moving = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    moving[:, :4] = True
    assert torch.equal(seen(plane(2.0), STILL, plane(2.0), moving=moving), ~moving)


def test_a_step_to_the_right_leaves_exactly_the_columns_unseen_that_come_in():
    shown = seen(plane(3.0), moved(x=0.8), plane(3.0))  # 4 pixels
    assert shown[..., :-4].all() and not shown[..., -4:].any()


def test_what_an_obstacle_hid_is_not_visible():
    first = plane(6.0)
    first[..., 8:12] = 2.0
    assert torch.equal(seen(plane(6.0), STILL, first), first == 6.0)


def test_a_slanted_plane_stays_visible_when_the_camera_comes_nearer():
    # The floor one metre below a level camera: depth = focal / rows below the middle.
    rows = torch.arange(HEIGHT) + 0.5 - HEIGHT / 2
    floor = torch.where(rows > 0, FOCAL / rows, 1.0)[:, None].expand(1, HEIGHT, WIDTH)
    valid = (rows > 0)[:, None].expand(1, HEIGHT, WIDTH)
    shown = seen(floor, moved(z=0.5), floor, valid=valid, first_valid=valid)
    lowest = FOCAL / (FOCAL / rows[-1] + 0.5)  # where the last row lands: all rows are inside the first picture
    assert 0 < lowest < HEIGHT / 2
    assert shown[:, HEIGHT // 2 + 1 :].all()


def test_after_half_a_turn_nothing_is_visible_and_the_warp_is_still_a_picture():
    assert not seen(plane(2.0), turned(180), plane(2.0)).any()
    warped = warp_first_frame(picture(), plane(2.0), ALL, INTRINSICS, STILL, turned(180))
    assert torch.isfinite(warped).all()
