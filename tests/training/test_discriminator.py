"""The critic learns what blur and flicker are, and passes on what it dislikes."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from training.config import DecoderConfig
from training.discriminator import Critic, PatchDiscriminator
from training.losses import critic_loss, rgb_gradient_energy
from training.parallelize import Processes


def blurred(video):
    frames = avg_pool2d(video.transpose(1, 2).flatten(0, 1), 3, stride=1, padding=1)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


def flickering(video):
    """Every frame is a true one, but every other one comes from another video."""
    mixed = video.clone()
    mixed[:, :, ::2] = video.roll(1, dims=0)[:, :, ::2]
    return mixed


def draw(step):
    """Noise that stands still."""
    picture = 0.5 * torch.randn(8, 3, 1, 16, 16, generator=torch.Generator().manual_seed(step))
    return picture.expand(-1, -1, 4, -1, -1)


@pytest.mark.parametrize("spoil", [blurred, flickering])
def test_a_critic_learns_to_tell_spoiled_pictures_from_true_ones(spoil):
    torch.manual_seed(0)
    critic = Critic(PatchDiscriminator((16, 16)), DecoderConfig(critic_lr=4e-3), Processes(0, 1, "cpu"))
    for step in range(60):
        critic.learn(draw(step), spoil(draw(step)), 1.0)
    with torch.no_grad():
        assert critic.dislike(spoil(draw(1000))) > critic.dislike(draw(1000)) + 0.5


def test_dislike_moves_the_pictures_and_leaves_the_critic_alone():
    torch.manual_seed(0)
    critic = Critic(PatchDiscriminator((8,)), DecoderConfig(), Processes(0, 1, "cpu"))
    video = draw(0).clone().requires_grad_()
    critic.dislike(video).backward()
    assert video.grad is not None and video.grad.abs().max() > 0
    assert all(p.grad is None for p in critic.parameters)


def test_hinge_loss_is_zero_only_beyond_the_margin():
    assert float(critic_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0]))) == 0.0
    assert float(critic_loss(torch.tensor([0.0]), torch.tensor([0.5]))) == 2.5


def test_rgb_gradient_energy_of_a_ramp_is_its_slopes_squared():
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    assert float(rgb_gradient_energy(2.0 * rows + 0.5 * columns)) == pytest.approx(4.25)
