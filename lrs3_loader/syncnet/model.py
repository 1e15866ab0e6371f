"""The network: embeds 0.2 s of mouth landmarks and of audio as unit vectors, and compares them by their cosine.

After Chung & Zisserman, "Out of time: automated lip sync in the wild" (2016), on landmarks and speech
features in place of pixels and MFCCs, as in GeneFace's expert (Ye et al., 2023).

Shape letters: N windows, D width of the speech encoder, E size of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lrs3_loader.stream.tasks import SYNC_FRAMES, SYNC_ROWS

MOUTH_WIDTH = 60  # landmarks 48-67 of iBUG-68, x y z
_START_SCALE, _START_BIAS = 7.0, -2.0  # initial logit = scale * cosine + bias


class WindowEncoder(nn.Module):
    """Encodes windows [N, L, C] as unit vectors [N, width]: convolutions over time, then a linear layer.

    ``GroupNorm`` with one group normalises each window by itself, so the result depends neither on the batch nor on the
    number of ranks.
    """

    def __init__(self, num_channels: int, length: int, strides: Sequence[int], width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for stride in strides:
            layers += [nn.Conv1d(num_channels, width, 3, stride, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
            num_channels, length = width, (length - 1) // stride + 1
        self.layers = nn.Sequential(*layers)
        self.project = nn.Linear(width * length, width)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.project(self.layers(windows.transpose(1, 2)).flatten(1)), dim=-1)


class SyncNetModel(nn.Module):
    """Decides whether mouth and audio belong together: ``logit = scale * cos(mouth, audio) + bias``.

    ``hubert_width`` is D; ``width`` is E, and the channels of both encoders.
    """

    mouth_mean: torch.Tensor
    mouth_deviation: torch.Tensor
    hubert_mean: torch.Tensor
    hubert_deviation: torch.Tensor

    def __init__(self, hubert_width: int, width: int = 128):
        super().__init__()
        self.hubert_width = hubert_width
        self.width = width
        self.mouth = WindowEncoder(MOUTH_WIDTH, SYNC_FRAMES, (1, 1), width)
        self.sound = WindowEncoder(hubert_width, SYNC_ROWS, (1, 2), width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_START_SCALE)))
        self.bias = nn.Parameter(torch.tensor(_START_BIAS))
        self.register_buffer("mouth_mean", torch.zeros(MOUTH_WIDTH))
        self.register_buffer("mouth_deviation", torch.ones(()))
        self.register_buffer("hubert_mean", torch.zeros(hubert_width))
        self.register_buffer("hubert_deviation", torch.ones(hubert_width))

    @torch.no_grad()
    def set_normalization(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Set the means and deviations that normalise the inputs, from batches of task ``"syncnet"``.

        All mouth coordinates share one deviation, because it matters which of them move much. Each speech feature has
        its own, because their scales are arbitrary.
        """
        mouth, hubert = (
            torch.cat([batch[name].double().flatten(0, 1) for batch in batches]) for name in ("mouth", "hubert")
        )
        self.mouth_mean.copy_(mouth.mean(0))
        self.mouth_deviation.copy_(mouth.std(0).square().mean().sqrt().clamp_min(1e-6))
        self.hubert_mean.copy_(hubert.mean(0))
        self.hubert_deviation.copy_(hubert.std(0).clamp_min(1e-6))

    def embed_mouth(self, mouth: torch.Tensor) -> torch.Tensor:
        """Embed mouth windows [N, 5, 60] (decimetres x 10) as unit vectors [N, E]."""
        return self.mouth((mouth - self.mouth_mean) / self.mouth_deviation)

    def embed_audio(self, hubert: torch.Tensor) -> torch.Tensor:
        """Embed speech windows [N, 10, D] (50 Hz) as unit vectors [N, E]."""
        return self.sound((hubert - self.hubert_mean) / self.hubert_deviation)

    def forward(self, mouth: torch.Tensor, hubert: torch.Tensor) -> torch.Tensor:
        """Return logits [N]: does mouth window i [N, 5, 60] belong to speech window i [N, 10, D]?"""
        cosine = (self.embed_mouth(mouth) * self.embed_audio(hubert)).sum(-1)
        return self.log_scale.exp() * cosine + self.bias
