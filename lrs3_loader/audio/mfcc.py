"""Mel-frequency cepstral coefficients as the package python_speech_features computes them, of many clips at once.

One row every 160 samples from a window of 400: four rows per video frame. For ``640 T`` samples the package gives
``4 T - 1`` rows, the last of which is completed with zeros; here zeros complete one more, so a clip has ``4 T``.

Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition in continuously
spoken sentences", 1980; the settings are the defaults of python_speech_features 0.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lrs3_loader.audio.mel import check_waveform
from lrs3_loader.types import SAMPLE_RATE, SAMPLES_PER_FRAME

MFCC_HOP = 160  # samples
MFCC_PER_FRAME = SAMPLES_PER_FRAME // MFCC_HOP
NUM_CEPSTRA = 13
WINDOW = 400  # samples; not weighted
N_FFT = 512
NUM_FILTERS = 26
PRE_EMPHASIS = 0.97
LIFTER = 22
LEVELS = 1 << 15  # of a 16-bit sample: the coefficients of louder audio differ by more than their first
FLOOR = float(np.finfo(np.float64).eps)  # stands for an energy of 0
#: Rows transformed at a time: on a CPU, as many as fit its cache; elsewhere a limit of memory (270 MB).
BLOCK_ROWS = {"cpu": 1024, "cuda": 16_384}


class Mfcc(nn.Module):
    """Computes 13 liftered cepstral coefficients, the first of which is replaced by the logarithm of the energy.

    The audio, quantised to 16 bits, is pre-emphasised: ``y[n] = x[n] - 0.97 x[n - 1]``. The power spectrum
    ``p[k] = |DFT_512(y)[k]|^2 / 512`` of each window goes through 26 triangular filters that are evenly spaced on the
    scale ``2595 log10(1 + f / 700)`` and whose corners lie on whole bins; an orthonormal DCT-II of the logarithms
    follows, and coefficient n is multiplied by ``1 + 11 sin(pi n / 22)``. All in float64.
    """

    filters: torch.Tensor
    cosines: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.from_numpy(filter_bank()), persistent=False)  # [257, 26]
        self.register_buffer("cosines", torch.from_numpy(liftered_cosines()), persistent=False)  # [26, 13]

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the rows of each clip.

        Args:
            waveforms: per clip [640 T_i] f32, mono, 16 kHz, full scale at -1 and 1; on any device.

        Returns:
            per clip [4 T_i, 13] f32, on this module's device.

        Raises:
            ValueError: a waveform is not a whole, positive number of video frames long.
        """
        for waveform in waveforms:
            check_waveform(waveform)
        if len(waveforms) == 0:
            return []
        # Two hops of zeros end each clip, so that no window of one clip reaches into the next.
        tail = torch.zeros(2 * MFCC_HOP, dtype=torch.float64, device=self.filters.device)
        samples = torch.cat([part for waveform in waveforms for part in (self._emphasised(waveform), tail)])
        windows = samples.unfold(0, WINDOW, MFCC_HOP)
        size = BLOCK_ROWS.get(samples.device.type, BLOCK_ROWS["cuda"])
        rows = torch.cat([self._cepstra(block) for block in windows.split(size)])
        clips, start = [], 0
        for waveform in waveforms:
            num_rows = len(waveform) // MFCC_HOP
            clips.append(rows[start : start + num_rows])
            start += num_rows + 2
        return clips

    def _emphasised(self, waveform: torch.Tensor) -> torch.Tensor:
        """Quantise a waveform to 16 bits and pre-emphasise it: [n] f64, in levels of 16 bits."""
        samples = waveform.to(self.filters.device, torch.float64).mul(LEVELS).round_().clamp_(-LEVELS, LEVELS - 1)
        return torch.cat([samples[:1], samples[1:] - PRE_EMPHASIS * samples[:-1]])

    def _cepstra(self, windows: torch.Tensor) -> torch.Tensor:
        """Compute the coefficients of windows [rows, 400] f64: [rows, 13] f32."""
        power = torch.fft.rfft(windows, N_FFT).abs().square() / N_FFT
        energies = power @ self.filters
        rows = energies.where(energies > 0, FLOOR).log() @ self.cosines
        total = power.sum(1)
        rows[:, 0] = total.where(total > 0, FLOOR).log()
        return rows.float()


def filter_bank() -> np.ndarray:
    """Return the triangular filters [257, 26] f64 over the bins of the spectrum."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, highest, NUM_FILTERS + 2) / 2595) - 1)
    corners = np.floor((N_FFT + 1) * corners_hz / SAMPLE_RATE)
    lower, centre, upper = (corners[i : i + NUM_FILTERS] for i in range(3))
    bins = np.arange(N_FFT // 2 + 1)[:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return np.where((bins >= lower) & (bins < centre), rising, np.where((bins >= centre) & (bins < upper), falling, 0))


def liftered_cosines() -> np.ndarray:
    """Return the orthonormal DCT-II [26, 13] f64 whose column n is multiplied by the lifter."""
    number, filters = np.arange(NUM_CEPSTRA), np.arange(NUM_FILTERS)[:, None]
    scale = np.sqrt(np.where(number == 0, 1, 2) / NUM_FILTERS) * (1 + LIFTER / 2 * np.sin(math.pi * number / LIFTER))
    return scale * np.cos(math.pi * number * (2 * filters + 1) / (2 * NUM_FILTERS))
