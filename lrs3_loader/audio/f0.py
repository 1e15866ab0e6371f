"""Pitch by Praat's autocorrelation method, one value every 20 ms.

Computed by Praat itself, through parselmouth: P. Boersma, "Accurate short-term analysis of the fundamental frequency
and the harmonics-to-noise ratio of a sampled sound", IFA Proceedings 17 (1993). Does not import torch, so that it can
run in the decode processes.
"""

from __future__ import annotations

import numpy as np
import parselmouth

from lrs3_loader.types import HOP_LENGTH, SAMPLE_RATE

PITCH_FLOOR_HZ = 80.0
MAX_ROWS_APART = 8  # a larger difference between Praat's rows and those requested is a wrong length, not an edge effect

#: Praat analyses windows of three periods of the pitch floor and refuses audio shorter than one window.
MIN_SAMPLES = round(3 / PITCH_FLOOR_HZ * SAMPLE_RATE)  # 600


def f0_praat(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Compute the pitch of one clip, cut or edge-padded to ``num_rows``.

    Row i is centred at (i + 1) * 20 ms: for ``640 T`` samples Praat gives ``2 T - 1`` rows, so ``num_rows = 2 T``
    repeats the last one. GeneFace appends one hop of zeros to the audio and cuts the extra row afterwards, which gives
    the remaining rows the same times and windows.

    Args:
        waveform: [n] float, mono, 16 kHz, finite.
        num_rows: requested number of rows, within 8 of what Praat gives.

    Returns:
        f0_hz: [num_rows] f32, Hz, 80 to 750, 0 = unvoiced.
        num_true_rows: rows that Praat gave; 0 for audio too short to analyse (under 600 samples), whose rows are all 0.

    Raises:
        ValueError: the waveform is not one-dimensional, or ``num_rows`` does not match its length.
    """
    if waveform.ndim != 1:
        raise ValueError(f"waveform must be [n], got shape {waveform.shape}")
    pitch = np.zeros(0)
    if len(waveform) >= MIN_SAMPLES:
        pitch = (
            parselmouth.Sound(waveform.astype(np.float64), sampling_frequency=SAMPLE_RATE)
            .to_pitch_ac(
                time_step=HOP_LENGTH / SAMPLE_RATE,
                pitch_floor=PITCH_FLOOR_HZ,
                pitch_ceiling=750.0,
                voicing_threshold=0.6,
            )
            .selected_array["frequency"]
        )
    num_true_rows = len(pitch)
    if abs(num_rows - num_true_rows) > MAX_ROWS_APART:
        raise ValueError(
            f"{len(waveform)} samples have {num_true_rows} rows of pitch; "
            f"num_rows must be within {MAX_ROWS_APART} of that, got {num_rows}"
        )
    f0_hz = np.zeros(num_rows, dtype=np.float32)
    if num_true_rows > 0:
        f0_hz[:num_true_rows] = pitch[:num_rows]
        f0_hz[num_true_rows:] = pitch[-1]
    return f0_hz, num_true_rows
