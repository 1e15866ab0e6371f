"""Figures of the mouth: how far and how fast it opens, and whether that goes with the loudness of the audio.

Letters: T frames of a clip.
"""

from __future__ import annotations

import numpy as np

from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME

MAX_LAG = 10  # frames
MIN_OVERLAP = 25  # frames of which a correlation is taken
_UPPER_LIP, _LOWER_LIP = 62, 66  # middles of the inner lips
_FLOOR_DB = -60.0


def mouth_figures(lm68: np.ndarray, valid: np.ndarray, waveform: np.ndarray) -> dict[str, float]:
    """Compute the figures of the mouth of one clip.

    Args:
        lm68: f32 [T, 68, 2], source pixels; filled where the face was not found.
        valid: bool [T], at least one true.
        waveform: f32 [640 T].
    """
    points = lm68.astype(np.float64)
    size = np.sqrt(np.ptp(points, axis=1).prod(1))
    opening = 100 * np.linalg.norm(points[:, _UPPER_LIP] - points[:, _LOWER_LIP], axis=1) / np.maximum(size, 1e-6)
    low, high = np.percentile(opening[valid], (5, 95))
    figures = {"mouth_range": high - low}
    steps = np.diff(opening)[valid[1:] & valid[:-1]]
    if len(steps):
        figures["mouth_speed"] = FRAMES_PER_SECOND * np.sqrt(np.square(steps).mean())
    return figures | lag_figures(opening, loudness(waveform))


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Return the level [T] in dBFS of each frame's 640 samples, at least -60."""
    power = np.square(waveform.astype(np.float64).reshape(-1, SAMPLES_PER_FRAME)).mean(1)
    return np.maximum(10 * np.log10(np.maximum(power, 1e-12)), _FLOOR_DB)


def lag_figures(opening: np.ndarray, level: np.ndarray) -> dict[str, float]:
    """Correlate the opening of the mouth [T] with the loudness [T] of frames ``lag`` later; return the best lag.

    The correlation is Pearson's over the frames that both have. A clip that is too short for ``MIN_OVERLAP`` frames at
    every lag, or has no sound or no motion, has no figure.
    """
    found: dict[int, float] = {}
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        mouth, sound = (
            opening[max(-lag, 0) : len(opening) - max(lag, 0)],
            level[max(lag, 0) : len(level) - max(-lag, 0)],
        )
        if len(mouth) < MIN_OVERLAP or len(sound) != len(mouth):
            return {}
        mouth, sound = mouth - mouth.mean(), sound - sound.mean()
        scale = np.sqrt(np.square(mouth).sum() * np.square(sound).sum())
        if scale <= 1e-6:
            return {}
        found[lag] = float(mouth @ sound / scale)
    best = max(found, key=lambda lag: (round(found[lag], 6), -abs(lag)))
    return {"mouth_audio_correlation": found[best], "mouth_audio_lag": best}
