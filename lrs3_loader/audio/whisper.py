"""Speech features from Whisper's encoder: 50 rows per second, batched over clips.

The encoder takes 30 s at a time: 3000 frames of a log mel spectrogram of which every two give a row, so row r is
centred at sample 320 r. As in training, shorter audio is filled up with silence and the rows of that are dropped: a
clip of ``640 T`` samples has ``2 T`` rows. Longer clips are encoded in parts of 30 s.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lrs3_loader.audio.checkpoint import SpeechCheckpoint
from lrs3_loader.audio.hubert import SpeechEncoder
from lrs3_loader.config import SpeechConfig
from lrs3_loader.types import HOP_LENGTH, ROWS_PER_FRAME, SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOW_SAMPLES = 30 * SAMPLE_RATE


class WhisperEncoder(SpeechEncoder):
    """Computes hidden layers of Whisper's encoder; see ``SpeechEncoder``. Every part takes the time of 30 s."""

    def __init__(self, checkpoint: SpeechCheckpoint, config: SpeechConfig, device: torch.device | str) -> None:
        super().__init__(checkpoint, config, device)
        from transformers import WhisperFeatureExtractor  # takes longer than torch itself

        self._chunking = "30s"
        self._mel = WhisperFeatureExtractor(feature_size=checkpoint.model.config.num_mel_bins)

    @staticmethod
    def _is_padding_safe(settings: Any) -> bool:
        return True  # all parts are of one length

    def _adapted(self, model: PreTrainedModel, layer: int) -> PreTrainedModel:
        encoder: Any = model
        if layer < len(encoder.layers):
            encoder.layers = encoder.layers[:layer]
            encoder.layer_norm = nn.Identity()
        return model

    def num_rows(self, num_frames: int) -> int:
        return ROWS_PER_FRAME * num_frames

    def _bounds(self, num_samples: int) -> list[slice]:
        starts = range(0, num_samples, WINDOW_SAMPLES)
        return [slice(start, min(start + WINDOW_SAMPLES, num_samples)) for start in starts]

    def _num_rows_of(self, num_samples: int) -> int:
        return num_samples // HOP_LENGTH

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts)

    def _batch_length(self, length: int) -> int:
        return WINDOW_SAMPLES

    def _forward(self, chunks: list[torch.Tensor]) -> torch.Tensor:
        waveforms: list[np.ndarray] = [chunk.cpu().numpy() for chunk in chunks]
        mel = self._mel(waveforms, sampling_rate=SAMPLE_RATE, return_tensors="pt", device=str(self.device))
        features = mel["input_features"].to(self.device, self.dtype)
        return self._layers_of(self._model(features).last_hidden_state)
