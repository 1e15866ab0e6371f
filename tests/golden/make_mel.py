"""Make the golden mel spectrograms of ``test_mel.py`` with the real librosa, called as GeneFace calls it.

In an environment with this package's tests and librosa (0.11.0 made the file beside this script), from the repository:
    PYTHONPATH=tests python tests/golden/make_mel.py tests/golden/mel_librosa.npz
"""

from __future__ import annotations

import sys

import librosa
import numpy as np

from support.sounds import synthetic_sounds

STRIDE = 7  # every so many rows are kept


def make_mel(waveform: np.ndarray) -> np.ndarray:
    """Every seventh row of log10 mel amplitude [n, 80] f32."""
    spectrum = np.abs(librosa.stft(waveform, n_fft=512, hop_length=320, win_length=512, window="hann", center=False))
    basis = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80, fmin=80, fmax=7600)
    return np.log10(np.maximum(1e-6, basis @ spectrum)).T[::STRIDE].astype(np.float32)


if __name__ == "__main__":
    rows = {name: make_mel(waveform) for name, waveform in synthetic_sounds().items()}
    basis = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80, fmin=80, fmax=7600, dtype=np.float64)
    np.savez_compressed(sys.argv[1], basis=basis, **rows)
