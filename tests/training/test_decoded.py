"""Stage 2: what is decoded is what users get, which latents each loss teaches, and how much noisy items count."""

from dataclasses import replace

import pytest
import torch

from aether_env.raymap import encode_raymap, encode_raymap_aetherv1, pack_raymap, unpack_raymap
from aether_env.world_model.conditions import CLIP_POSITIONS, COLOUR, DISPARITY, RAY, Window
from aether_env.world_model.latents import Codec
from tests.tiny import HEIGHT, WIDTH, tiny_components
from training.decoded import (
    Decoded,
    DecodedConfig,
    cell_depth,
    decode_window,
    decoded_loss,
    points,
    rays_from_raymap,
    stage2_loss,
)
from training.objective import Batch

BLOCKS = {"colour": COLOUR, "depth": DISPARITY, "points": RAY}
ORIGIN_GAIN, PLANE = 10.0, 3.0


def only(name, **changes):
    weights = {f"{n}_weight": float(n == name) for n in BLOCKS}
    return DecodedConfig(**{**weights, **changes})


@pytest.fixture(scope="module")
def parts():
    return tiny_components()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def walk(frames, batch=1):
    """Poses (B, T, 4, 4) that go sideways and ahead while they turn, the first one the identity; and intrinsics."""
    time = torch.linspace(0, 1, frames, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(batch, frames, 1, 1)
    pose[..., 0, 0], pose[..., 0, 2] = (0.3 * time).cos(), (0.3 * time).sin()
    pose[..., 2, 0], pose[..., 2, 2] = -(0.3 * time).sin(), (0.3 * time).cos()
    pose[..., 0, 3], pose[..., 1, 3], pose[..., 2, 3] = -0.5 * time, 0.1 * time, 0.8 * time
    intrinsics = torch.tensor([[20.0, 0, WIDTH / 2], [0, 20, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return pose, intrinsics.expand(batch, frames, 3, 3)


def plane_disparity(pose, intrinsics, first_pixel):
    """Disparity (B, T, H, W) of the plane z = PLANE of the first camera's frame, by intersecting rays."""
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    pixel = torch.stack([u + first_pixel, v + first_pixel, torch.ones_like(u)]).double()
    z_of_ray = torch.einsum("btij,btjk,khw->btihw", pose[..., :3, :3], intrinsics.inverse(), pixel)[:, :, 2]
    return z_of_ray / (PLANE - pose[..., 2, 3])[..., None, None]


def plane(layout, frames=17):
    """A plane before a moving camera as either layout's raymap tells it."""
    pose, intrinsics = walk(frames)
    if layout == "mini":
        raymap = encode_raymap(
            pose, intrinsics, HEIGHT, WIDTH, grid_height=HEIGHT // 4, grid_width=WIDTH // 4, unit=1.0
        )
        resting = torch.cat([raymap[:, :1].expand(-1, 3, -1, -1, -1), raymap], dim=1)
        raymap = unpack_raymap(pack_raymap(resting), num_frames=frames)
    else:
        raymap = encode_raymap_aetherv1(pose, intrinsics, HEIGHT, WIDTH)
        raymap = unpack_raymap(pack_raymap(raymap, "strided"), "strided", frames)
    disparity = plane_disparity(pose, intrinsics, first_pixel=0.5 if layout == "mini" else 0.0)
    rgb = torch.tanh(random(1, frames, 3, HEIGHT, WIDTH))
    return Decoded(rgb, disparity, *rays_from_raymap(raymap, ORIGIN_GAIN))


def batch_of(number, seed=0):
    """Clip windows of random latents whose rays are those of a moving camera."""
    pose, intrinsics = walk(20, number)
    grid = dict(grid_height=HEIGHT // 4, grid_width=WIDTH // 4, unit=1.0)
    ray = pack_raymap(encode_raymap(pose, intrinsics, HEIGHT, WIDTH, **grid)).float()
    latents = random(number, 5, 32, HEIGHT // 4, WIDTH // 4, seed=seed)
    target = torch.cat([latents, ray], dim=2)
    window = Window(target.clone(), torch.zeros(number, 5, 3), torch.ones(number, 5), CLIP_POSITIONS)
    return Batch(window, target)


def disturbed(batch, amount=0.3):
    return (batch.target + amount * random(*batch.target.shape, seed=9)).requires_grad_()


@pytest.mark.parametrize("layout", ["mini", "aetherv1"])
def test_points_of_a_plane_lie_in_it_whatever_the_camera_does(layout):
    clip = plane(layout)
    depth = cell_depth(clip.disparity, torch.ones_like(clip.disparity).bool(), *clip.direction.shape[-2:], far=50.0)
    z = points(clip, depth)[:, :, 2]
    torch.testing.assert_close(z, torch.full_like(z, PLANE), atol=1e-9, rtol=0)


@pytest.mark.parametrize("layout", ["mini", "aetherv1"])
def test_a_scene_at_another_scale_is_as_good_and_another_path_is_not(layout):
    truth, one = plane(layout), torch.ones(1)
    larger = replace(truth, disparity=truth.disparity / 3, origin=truth.origin * 3)
    moved = replace(larger, origin=larger.origin + torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    config = only("points", depth_weight=1.0)
    for same in (truth, larger, moved):
        assert stage2_loss(same, truth, one, config)[0].item() == pytest.approx(0, abs=1e-6)
    wrong = replace(truth, origin=-truth.origin)
    assert stage2_loss(wrong, truth, one, config)[0].item() > 0.05


def test_decoded_windows_are_what_users_of_the_checkpoint_get(parts):
    latents = batch_of(2).target
    decoded, codec = decode_window(parts, latents), Codec(parts)
    rgb = ((decoded.rgb.clamp(-1, 1) + 1) * 127.5).movedim(2, -1)
    assert (rgb - codec.decode_colour(latents[:, :, COLOUR])[:, 3:]).abs().max() <= 0.5 + 1e-3
    depth = codec.decode_depth(latents[:, :, DISPARITY], torch.ones(2))[:, 3:]
    inside = (depth > 1 / parts.settings.headroom) & (depth < 99)
    torch.testing.assert_close(1 / decoded.disparity[inside], depth[inside], rtol=1e-4, atol=0)
    pose, _ = walk(20)
    centre = pose[:, 3:, :3, 3].float()[..., None, None].expand(2, -1, -1, HEIGHT // 4, WIDTH // 4)
    torch.testing.assert_close(decoded.origin, centre, atol=1e-5, rtol=1e-4)
    assert inside.sum() > 1000


def test_true_latents_have_no_loss(parts):
    batch = batch_of(2)
    loss, record = decoded_loss(parts, batch, batch.target, torch.zeros(2), DecodedConfig(share=1.0))
    assert loss.item() == pytest.approx(0, abs=2e-6)
    assert {name: value.item() for name, value in record.items()} == pytest.approx(
        {"decoded_colour": 0, "decoded_depth": 0, "decoded_points": 0}, abs=2e-6
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_each_loss_teaches_its_own_latents_only(parts, name):
    batch = batch_of(2)
    clean = disturbed(batch)
    loss, _ = decoded_loss(parts, batch, clean, torch.zeros(2), only(name, share=1.0))
    loss.backward()
    for block, channels in BLOCKS.items():
        gradient = clean.grad[:, :, channels].abs().amax(dim=(0, 2, 3, 4))
        # Every one of the five slots learns; disparity and colour are no help to the points.
        assert (gradient > 0).tolist() == [block == name] * 5
    assert all(p.grad is None for vae in (parts.vae, parts.disparity_vae) for p in vae.parameters())


def test_a_step_down_each_gradient_lowers_its_loss(parts):
    batch = batch_of(2)
    for name in BLOCKS:
        clean, config = disturbed(batch), only(name, share=1.0)
        before, _ = decoded_loss(parts, batch, clean, torch.zeros(2), config)
        (gradient,) = torch.autograd.grad(before, clean)
        step = 0.01 * before.detach() / gradient.square().sum()
        after, _ = decoded_loss(parts, batch, clean - step * gradient, torch.zeros(2), config)
        assert after.item() == pytest.approx(0.99 * before.item(), rel=0.003)


def test_decoders_that_could_learn_are_refused(parts):
    batch = batch_of(1)
    parts.vae.requires_grad_(True)
    try:
        with pytest.raises(ValueError, match="frozen"):
            decoded_loss(parts, batch, disturbed(batch), torch.zeros(1), DecodedConfig())
    finally:
        parts.vae.requires_grad_(False)


@pytest.mark.parametrize("level, power, weight", [(0.0, 2, 1), (0.5, 2, 0.25), (0.9, 1, 0.1), (1.0, 2, 0), (1.0, 0, 1)])
def test_items_count_by_their_noise_level(parts, level, power, weight):
    batch = batch_of(2)
    clean = disturbed(batch)
    losses = [
        decoded_loss(parts, batch, clean, torch.full((2,), at), DecodedConfig(share=1.0, level_power=power))[0].item()
        for at in (0.0, level)
    ]
    assert losses[1] == pytest.approx(weight * losses[0], rel=1e-5)


def test_only_the_share_with_the_least_noise_is_decoded_and_pure_noise_teaches_nothing(parts):
    batch = batch_of(8)

    def taught(level):
        clean = disturbed(batch)
        decoded_loss(parts, batch, clean, level, DecodedConfig())[0].backward()
        return (clean.grad.abs().amax(dim=(1, 2, 3, 4)) > 0).nonzero().flatten().tolist()

    assert taught(torch.tensor([0.9, 0.2, 1.0, 0.8, 0.4, 0.3, 0.7, 0.6])) == [1, 5]
    assert taught(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 1.0, 1.0])) == [5]
    assert taught(torch.ones(8)) == []


def test_the_loss_is_the_mean_of_the_weighted_items(parts):
    batch, level, config = batch_of(3), torch.tensor([0.1, 0.5, 0.7]), DecodedConfig(share=1.0)
    clean = disturbed(batch)
    whole = decoded_loss(parts, batch, clean, level, config)[0]
    alone = [
        decoded_loss(parts, Batch(batch.window, batch.target[i]), clean[i], level[i], config)[0]
        for i in ([0], [1], [2])
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_unknown_depth_and_the_sky_never_matter():
    truth = plane("mini")
    truth = replace(truth, disparity=truth.disparity.clone())
    truth.disparity[:, :, :6] = 0.0  # sky, one and a half rows of cells
    valid = torch.ones_like(truth.disparity, dtype=torch.bool)
    valid[:, :, :, 10:15] = False
    prediction = replace(truth, disparity=truth.disparity + 0.1 * random(*valid.shape, seed=3).abs())

    def losses(prediction, truth):
        direction = prediction.direction.clone().requires_grad_()
        loss, record = stage2_loss(
            replace(prediction, direction=direction), truth, torch.ones(1), only("points", depth_weight=1.0), valid
        )
        return loss, *torch.autograd.grad(loss, direction), record["decoded_points"], record["decoded_depth"]

    before = losses(prediction, truth)
    taught = before[1].abs().amax(dim=(0, 1, 2)) > 0  # by cells of 4 x 4 pixels: 4 x 6
    assert taught.tolist() == [[False] * 6, [True] * 6, [True] * 6, [True] * 6]
    for value in (7.0, torch.nan, torch.inf):
        unknown = [replace(c, disparity=torch.where(valid, c.disparity, value)) for c in (prediction, truth)]
        torch.testing.assert_close(losses(*unknown), before, rtol=0, atol=0)
    other_sky = replace(prediction, disparity=prediction.disparity.clone())
    other_sky.disparity[:, :, :6] += 2.0
    after = losses(other_sky, truth)
    assert after[2] == before[2] and after[3] > before[3]  # the sky has no points, but a disparity: 0


def test_decoding_in_bfloat16_gives_almost_the_same_loss(parts):
    batch = batch_of(2)
    arguments = (parts, batch, disturbed(batch), torch.zeros(2), DecodedConfig(share=1.0))
    full, half = decoded_loss(*arguments)[0], decoded_loss(*arguments, bf16=True)[0]
    assert half.dtype == torch.float32 and half.item() != full.item()
    assert half.item() == pytest.approx(full.item(), rel=0.05)


def test_windows_of_env_steps_are_refused(parts):
    batch = batch_of(1)
    step = replace(batch, window=replace(batch.window, history=4))
    with pytest.raises(ValueError, match="clip windows"):
        decoded_loss(parts, step, batch.target, torch.zeros(1), DecodedConfig())


def test_raymaps_that_do_not_divide_the_picture_are_named():
    clip = plane("mini")
    odd = replace(clip, direction=clip.direction[..., :5], origin=clip.origin[..., :5])
    with pytest.raises(ValueError, match="multiples"):
        stage2_loss(odd, odd, torch.ones(1), DecodedConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        dict(colour_weight=-1.0),
        dict(colour_weight=0.0, depth_weight=0.0, points_weight=0.0),
        dict(gradient_weight=-0.5),
        dict(norm=0.5),
        dict(norm=3.0),
        dict(gradient_scales=0),
        dict(level_power=-1.0),
        dict(share=0.0),
        dict(share=1.5),
        dict(far=1.0),
    ],
)
def test_impossible_settings_are_named_with_their_value(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"(?s){name}.*{value}"):
        DecodedConfig(**wrong)
