"""The causal autoencoder: prefix-exact decoding, groups that do not see each other, clear errors."""

import pytest
import torch

from aether_env.world_model.autoencoder import CausalGroupAutoencoder


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = CausalGroupAutoencoder(3, 16, 16, 8, 1, 1, 1, latents_mean=[0.5] * 16, latents_std=[2.0] * 16).eval()
        for parameter in module.parameters():  # residual blocks start as the identity: make them matter
            parameter.data += 0.05 * torch.randn_like(parameter)
    return module.requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_prefix_of_the_latents_decodes_to_the_prefix_of_the_frames(vae, steps):
    z = noise(2, 16, 4, 4, 6)
    whole = vae.decode(z).sample
    torch.testing.assert_close(vae.decode(z[:, :, :steps]).sample, whole[:, :, : 4 * steps], atol=1e-5, rtol=0)


def test_decoding_step_by_step_with_one_latent_of_state_gives_the_whole_video(vae):
    z = noise(1, 16, 3, 4, 6)
    whole = vae.decode(z).sample
    for step in range(3):
        previous = None if step == 0 else z[:, :, step - 1]
        part = vae.decode(z[:, :, step : step + 1], previous=previous).sample
        torch.testing.assert_close(part, whole[:, :, 4 * step : 4 * step + 4], atol=1e-5, rtol=0)


def test_a_group_alone_encodes_to_the_same_latent_as_inside_a_clip(vae):
    x = noise(1, 3, 8, 16, 24)
    whole = vae.encode(x).latent_dist.mode()
    alone = vae.encode(x[:, :, 4:]).latent_dist.mode()
    torch.testing.assert_close(alone, whole[:, :, 1:], atol=1e-5, rtol=0)
    assert whole.shape == (1, 16, 2, 4, 6)


def test_the_latent_before_matters_for_decoding(vae):
    z = noise(1, 16, 2, 4, 6)
    changed = z.clone()
    changed[:, :, 0] += 1
    assert (vae.decode(z).sample - vae.decode(changed).sample)[:, :, 4:].abs().max() > 1e-3


def test_denormalise_undoes_normalise(vae):
    z = noise(2, 16, 3, 4, 6)
    torch.testing.assert_close(vae.denormalise(vae.normalise(z)), z)
    torch.testing.assert_close(vae.normalise(torch.full((1, 16, 4, 6), 2.5)), torch.ones(1, 16, 4, 6))


@pytest.mark.parametrize("shape", [(1, 3, 3, 16, 24), (1, 3, 4, 15, 24), (1, 3, 4, 16, 22)])
def test_sizes_that_do_not_divide_are_named(vae, shape):
    with pytest.raises(ValueError, match=f"{shape[2]} x {shape[3]} x {shape[4]}"):
        vae.encode(torch.zeros(shape))
