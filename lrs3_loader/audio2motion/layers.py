"""Layers over time that padding cannot change: a clip in a batch gives what it gives alone.

Shape letters: B clips, T time steps of the longest, H channels. ``mask`` is [B, T, 1] f32, 1 = a true step, 0 =
padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_KERNEL = 3


class ResidualBlock(nn.Module):
    """``x + W2 gelu(dilated convolution of norm(x))``, [B, T, H] to [B, T, H].

    ``LayerNorm`` normalises each step over its channels only, and padding is zero before the convolution, as is what
    lies before and after a clip.
    """

    def __init__(self, width: int, dilation: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, _KERNEL, padding=dilation * (_KERNEL // 2), dilation=dilation)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.conv((self.norm(x) * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.project(self.dropout(F.gelu(hidden)))


class TemporalStack(nn.Module):
    """Residual blocks between two linear layers, [B, T, ``inputs``] to [B, T, ``outputs``]; padding comes out as 0.

    Of two neighbouring blocks the dilations are 1 and 2, 4 and 1, 2 and 4 ... (``DILATIONS`` in turn).
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, dilations: Sequence[int], dropout: float, zero: bool = False
    ):
        """``zero``: the last layer begins as zero."""
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, dilation, dropout) for dilation in dilations)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, outputs)
        if zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.last(self.norm(hidden)) * mask


def dilations(count: int) -> list[int]:
    """Return the dilations of so many blocks: 1, 2, 4, 1, 2, 4 ..."""
    return [2 ** (number % 3) for number in range(count)]


def receptive_frames(count: int) -> int:
    """Return how many steps to either side the output of so many blocks depends on."""
    return (_KERNEL // 2) * sum(dilations(count))
