"""The opponent of the stage "decoder": a small network that tells decoded pictures from true ones, patch by patch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from training.config import DecoderConfig
from training.losses import critic_loss
from training.parallelize import Processes, average_gradients


class PatchDiscriminator(nn.Module):
    """Judge every patch of every frame: the picture, and how it changes to the next frame, where flicker shows.

    Args:
        widths: Channels of the convolutions, each of which halves the size.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        # Spectral norm bounds the slope: without it the game of the two networks can run away.
        for before, width in zip((6, *widths), widths, strict=False):
            layers += [spectral_norm(nn.Conv2d(before, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, video: Tensor) -> Tensor:
        """Return logits (B T, 1, h, w), positive for true, of frames (B, 3, T, H, W) in [-1, 1]; T at least 2."""
        change = video.diff(dim=2)
        change = torch.cat([change, change[:, :, -1:]], dim=2)
        return self.layers(torch.cat([video, change], dim=1).transpose(1, 2).flatten(0, 1))


class Critic:
    """A discriminator and its optimizer. It is the same in all processes.

    Args:
        network: The discriminator.
        config: Its learning rate.
        processes: Gradients are averaged over them.
        compile: Compile the network.
    """

    def __init__(self, network: nn.Module, config: DecoderConfig, processes: Processes, compile: bool = False):
        anything: Any = network  # the stubs do not know memory_format
        self.network: nn.Module = anything.to(processes.device, memory_format=torch.channels_last)
        self.processes, self.peak_lr = processes, config.critic_lr
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.critic_lr, betas=(0.0, 0.99), weight_decay=0.0, fused=True
        )
        self._logits: Any = torch.compile(self.network, dynamic=False) if compile else self.network

    def learn(self, real: Tensor, decoded: Tensor, factor: float) -> dict[str, Tensor]:
        """Take one step towards telling them apart.

        Args:
            real: True frames (B, 3, T, H, W) in [-1, 1].
            decoded: Decoded frames, the same shape.
            factor: Share of the peak learning rate.

        Returns:
            What to log: the loss, its gradient's norm, and the shares of patches of either kind that pass for true.
        """
        self.network.requires_grad_(True)
        of_real, of_decoded = self._logits(torch.cat([real, decoded.detach()])).chunk(2)
        loss = critic_loss(of_real, of_decoded)
        loss.backward()
        average_gradients(self.parameters, self.processes)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        passed = {"real_passed": (of_real > 0).float().mean(), "decoded_passed": (of_decoded > 0).float().mean()}
        return {"critic_loss": loss.detach(), "critic_grad_norm": norm, **passed}

    def dislike(self, decoded: Tensor) -> Tensor:
        """Return the loss of the decoder: minus the mean logit; the critic itself gets no gradient from it."""
        self.network.requires_grad_(False)
        return -self._logits(decoded).mean()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs to go on exactly here."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Fused AdamW goes through memory, whatever the strides: moments must lie as the weights do (channels last).
        for parameter, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name])
