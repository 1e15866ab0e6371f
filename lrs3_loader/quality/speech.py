"""The share of a clip with speech, by Silero's voice activity detector or by a rule of energy.

The network is that of silero-vad 6 for 16 kHz (MIT licence): magnitudes of a learned short-time transform, four
convolutions, an LSTM over time, one probability for every 512 samples. Its weights come with the package silero-vad,
which is not imported: that would change the number of threads of this process.

Letters: N samples of a clip, K windows of 512 samples.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import file_sha256
from lrs3_loader.quality.audio import speech_by_energy

PACKAGE = "silero-vad"
INSTALL = "install it with: pip install 'lrs3_loader[quality]'"
WINDOW = 512
THRESHOLD = 0.5
_CONTEXT, _PADDING = 64, 64
_WEIGHTS = "data/silero_vad_16k.safetensors"
_MAX_BYTES = 16 << 20


def silero_file() -> Path | None:
    """Return where the weights of the installed silero-vad are; None if it is not installed."""
    found = importlib.util.find_spec("silero_vad")
    folders = () if found is None else found.submodule_search_locations or ()
    return next((path for folder in folders if (path := Path(folder) / _WEIGHTS).is_file()), None)


class SileroNetwork(nn.Module):
    """Silero's voice activity detector for 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    @classmethod
    def load(cls, path: Path) -> SileroNetwork:
        """Read the weights; raises ``RunError`` if the file is damaged or is another network's."""
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"it has {path.stat().st_size} bytes")
            weights = load_file(path)
            recurrent = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for name in recurrent:  # of one LSTM cell; the first layer of an LSTM has the same
                weights[f"lstm_cell.{name}_l0"] = weights.pop(f"lstm_cell.{name}")
            network = cls()
            network.load_state_dict(weights)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{path} is not the network of {PACKAGE} 6 ({error}); {INSTALL}") from error
        return network.eval()

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the probability of speech [K] in each 512 samples of audio f32 [N], 16 kHz; the last are padded."""
        padded = F.pad(waveform, (_CONTEXT, -len(waveform) % WINDOW))
        windows = padded.unfold(0, _CONTEXT + WINDOW, WINDOW)
        spectrum = self.stft_conv(F.pad(windows, (0, _PADDING), mode="reflect")[:, None])
        real, imaginary = spectrum.chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        hidden = self.lstm_cell(x[None, :, :, 0])[0]
        return self.final_conv(hidden.relu().transpose(1, 2)).sigmoid().flatten()


@dataclass(frozen=True, eq=False)
class SpeechDetector:
    """Measures the share of speech in clips; without a network, by energy.

    It runs on the host, whatever the device: 0.04 ms per frame of 25 fps, and the same numbers everywhere.
    """

    network: SileroNetwork | None
    record: dict[str, Any]  # name, version and hash, for run.json

    @classmethod
    def load(cls, name: str) -> SpeechDetector:
        """Load the detector ``"energy"`` or ``"silero"``; raises ``RunError`` if its package is missing or damaged."""
        if name == "energy":
            return cls(None, {"name": "energy"})
        path = silero_file()
        if path is None:
            raise RunError(f"--speech-detector silero needs the package {PACKAGE}; {INSTALL}")
        record = {"name": PACKAGE, "licence": "MIT", "sha256": file_sha256(path)}
        return cls(SileroNetwork.load(path), record)

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[float]:
        """Return the share of each clip f32 [N] (16 kHz) with speech, each clip by itself."""
        if self.network is None:
            return [speech_by_energy(waveform.numpy()) for waveform in waveforms]
        scores = [self.network(waveform) for waveform in waveforms]
        return [float((score >= THRESHOLD).double().mean()) for score in scores]
