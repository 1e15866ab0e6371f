"""Mel spectrograms of many clips at once, on any device.

Rows are taken every 320 samples from windows of 512, without centring, so a clip of ``640 T`` samples has ``2 T - 1``
of them; the last is repeated to make ``2 T``. Clips are concatenated rather than padded: a clip is a whole number of
hops long, so the windows of all clips fall on one grid, and the one window in ``2 T`` that spans two clips is exactly
the row that is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lrs3_loader.runtime.transfer import join_on_device
from lrs3_loader.types import HOP_LENGTH, SAMPLE_RATE, SAMPLES_PER_FRAME

N_FFT = 512
NUM_MELS = 80
MIN_HZ = 80.0
MAX_HZ = 7600.0
FLOOR = 1e-6  # amplitude below which the logarithm is cut off
#: Rows transformed at a time: on a CPU, as many as fit its cache; elsewhere 5.5 minutes, which limits memory to 270 MB.
BLOCK_ROWS = {"cpu": 512, "cuda": 16_384}


class MelSpectrogram(nn.Module):
    """Computes log10 of the mel-weighted amplitude spectrum as librosa defines it (Slaney scale and normalisation).

        mel[t, m] = log10(max(1e-6, sum_k basis[m, k] |sum_n hann[n] x[320 t + n] exp(-2 pi i k n / 512)|))

    Fourier transforms run in float64: far from a loud tone, the spectrum is below the rounding noise of a float32
    transform, and the logarithm would show that noise.
    """

    window: torch.Tensor
    basis: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(N_FFT, periodic=True, dtype=torch.float64)
        self.register_buffer("window", window, persistent=False)
        basis = torch.from_numpy(np.ascontiguousarray(slaney_mel_basis().T, dtype=np.float32))
        self.register_buffer("basis", basis, persistent=False)
        # The lower half of the filters covers 53 of the 257 bins, the upper half 190: half the work of one product.
        self._filters = [(_bins(part), slice(*part)) for part in ((0, NUM_MELS // 2), (NUM_MELS // 2, NUM_MELS))]

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[torch.Tensor] | torch.Tensor) -> list[torch.Tensor]:
        """Compute the mel rows of each clip.

        Args:
            waveforms: per clip [640 T_i] f32, mono, 16 kHz (or one tensor [B, 640 T]); on any device.

        Returns:
            per clip [2 T_i, 80] f32, log10 amplitude, >= -6, on this module's device; row 2 T - 1 repeats row 2 T - 2.

        Raises:
            ValueError: a waveform is not a whole, positive number of video frames long.
        """
        if len(waveforms) == 0:
            return []
        for waveform in waveforms:
            check_waveform(waveform)
        device = self.window.device
        tail = torch.zeros(N_FFT - HOP_LENGTH, device=device)
        samples = torch.cat([join_on_device(waveforms, device), tail])
        num_rows = (len(samples) - len(tail)) // HOP_LENGTH  # of all clips
        size = BLOCK_ROWS.get(device.type, BLOCK_ROWS["cuda"])
        rows = torch.empty(num_rows, NUM_MELS, device=device)
        for first in range(0, num_rows, size):
            stop = min(first + size, num_rows)
            self._write_rows(samples[first * HOP_LENGTH : stop * HOP_LENGTH + len(tail)], rows[first:stop])
        clips = rows.split([len(waveform) // HOP_LENGTH for waveform in waveforms])
        for clip in clips:
            clip[-1] = clip[-2]
        return list(clips)

    def _write_rows(self, samples: torch.Tensor, rows: torch.Tensor) -> None:
        """Write the rows [n, 80] of the n windows in ``samples`` [320 (n - 1) + 512]."""
        spectrum = torch.fft.rfft(samples.double().unfold(0, N_FFT, HOP_LENGTH) * self.window)
        squares = torch.view_as_real(spectrum).float().square_()
        amplitude = (squares[..., 0] + squares[..., 1]).sqrt_()  # a third of the time of a complex absolute
        for bins, filters in self._filters:
            torch.mm(amplitude[:, bins], self.basis[bins, filters], out=rows[:, filters])
        rows.clamp_min_(FLOOR).log10_()


def check_waveform(waveform: torch.Tensor) -> None:
    """Raise ``ValueError`` unless a waveform is [n], a whole, positive number of video frames long."""
    if waveform.ndim != 1 or len(waveform) == 0 or len(waveform) % SAMPLES_PER_FRAME:
        raise ValueError(
            f"waveforms must be [n], n a positive multiple of {SAMPLES_PER_FRAME}, got {list(waveform.shape)}"
        )


def slaney_mel_basis(n_fft: int = N_FFT, min_hz: float = MIN_HZ, max_hz: float = MAX_HZ) -> np.ndarray:
    """Return triangular filters [80, n_fft / 2 + 1] f64, each of unit area in Hz.

    Their corners are evenly spaced on Slaney's mel scale (Auditory Toolbox, 1998), the default of librosa.
    """
    bins_hz = np.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)
    corners_hz = _mel_to_hz(np.linspace(_hz_to_mel(min_hz), _hz_to_mel(max_hz), NUM_MELS + 2))
    lower, centre, upper = (corners_hz[i : i + NUM_MELS, None] for i in range(3))
    rising = (bins_hz - lower) / (centre - lower)
    falling = (upper - bins_hz) / (upper - centre)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (upper - lower)


def _bins(filters: tuple[int, int]) -> slice:
    """Frequency bins between the first and the last that some of these filters (first, stop) use."""
    (used,) = np.nonzero(slaney_mel_basis()[slice(*filters)].any(0))
    return slice(int(used[0]), int(used[-1]) + 1)


# Slaney's scale: linear up to 1 kHz (15 mel), then 27 mel for each factor of 6.4.
_MEL_PER_HZ = 3 / 200
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ * _MEL_PER_HZ
_MEL_PER_LOG = 27 / math.log(6.4)


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz * _MEL_PER_HZ
    return _BREAK_MEL + math.log(hz / _BREAK_HZ) * _MEL_PER_LOG


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ * np.exp((mel - _BREAK_MEL) / _MEL_PER_LOG)
    return np.where(mel < _BREAK_MEL, mel / _MEL_PER_HZ, above)
