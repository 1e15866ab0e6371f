"""Mel spectrogram as Wav2Lip computes it from 16 kHz audio: 80 rows per second, normalised to -4..4.

``audio.py`` and ``hparams.py`` of https://github.com/Rudrabha/Wav2Lip: pre-emphasis 0.97; windows of 800 samples (Hann)
every 200, centred, the ends mirrored; 80 Slaney bands from 55 to 7600 Hz of the amplitude; decibels, at least -100,
minus 20; then -100..0 dB become -4..4, cut off.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from lrs3_loader.audio.mel import slaney_mel_basis

ROWS_PER_SECOND = 80
NUM_BANDS = 80
_N_FFT, _HOP = 800, 200
_PREEMPHASIS = 0.97
_MIN_HZ, _MAX_HZ = 55.0, 7600.0
_MIN_DB, _REFERENCE_DB, _MOST = -100.0, 20.0, 4.0


def wav2lip_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Compute the rows of a waveform f32 [n], n > 400, at 16 kHz: f32 [1 + n // 200, 80]; row r is centred at 200 r."""
    wide = waveform.double()
    emphasized = torch.cat([wide[:1], wide[1:] - _PREEMPHASIS * wide[:-1]])
    window, basis = _constants()
    spectrum = torch.stft(emphasized, _N_FFT, _HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    bands = basis @ spectrum.abs()
    decibels = 20 * bands.clamp(min=10 ** (_MIN_DB / 20)).log10() - _REFERENCE_DB
    return (2 * _MOST * (decibels - _MIN_DB) / -_MIN_DB - _MOST).clamp(-_MOST, _MOST).T.float()


@lru_cache(maxsize=1)
def _constants() -> tuple[torch.Tensor, torch.Tensor]:
    window = torch.hann_window(_N_FFT, periodic=True, dtype=torch.float64)
    return window, torch.from_numpy(slaney_mel_basis(_N_FFT, _MIN_HZ, _MAX_HZ))
