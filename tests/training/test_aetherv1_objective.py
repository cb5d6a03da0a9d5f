"""The paper's objective: training feeds the model what its inference feeds it, whose sampler recovers the truth."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from aether_env.camera import intrinsics_from_fov, se3_exp
from aether_env.disparity import decode_disparity_aetherv1
from aether_env.raymap import encode_raymap_aetherv1
from aether_env.world_model.aetherv1 import AetherV1, load_aetherv1, rotary_aetherv1
from aether_env.world_model.conditions import COLOUR, DISPARITY, RAY
from training.aetherv1_objective import (
    GOAL,
    NOTHING,
    OBSERVATION,
    VIDEO,
    AetherV1Config,
    AetherV1Objective,
    Answer,
    draw_conditions,
    nearest_depth,
)

TINY = Path(__file__).parents[1] / "goldens" / "aetherv1" / "tiny_checkpoint"
SHARES = (0.30, 0.40, 0.28, 0.02)
SIZE = (32, 48)


@dataclass(frozen=True)
class Clips:
    """What the objective reads of a batch."""

    rgb: Tensor
    depth: Tensor
    valid: Tensor
    world_from_camera: Tensor
    intrinsics: Tensor
    fps: float = 12.0

    def __getitem__(self, rows: slice) -> "Clips":
        return Clips(**{name: value[rows] if name != "fps" else value for name, value in vars(self).items()})


def clips(batch: int = 2, frames: int = 9, size: tuple[int, int] = SIZE, seed: int = 0) -> Clips:
    """Smooth pictures in motion, depth with holes and sky, a path that begins away from the origin."""
    draw = np.random.default_rng(seed)
    rgb = torch.from_numpy(draw.integers(0, 256, (batch, frames, 3, *size), dtype=np.uint8))
    depth = torch.from_numpy(draw.uniform(2, 90, (batch, frames, *size)).astype(np.float32))
    valid = torch.from_numpy(draw.random((batch, frames, *size)) < 0.8)
    depth[~valid] = 0.5  # nearer than all that is known
    twist = np.arange(frames)[:, None] * np.array([0.02, -0.01, 0.05, 0.002, 0.02, -0.004])
    poses = np.stack([se3_exp([1.0, 2, 3, 0.3, 0.2, 0.1]) @ se3_exp((1 + row) * twist) for row in range(batch)])
    intrinsics = np.tile(intrinsics_from_fov(1.2, *size), (batch, frames, 1, 1))
    return Clips(rgb, depth, valid, torch.from_numpy(poses), torch.from_numpy(intrinsics))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def only(kind: int, path: float = 0.5) -> AetherV1Config:
    shares = tuple(float(kind == which) for which in range(4))
    return AetherV1Config(mask_shares=shares, path_share=path)


@pytest.fixture(scope="module")
def parts() -> AetherV1:
    return load_aetherv1(TINY)


@pytest.fixture(scope="module")
def sure(parts) -> AetherV1:
    """The checkpoint with posteriors that are their mean, so that draws do not matter."""
    vae = deepcopy(parts.vae)
    last = vae.encoder.conv_out.conv
    last.weight[16:], last.bias[16:] = 0, -30
    return replace(parts, vae=vae)


class Stub:
    """Stands for a transformer: keeps what it is given, answers as it is told."""

    def __init__(self, parts: AetherV1, answer=lambda noisy, timestep: torch.zeros_like(noisy)):
        self.config, self.dtype, self.answer, self.calls = parts.transformer.config, torch.float32, answer, []

    def __call__(self, **given):
        self.calls.append(given)
        return (self.answer(given["hidden_states"][:, :, :56], given["timestep"]),)


# --- what the transformer is fed


@pytest.mark.parametrize("path", [0.0, 1.0], ids=["free", "along a path"])
@pytest.mark.parametrize("kind, given", [(VIDEO, "video"), (OBSERVATION, "image"), (GOAL, "image goal"), (NOTHING, "")])
def test_training_feeds_the_transformer_what_inference_feeds_it(sure, kind, given, path):
    batch = replace(clips(frames=17), fps=24.0)
    rgb = batch.rgb / 255
    pictures = {"video": rgb, "image": rgb[:, 0], "goal": rgb[:, -1]}
    inputs = {name: pictures[name] for name in given.split()}
    if path:
        first = batch.world_from_camera[:, :1].inverse()
        dmax = torch.stack([1 / d[v].min() for d, v in zip(batch.depth, batch.valid, strict=True)])
        poses = first @ batch.world_from_camera
        inputs["raymap"] = encode_raymap_aetherv1(poses, batch.intrinsics, *SIZE, dmax=dmax).float()
    asked, trained = Stub(sure), Stub(sure)
    used = replace(sure, transformer=asked)
    used(seeded(1, 2), num_frames=17, size=SIZE, fps=24, steps=1, guidance=1, **inputs)
    objective = AetherV1Objective(replace(sure, transformer=trained), only(kind, path))
    generators = seeded(1, 2)
    objective.ask(objective.compose(batch, generators), generators)

    (expected,), (found,) = asked.calls, trained.calls
    assert found.keys() == expected.keys()
    conditions = found["hidden_states"][:, :, 56:], expected["hidden_states"][:, :, 56:]
    torch.testing.assert_close(*conditions, atol=1e-5, rtol=1e-5)
    assert (conditions[1][:, :, :16].abs().sum() > 0) == bool(given)
    assert (conditions[1][:, :, 16:].abs().sum() > 0) == bool(path)
    torch.testing.assert_close(found["encoder_hidden_states"], expected["encoder_hidden_states"], atol=0, rtol=0)
    torch.testing.assert_close(found["image_rotary_emb"], expected["image_rotary_emb"], atol=0, rtol=0)
    assert found["timestep"].dtype == expected["timestep"].dtype and found["timestep"].shape == (2,)
    assert found["hidden_states"].dtype == expected["hidden_states"].dtype


def test_a_picture_is_encoded_alone_and_not_as_a_step_of_its_clip(sure):
    batch = clips()
    objective = AetherV1Objective(sure, only(GOAL))
    known, video = (AetherV1Objective(sure, only(kind)).compose(batch, seeded(1, 2)) for kind in (GOAL, VIDEO))
    colour = known.condition[:, :, COLOUR]
    for step, frame in ((0, 0), (-1, -1)):
        alone = objective._posterior(batch.rgb[:, [frame]] / 255, seeded(1, 2)) / 0.7
        torch.testing.assert_close(colour[:, [step]], alone, atol=1e-5, rtol=1e-5)
        assert (colour[:, step] - video.condition[:, step, COLOUR]).abs().max() > 1e-3
    assert (colour[:, 1:-1] == 0).all()


def test_conditions_are_the_posterior_over_its_scale_and_targets_times_it(parts):
    sample = AetherV1Objective(parts, only(VIDEO, path=1.0)).compose(clips(), seeded(1, 2))
    shown, target = sample.condition[:, :, COLOUR], sample.target[:, :, COLOUR]
    torch.testing.assert_close(target, 0.7**2 * shown)
    torch.testing.assert_close(sample.condition[:, :, 16:], sample.target[:, :, RAY], atol=0, rtol=0)


def test_disparity_is_relative_to_the_nearest_valid_pixel_and_what_is_unknown_is_far(sure):
    batch = clips()
    objective = AetherV1Objective(sure, only(VIDEO))
    seen = []
    plain = objective._posterior
    objective._posterior = lambda pictures, generators: seen.append(pictures) or plain(pictures, generators)
    sample = objective.compose(batch, seeded(1, 2))
    _, stored, *_ = seen
    for item in range(2):
        nearest = batch.depth[item][batch.valid[item]].min()
        assert nearest > 1.9 and sample.nearest[item] == nearest
        channels = stored[item].unbind(1)
        assert torch.equal(channels[0], channels[1]) and torch.equal(channels[0], channels[2])
        assert channels[0].max() == 1 and (channels[0][~batch.valid[item]] == 0).all()
        back = decode_disparity_aetherv1(channels[0], nearest)
        torch.testing.assert_close(back[batch.valid[item]], batch.depth[item][batch.valid[item]])
    expected = objective._posterior(stored, seeded(1, 2)) * 0.7
    torch.testing.assert_close(sample.target[:, :, DISPARITY], expected, atol=1e-5, rtol=1e-5)


def test_a_clip_without_any_depth_has_its_own_unit_and_all_of_it_is_far(sure):
    batch = clips(1)
    batch = replace(batch, valid=torch.zeros_like(batch.valid))
    sample = AetherV1Objective(sure, only(VIDEO)).compose(batch, seeded(1))
    assert sample.nearest.tolist() == [1.0] and sample.target.isfinite().all()


def test_faults_of_depth_are_never_the_nearest():
    depth = torch.tensor([[[[math.nan, math.inf, 0.0, -3.0, 4.0, 2.0]]]])
    valid = torch.tensor([[[[True, True, True, True, True, False]]]])
    assert nearest_depth(depth, valid).tolist() == [4.0]


def test_a_scene_in_other_units_is_the_same_to_the_network(sure):
    batch = clips()
    poses = batch.world_from_camera.clone()
    poses[..., :3, 3] *= 1000
    scaled = replace(batch, depth=batch.depth * 1000, world_from_camera=poses)
    objective = AetherV1Objective(sure, only(VIDEO, path=1.0))
    metres, millimetres = (objective.compose(b, seeded(1, 2)) for b in (batch, scaled))
    torch.testing.assert_close(millimetres.target, metres.target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(millimetres.nearest, 1000 * metres.nearest)


@pytest.mark.parametrize("frames, steps", [(17, 5), (25, 7), (33, 9), (41, 11)])
def test_every_length_of_the_paper_has_its_latent_steps_and_its_speed_scales_ropes_time(sure, frames, steps):
    batch = replace(clips(1, frames, (16, 16)), fps=24.0)
    sample = AetherV1Objective(sure, only(OBSERVATION)).compose(batch, seeded(1))
    assert sample.target.shape == (1, steps, 56, 2, 2) and sample.condition.shape == (1, steps, 40, 2, 2)
    plain = rotary_aetherv1(2 * steps - 1, (1, 1), (4, 6), 32)
    for found, expected in zip(sample.rotary, plain, strict=True):  # twice as fast: half the time between steps
        torch.testing.assert_close(found[::2], expected[:steps:1][: len(found[::2])], atol=1e-6, rtol=0)


# --- what is known


def test_known_pictures_come_as_often_as_the_paper_says_and_the_path_is_tossed_for_each():
    number = 20_000
    known, path = draw_conditions(AetherV1Config(), seeded(0) * number, "cpu")
    found = [((known == kind) & (path == with_path)).sum().item() for kind in range(4) for with_path in (True, False)]
    expected = [number * share / 2 for share in SHARES for _ in range(2)]
    # Shares and independence in one. Half a percent too many of any kind would give p < 0.001.
    assert chisquare(found, expected).pvalue > 0.01


@pytest.mark.parametrize("kind", [GOAL, OBSERVATION, VIDEO, NOTHING])
@pytest.mark.parametrize("path", [0.0, 1.0])
def test_a_share_of_one_is_always_drawn_and_a_share_of_none_never(kind, path):
    known, with_path = draw_conditions(only(kind, path), seeded(0) * 500, "cpu")
    assert (known == kind).all() and (with_path == bool(path)).all()


# --- noise, targets, loss


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_network_that_answers_the_wanted_velocity_lets_the_published_sampler_recover_the_clip(sure, steps):
    batch = clips(1)
    objective = AetherV1Objective(sure, only(OBSERVATION, path=1.0))
    sample = objective.compose(batch, seeded(1))

    def answer(noisy, timestep):
        levels = objective.levels_at(timestep)
        return levels.velocity(sample.target, (noisy - levels.signal * sample.target) / levels.noise)

    oracle = replace(sure, transformer=Stub(sure, answer))
    found = oracle(seeded(3), image=batch.rgb[:, 0] / 255, num_frames=9, steps=steps, guidance=1.0)
    torch.testing.assert_close(found.raymap, objective.decode_raymap(sample.target), atol=2e-4, rtol=1e-4)
    poses = batch.world_from_camera[:, :1].inverse() @ batch.world_from_camera
    truth = encode_raymap_aetherv1(poses, batch.intrinsics, *SIZE, dmax=1 / sample.nearest)
    torch.testing.assert_close(found.raymap, truth.float(), atol=2e-4, rtol=1e-4)
    with torch.no_grad():
        rgb, stored = objective.decode_colour(sample.target), objective.decode_disparity(sample.target)
    torch.testing.assert_close(found.rgb, (rgb / 2 + 0.5).clamp(0, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.disparity, (stored / 2 + 0.5) ** 2, atol=1e-3, rtol=1e-3)


def test_targets_are_the_schedulers_own_noising_and_the_last_timestep_is_pure_noise(parts):
    """Against diffusers' add_noise and get_velocity (which know nothing of this layout)."""
    objective = AetherV1Objective(parts, AetherV1Config())
    timestep = torch.tensor([0, 1, 500, 998, 999])
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(5, 3, 56, 2, 2, generator=generator) for _ in range(2))
    levels = objective.levels_at(timestep)
    torch.testing.assert_close(levels.mixed(clean, noise), parts.scheduler.add_noise(clean, noise, timestep))
    wanted = parts.scheduler.get_velocity(clean, noise, timestep)
    torch.testing.assert_close(levels.velocity(clean, noise), wanted)
    torch.testing.assert_close(levels.clean(levels.mixed(clean, noise), wanted), clean)
    assert torch.equal(levels.mixed(clean, noise)[-1], noise[-1]) and torch.equal(wanted[-1], -clean[-1])
    assert levels.share[-1] == 1 and (levels.share.diff() > 0).all() and levels.share[0] < 0.05
    ratio = (levels.signal / levels.noise).flatten()[:-1].double()
    torch.testing.assert_close(1 / levels.share[:-1].double() - 1, ratio)  # that of signal to noise in a straight mix


def test_the_error_of_the_velocity_is_cogvideox_weighting_of_the_clean_latents(parts):
    """CogVideoX trains (x0 - z0)^2 / (1 - abar) with x0 read off the velocity."""
    objective = AetherV1Objective(parts, AetherV1Config())
    timestep, generator = torch.tensor([3, 400, 999]), torch.Generator().manual_seed(0)
    clean, noise, velocity = (torch.randn(3, 3, 56, 2, 2, generator=generator) for _ in range(3))
    levels = objective.levels_at(timestep)
    answer = Answer(levels.mixed(clean, noise), velocity, levels.velocity(clean, noise), levels)
    weight = 1 / (1 - parts.scheduler.alphas_cumprod[timestep]).float()
    expected = (weight[:, None, None, None, None] * (answer.clean - clean) ** 2).mean()
    torch.testing.assert_close(objective.loss(answer)[0], expected, rtol=1e-3, atol=0)


def test_timesteps_are_drawn_evenly_and_flow_levels_are_logit_normal(parts):
    generators = seeded(0) * 10_000
    even = AetherV1Objective(parts, AetherV1Config()).levels(generators).timestep
    assert even.min() >= 0 and even.max() <= 999 and even.dtype == torch.int64
    assert chisquare(torch.bincount(even // 50, minlength=20).numpy()).pvalue > 0.01
    flow = AetherV1Objective(parts, AetherV1Config(prediction="flow", flow_mean=0.5, flow_std=1.5)).levels(generators)
    assert kstest((flow.share.logit().double() - 0.5).numpy() / 1.5, "norm").pvalue > 0.01
    torch.testing.assert_close(flow.timestep, 1000 * flow.share)


def test_flow_answers_lead_straight_from_noise_to_the_clip(parts):
    objective = AetherV1Objective(parts, AetherV1Config(prediction="flow"))
    levels, generator = objective.levels(seeded(1, 2)), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 56, 2, 2, generator=generator) for _ in range(2))
    velocity = levels.velocity(clean, noise)
    torch.testing.assert_close(clean + velocity, noise)
    torch.testing.assert_close(levels.clean(levels.mixed(clean, noise), velocity), clean)


def test_the_loss_counts_every_channel_alike_unless_it_is_told_otherwise(parts):
    wanted = torch.zeros(2, 3, 56, 4, 4)
    velocity = wanted.clone()
    velocity[:, :, COLOUR], velocity[:, :, DISPARITY], velocity[:, :, RAY] = 1, 2, 3
    answer = SimpleNamespace(velocity=velocity, wanted=wanted)
    loss, named = AetherV1Objective(parts, AetherV1Config()).loss(answer)
    torch.testing.assert_close(loss, (velocity**2).mean())
    assert {name: value.item() for name, value in named.items()} == {"colour": 1.0, "disparity": 4.0, "ray": 9.0}
    weighted, same = AetherV1Objective(parts, AetherV1Config(block_weights=(1.0, 0.0, 3.0))).loss(answer)
    assert weighted.item() == pytest.approx((16 * 1 + 3 * 24 * 9) / 56) and same == named


# --- learning


@pytest.fixture
def learner() -> AetherV1:
    parts = load_aetherv1(TINY)
    parts.transformer.train().requires_grad_()
    return parts


def step_loss(objective, batch, *seeds):
    generators = seeded(*seeds)
    return objective.loss(objective.ask(objective.compose(batch, generators), generators))[0]


@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_the_gradient_reaches_every_parameter_of_the_transformer_and_none_of_the_autoencoder(learner, prediction):
    objective = AetherV1Objective(learner, AetherV1Config(prediction=prediction))
    step_loss(objective, clips(), 1, 2).backward()
    without = [name for name, p in learner.transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad is None and not p.requires_grad for p in learner.vae.parameters())


@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_the_loss_falls_on_one_clip(learner, prediction):
    objective = AetherV1Objective(learner, AetherV1Config(prediction=prediction))
    sample = objective.compose(clips(1), seeded(0))
    eight = replace(
        sample, **{name: getattr(sample, name).expand(8, -1, -1, -1, -1) for name in ("target", "condition")}
    )
    optimizer = torch.optim.Adam(learner.transformer.parameters(), lr=6e-3)

    def ask(number):
        return objective.ask(eight, seeded(*range(8 * number, 8 * number + 8)))

    with torch.no_grad():
        unseen = ask(1000)
        before = objective.loss(unseen)[0]
    for number in range(25):
        loss, _ = objective.loss(ask(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = objective.loss(ask(1000))[0]
    # With noise that it has not met, it is better than at first, and than a network that answers nothing.
    assert after < 0.65 * before and after < 0.85 * unseen.wanted.square().mean()


def test_the_same_generators_give_the_same_loss_and_others_another(learner):
    state = torch.get_rng_state()
    objective = AetherV1Objective(learner, AetherV1Config())
    first, again, other = (step_loss(objective, clips(), *seeds) for seeds in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_item_does_not_depend_on_the_others_of_its_batch(learner):
    objective = AetherV1Objective(learner, AetherV1Config())
    batch = clips(3)
    loss = step_loss(objective, batch, 5, 6, 7)
    alone = [step_loss(objective, batch[i : i + 1], 5 + i) for i in range(3)]
    torch.testing.assert_close(loss, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_and_leaves_weights_and_loss_in_float32(learner):
    full, half = (AetherV1Objective(learner, AetherV1Config(), bf16=bf16) for bf16 in (False, True))
    exact, near = (step_loss(objective, clips(), 1, 2) for objective in (full, half))
    assert near.dtype == torch.float32 and 0 < abs(near - exact) < 0.02 * exact
    near.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in learner.transformer.parameters())


def test_what_is_decoded_of_an_estimate_leads_back_into_the_transformer(learner):
    objective = AetherV1Objective(learner, AetherV1Config())
    generators = seeded(1, 2)
    batch = clips()
    clean = objective.ask(objective.compose(batch, generators), generators).clean
    decoded = (objective.decode_colour(clean), objective.decode_disparity(clean), objective.decode_raymap(clean))
    assert [tuple(some.shape) for some in decoded] == [(2, 9, 3, *SIZE), (2, 9, *SIZE), (2, 9, 6, 4, 6)]
    for some in decoded:
        (gradient,) = torch.autograd.grad(some.square().sum(), learner.transformer.proj_out.weight, retain_graph=True)
        assert gradient.any()
    (blocks,) = torch.autograd.grad(decoded[2].sum(), clean)
    assert not blocks[:, :, : RAY.start].any() and blocks[:, :, RAY].any()


# --- mistakes


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prediction": "epsilon"}, "prediction must be 'v_prediction' or 'flow', got 'epsilon'"),
        ({"mask_shares": (0.5, 0.5, 0.5, -0.5)}, "mask_shares must be four shares"),
        ({"mask_shares": (0.3, 0.4, 0.2, 0.02)}, "mask_shares"),
        ({"mask_shares": (0.5, 0.5)}, "mask_shares"),
        ({"path_share": 1.5}, "path_share"),
        ({"block_weights": (0.0, 0.0, 0.0)}, "block_weights"),
        ({"block_weights": (1.0, -1.0, 1.0)}, "block_weights"),
        ({"block_weights": (1.0, math.nan, 1.0)}, "block_weights"),
        ({"flow_std": 0.0}, "flow_std"),
    ],
)
def test_settings_that_can_not_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AetherV1Config(**settings)


@pytest.mark.parametrize(
    "batch, message",
    [
        (clips(2, 13), "8 k \\+ 1 frames.*got 13"),
        (clips(2, 9, (32, 40)), "multiples of 16, got 32 x 40"),
        (clips(1), "one for each of 1 clips, got 2"),
        (replace(clips(), fps=0.0), "fps"),
    ],
)
def test_clips_that_can_not_be_are_named(sure, batch, message):
    with pytest.raises(ValueError, match=message):
        AetherV1Objective(sure, AetherV1Config()).compose(batch, seeded(1, 2))
