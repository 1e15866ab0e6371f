"""Mixes the channels of decoded audio to mono, with FFmpeg's weights for the layout of the channels."""

from __future__ import annotations

from functools import lru_cache

import av
import numpy as np

_INTEGER_SCALES = {"u8": 2**7, "s16": 2**15, "s32": 2**31}


def to_mono(frame: av.AudioFrame) -> np.ndarray:
    """Mix the channels of a frame to [n] f32, full scale = 1.

    Stereo becomes (L + R) / 2. Surround sound keeps FFmpeg's proportions: in 5.1 the centre, where speech is, has 1.41
    times the weight of left and right, and the channel of low frequencies none.
    """
    data = frame.to_ndarray()
    if not frame.format.is_planar:  # [1, n * channels]
        data = data.reshape(-1, frame.layout.nb_channels).T
    weights = mono_weights(frame.layout.name, frame.layout.nb_channels)
    kind = frame.format.name.removesuffix("p")
    if kind in _INTEGER_SCALES:
        zero = 128 if kind == "u8" else 0
        return ((_mix(data.astype(np.float64), weights) - zero) / _INTEGER_SCALES[kind]).astype(np.float32)
    return _mix(data, weights, np.float64 if kind == "dbl" else None).astype(np.float32)


def _mix(data: np.ndarray, weights: np.ndarray, dtype: type | None = None) -> np.ndarray:
    if (weights == weights[0]).all():
        return np.asarray(data.mean(axis=0, dtype=dtype))
    return np.asarray(weights @ data)


@lru_cache(maxsize=64)
def mono_weights(layout: str, num_channels: int) -> np.ndarray:
    """Return the weight of each channel in the mono mix, [num_channels] f64, which sum to 1.

    They are measured: a pulse in each channel goes through FFmpeg's resampler. Its own mono mix of floating-point audio
    preserves the power of uncorrelated channels instead, and so makes identical ones 1.41 times too loud.

    Args:
        layout: FFmpeg's name, such as ``5.1(side)``. Where FFmpeg knows no mix of it, all channels weigh the same.
    """
    pulses = np.eye(num_channels, dtype=np.float32).reshape(1, -1)
    try:
        frame = av.AudioFrame.from_ndarray(pulses, format="flt", layout=layout)
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48_000)
        parts = [part.to_ndarray().ravel() for step in (frame, None) for part in resampler.resample(step)]
        heights = np.concatenate(parts).astype(np.float64)
    except (av.error.FFmpegError, ValueError):
        heights = np.ones(num_channels)
    if not heights.sum() > 0:
        heights = np.ones(num_channels)
    return heights / heights.sum()
