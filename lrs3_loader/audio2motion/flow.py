"""A volume-preserving normalising flow: the prior of the latent, given the speech.

Additive coupling layers (Dinh, Krueger, Bengio, "NICE", 2014), as the flow-based prior of GeneFace's motion generator
(Ye et al., 2023): every layer shifts one half of the channels by what a network makes of the other half and of the
condition, so its Jacobian has determinant 1.

Shape letters: B clips, L latent steps, Z latent channels, H channels of the condition.
"""

from __future__ import annotations

import torch
from torch import nn

from lrs3_loader.audio2motion.layers import TemporalStack, dilations

_BLOCKS = 2


class FlowPrior(nn.Module):
    """Maps latents to noise and back: ``p(z | condition) = N(to_noise(z, condition); 0, 1)``.

    It begins as the identity, so that the prior begins as a standard normal distribution.
    """

    def __init__(self, channels: int, condition: int, num_layers: int, width: int):
        """Raises ``ValueError`` for an odd number of channels."""
        super().__init__()
        if channels % 2:
            raise ValueError(f"the latent needs an even number of channels, got {channels}")
        self.layers = nn.ModuleList(
            TemporalStack(channels // 2 + condition, channels // 2, width, dilations(_BLOCKS), 0.0, zero=True)
            for _ in range(num_layers)
        )

    def to_noise(self, latent: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the noise [B, L, Z] that ``to_latent`` turns into ``latent`` [B, L, Z]."""
        for layer in self.layers:
            kept, moved = latent.chunk(2, dim=-1)
            moved = moved - layer(torch.cat([kept, condition], dim=-1), mask)
            latent = torch.cat([moved, kept], dim=-1)
        return latent

    def to_latent(self, noise: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the latent [B, L, Z] of standard normal noise [B, L, Z]."""
        for layer in reversed(self.layers):
            moved, kept = noise.chunk(2, dim=-1)
            moved = moved + layer(torch.cat([kept, condition], dim=-1), mask)
            noise = torch.cat([kept, moved], dim=-1)
        return noise
