"""Figures of the audio: level, clipping, noise, bandwidth and silence, and speech by a rule of energy."""

from __future__ import annotations

import numpy as np

from lrs3_loader.types import SAMPLE_RATE, SAMPLES_PER_FRAME

FULL_SCALE = 0.99
SILENT_DB = -60.0
BANDWIDTH_DB = -60.0
_WINDOW = 512
_LOWEST_DB = -120.0
ENERGY_RANGE_DB = 25.0
ENERGY_FLOOR_DB = -50.0
ENERGY_PAUSE = 5  # frames


def audio_figures(waveform: np.ndarray) -> dict[str, float]:
    """Compute the figures of the audio f32 [640 T] of one clip, 16 kHz; docs/quality.md has the formulas."""
    samples = waveform.astype(np.float64)
    power = np.square(samples.reshape(-1, SAMPLES_PER_FRAME)).mean(1)
    ranked = np.sort(power)
    noise = ranked[: max(1, len(ranked) // 10)].mean()
    signal = ranked[len(ranked) // 2 :].mean()
    figures = {
        "audio_level_db": decibels(power.mean()),
        "audio_clipped_share": (np.abs(samples) >= FULL_SCALE).mean(),
        "audio_noise_db": decibels(noise),
        "audio_bandwidth_hz": bandwidth(samples),
        "silent_share": (decibels(power) < SILENT_DB).mean(),
    }
    if signal > noise > 0:
        figures["audio_snr_db"] = float(10 * np.log10((signal - noise) / noise))
    return figures


def decibels(power: np.ndarray | float) -> np.ndarray:
    """Convert mean squares to dBFS, where a sine of full amplitude has -3; at least -120."""
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), _LOWEST_DB)


def bandwidth(samples: np.ndarray) -> float:
    """Return the lowest frequency in Hz above which the mean spectrum stays 60 dB below its maximum; NaN if silent."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[:: _WINDOW // 2]
    spectrum = np.square(np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1))).mean(0)
    if spectrum.max() <= 0:
        return float("nan")
    above = np.flatnonzero(spectrum > spectrum.max() * 10 ** (BANDWIDTH_DB / 10))
    return float(above[-1] * SAMPLE_RATE / _WINDOW)


def speech_by_energy(waveform: np.ndarray) -> float:
    """Return the share of frames with speech, by their level alone.

    A frame of 40 ms is active if its level is at least -50 dBFS and within 25 dB of the clip's 95th percentile. Pauses
    of up to 5 frames between active ones count as speech.
    """
    level = decibels(np.square(waveform.astype(np.float64).reshape(-1, SAMPLES_PER_FRAME)).mean(1))
    active = level >= max(ENERGY_FLOOR_DB, np.percentile(level, 95) - ENERGY_RANGE_DB)
    at = np.flatnonzero(active)
    if len(at) == 0:
        return 0.0
    gaps = np.diff(at) - 1
    return float((len(at) + gaps[gaps <= ENERGY_PAUSE].sum()) / len(level))
