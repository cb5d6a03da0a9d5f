"""Training windows: which slots are shown, how often, in whose world; the truth is a bank of known latents."""

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from aether_env.raymap import decode_raymap, unpack_raymap
from aether_env.sim import SimClips
from aether_env.world_model.autoencoder import CausalGroupAutoencoder
from aether_env.world_model.conditions import COLOUR, RAY, TARGET_CHANNELS
from training.config import DataConfig, TransformerConfig
from training.objective import Sampler, Walkers, noise_levels
from training.simulate import LatentBank, group, live_chunks, rest

HEIGHT, WIDTH, STEP = 16, 24, 0.05
DATA = DataConfig(height=HEIGHT, width=WIDTH, chunk_clips=8, chunks=2)


class Seven:
    """A network that dreams 7 everywhere."""

    def look(self, model_input, positions):
        return []

    def __call__(self, model_input, sigma, positions, past):
        return torch.full_like(model_input[:, :, :TARGET_CHANNELS], 7.0)


def straight_walks(number):
    """Eight clips of a camera that goes straight ahead, 5 cm a frame, before a wall; colours tell the frame."""
    frames = DATA.num_frames
    time = torch.arange(frames)
    pose = torch.eye(4, dtype=torch.float64).repeat(8, frames, 1, 1)
    pose[..., 2, 3] = STEP * time
    intrinsics = torch.tensor([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]).repeat(8, frames, 1, 1)
    depth = torch.full((8, frames, HEIGHT, WIDTH), 5.0) - STEP * time[:, None, None]
    rgb = (4 * time[:, None, None, None] + number).to(torch.uint8).expand(8, -1, HEIGHT, WIDTH, 3)
    nothing = torch.zeros_like(depth)
    return SimClips(
        rgb=rgb, depth=depth, valid=depth > 0, segmentation=nothing.short(), moving=nothing.bool(),
        world_from_camera=pose, intrinsics=intrinsics,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bank():
    tiny = dict(width=8, fine_width=8, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LatentBank(
            DATA, CausalGroupAutoencoder(3, **tiny), CausalGroupAutoencoder(1, **tiny), "cpu", straight_walks
        )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_groups_and_pictures_at_rest_cover_a_clip_without_gap():
    frames = [rest(0)] + [group(j) for j in range(1, DATA.latent_steps)]
    assert [f for g in frames[1:] for f in g] == list(range(1, DATA.num_frames))


@pytest.mark.parametrize("renewals", [0, 1, 2, 7, 20])
def test_the_ring_holds_the_newest_chunks_each_in_its_place(renewals):
    live = live_chunks(6, renewals)
    assert sorted(live) == list(range(renewals, renewals + 6))
    assert all(number % 6 == place for place, number in enumerate(live))


def test_a_renewed_bank_is_the_bank_of_a_run_that_resumes_there(bank):
    arguments = (DATA, bank.colour_vae, bank.disparity_vae, "cpu", straight_walks)
    renewed = LatentBank(*arguments)
    rows = renewed.renew()
    assert (rows.start, rows.stop) == (0, 8)
    resumed = LatentBank(*arguments, renewals=1)
    assert torch.equal(renewed.colour, resumed.colour)
    assert not torch.equal(renewed.colour, bank.colour)


def test_masks_come_as_often_as_the_paper_says(bank):
    window = Sampler(bank, TransformerConfig()).clips(6000, generator()).window
    colour, ray = window.mask[:, :, 0], window.mask[:, :, 2]
    everything = (colour == 1).all(dim=1)
    nothing = (colour == 0).all(dim=1)
    goal = (colour[:, -1] == 1) & ~everything
    observation = (colour[:, 0] == 1) & ~everything & ~goal
    for share, wanted in ((goal, 0.30), (observation, 0.40), (everything, 0.28), (nothing, 0.02)):
        assert share.float().mean().item() == pytest.approx(wanted, abs=0.02)
    assert (ray == 1).all(dim=1).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert colour[:, 1:-1][~everything].max() == 0
    assert (window.dreamed == 1).all()


def test_a_goal_is_shown_as_a_picture_at_rest_and_not_as_the_latent_to_be_dreamed(bank):
    batch = Sampler(bank, TransformerConfig(mask_shares=(1.0, 0.0, 0.0, 0.0))).clips(8, generator())
    assert (batch.window.known[:, -1, COLOUR] - batch.target[:, -1, COLOUR]).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(batch.window.known[:, 0, COLOUR], batch.target[:, 0, COLOUR])


def steps(bank, step, **changes):
    sampler = Sampler(bank, TransformerConfig(history_noise=0.0, **changes))
    rows = torch.arange(len(step)) % len(bank)
    return sampler.steps(rows, torch.tensor(step), generator())


def test_the_world_of_a_step_is_its_last_history_frame(bank):
    batch = steps(bank, [1, 5, 11])
    raymap = unpack_raymap(batch.target[:, :, RAY], packing="consecutive").double()
    pose, _ = decode_raymap(raymap, HEIGHT, WIDTH, unit=bank.walk_unit[:3].double(), origin_gain=10.0)
    z = pose[:, :, 2, 3]
    ahead = STEP * torch.arange(1, 5, dtype=torch.float64)
    torch.testing.assert_close(z[:, 16:], ahead.expand(3, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z[:, 15], torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_history_fills_up_after_reset(bank):
    mask = steps(bank, [1, 2, 3, 4]).window.mask[:, 1:4, 0]
    assert mask.tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_memory_repeats_neither_history_nor_the_step_to_be_dreamed(bank):
    step = [1 + i % 11 for i in range(88)]
    batch = steps(bank, step, memory_share=1.0)
    shown = batch.window.mask[:, 0, 0] == 1
    assert shown.sum() > 60
    memory = batch.window.known[:, 0, COLOUR]
    others = batch.target[:, 1:, COLOUR]
    distance = (memory[:, None] - others).abs().amax(dim=(2, 3, 4))
    present = torch.cat([batch.window.mask[:, 1:4, 0] == 1, torch.ones(88, 1, dtype=torch.bool)], dim=1)
    assert distance[shown][present[shown]].min() > 1e-4


def test_only_the_new_slot_of_a_step_is_dreamed_and_its_path_is_known(bank):
    window = steps(bank, [3, 7]).window
    assert window.dreamed.tolist() == [[0, 0, 0, 0, 1]] * 2
    assert window.mask[:, -1].tolist() == [[0, 0, 1]] * 2


def test_walkers_go_on_from_what_they_dreamed_and_begin_anew_at_the_end(bank):
    sampler = Sampler(bank, TransformerConfig(history_noise=0.0))
    walkers = Walkers(sampler, 6, generator())
    walkers.step = torch.tensor([1, 2, 3, 4, 11, 11])
    batch = walkers.batch(generator())
    scheduler = FlowMatchEulerDiscreteScheduler()
    walkers.advance(batch, Seven(), scheduler, (1.0,), 0.0, generator(), dream=True)  # type: ignore[arg-type]
    assert walkers.step.tolist() == [2, 3, 4, 5, *sampler.first_step(walkers.rows[4:]).tolist()]
    torch.testing.assert_close(walkers.dreamt[0, 1], torch.full_like(walkers.dreamt[0, 1], 7.0))
    assert walkers.dreamt[4, 1:].abs().max() < 7.0
    after = walkers.batch(generator())
    torch.testing.assert_close(
        after.window.known[0, 3, : RAY.start], torch.full_like(after.target[0, 3, : RAY.start], 7.0)
    )


def test_a_walk_whose_dream_is_not_finite_keeps_the_truth(bank):
    class Broken(Seven):
        def __call__(self, *inputs):
            dream = super().__call__(*inputs)
            dream[0] = float("nan")
            return dream

    walkers = Walkers(Sampler(bank, TransformerConfig(history_noise=0.0)), 3, generator())
    walkers.rows[:] = torch.arange(3)
    walkers.step[:] = 5
    batch, scheduler = walkers.batch(generator()), FlowMatchEulerDiscreteScheduler()
    walkers.advance(batch, Broken(), scheduler, (1.0,), 0.0, generator(), dream=True)  # type: ignore[arg-type]
    assert torch.equal(walkers.dreamt[0, 5], batch.target[0, -1, : RAY.start]) and walkers.dreamt.isfinite().all()
    torch.testing.assert_close(walkers.dreamt[1:, 5], torch.full_like(walkers.dreamt[1:, 5], 7.0))


def test_a_saved_walk_that_was_spoiled_heals(bank):
    sampler = Sampler(bank, TransformerConfig())
    walkers, again = Walkers(sampler, 2, generator()), Walkers(sampler, 2, generator(1))
    state = {name: value.clone() for name, value in walkers.state_dict().items()}
    state["dreamt"][0, 2, 3, 1, 1] = float("inf")
    state["dreamt"][0, 3] = 7.0
    again.load_state_dict(state)
    assert torch.equal(again.dreamt[0, 2], walkers.dreamt[0, 2]) and (again.dreamt[0, 3] == 7.0).all()


def test_noise_levels_lie_in_range_and_favour_the_start_of_sampling():
    level = noise_levels(generator(), torch.full((20_000,), 0.5))
    assert 0 < level.min() and level.max() <= 1
    assert (level == 1).float().mean().item() == pytest.approx(0.5, abs=0.02)
    # logit-normal(0.3, 1.1) lies below 0.5 with probability Phi(-0.3 / 1.1) = 0.393, the uniform share with 0.5
    assert (level < 0.5).float().mean().item() == pytest.approx(0.25 * 0.393 + 0.25 * 0.5, abs=0.02)


def test_a_walk_in_an_old_unit_is_long_under_way(bank):
    sampler = Sampler(bank, TransformerConfig())
    rows = torch.arange(len(bank))
    assert 0 < bank.old_unit.float().mean() < 1
    assert torch.equal(sampler.first_step(rows) == 4, bank.old_unit)
    fresh = ~bank.old_unit
    torch.testing.assert_close(bank.walk_unit[fresh], bank.unit[fresh, 0])
    assert (bank.walk_unit[~fresh] / bank.unit[~fresh, 0] - 1).abs().min() > 1e-3


def test_some_walks_begin_with_a_first_depth_that_was_dreamed(bank):
    walkers = Walkers(Sampler(bank, TransformerConfig()), 40, generator())
    walkers.step[:] = DATA.latent_steps - 1
    batch = walkers.batch(generator())
    walkers.advance(
        batch, Seven(), FlowMatchEulerDiscreteScheduler(),
        (1.0,), 0.0, generator(), dream=True,
    )  # fmt: skip  # type: ignore
    dreamed = ((walkers.dreamt[:, 0, 16:] - 7.0).abs() < 1e-4).all(dim=(1, 2, 3))
    assert 1 <= dreamed.sum() <= 8
    assert not (dreamed & bank.old_unit[walkers.rows]).any()
    assert ((walkers.dreamt[:, 0, :16] - 7.0).abs() > 1e-4).any(dim=3).any(dim=2).any(dim=1).all()
