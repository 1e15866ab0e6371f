"""Resamples mono audio, with the first sample at the same time."""

from __future__ import annotations

from math import gcd

import av
import numpy as np
import torch
from torchaudio.functional import resample

from lrs3_loader.types import SAMPLE_RATE

MAX_KERNEL = 4_000_000  # taps of torchaudio's resampling kernel; FFmpeg resamples rates that need more


def to_16khz(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Resample [n] at ``rate`` Hz to [about n * 16000 / rate]."""
    common = gcd(rate, SAMPLE_RATE)
    if (SAMPLE_RATE // common) * (rate // common) <= MAX_KERNEL:
        return resample(samples, rate, SAMPLE_RATE)
    return torch.from_numpy(resample_by_ffmpeg(samples.numpy(), rate, SAMPLE_RATE, "fltp", "mono"))


def resample_by_ffmpeg(samples: np.ndarray, rate: int, to_rate: int, sample_format: str, layout: str) -> np.ndarray:
    """Convert mono samples [n] f32 as the ffmpeg program does by default; return the first channel.

    Args:
        sample_format: of the result, which has its type: ``fltp`` or ``s16``.
        layout: of the channels that are made, ``mono`` or ``stereo``.
    """
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format=sample_format, layout=layout, rate=to_rate)
    parts = [part.to_ndarray() for step in (frame, None) for part in resampler.resample(step)]
    stride = {"mono": 1, "stereo": 2}[layout] if sample_format == "s16" else 1
    return np.concatenate([part[0, ::stride] for part in parts])
