"""Audio as GeneFace's scripts hear it, for a mel spectrogram like those of its published data.

They write a clip's audio with moviepy 1.0: FFmpeg makes 44.1 kHz stereo of 16 bits of it, in which each channel of a
mono source has sqrt(1/2) of its level (-3.01 dB); of that, the nearest sample is taken every 1/16000 s, without a
filter, so that everything above 8 kHz is heard below. The mel spectrogram is that of the mean of both channels.

Two things are left out. From 4.5 s on, moviepy takes samples that are one sample of 44.1 kHz late, and one more every
2.3 s. And its audio starts with the audio track, where ours starts with the first video frame.
"""

from __future__ import annotations

import numpy as np
import torch

from lrs3_loader.decode.resampling import resample_by_ffmpeg
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE

MEL_CONVENTION = (
    "of audio as GeneFace's scripts hear it: mono sources 3.01 dB quieter, resampled to 16 kHz without a filter"
)
MOVIEPY_RATE = 44_100
_LOUDEST = 0.99  # moviepy cuts off what is louder
_STEPS = 2**15


def geneface_waveform(samples: np.ndarray, rate: int, num_channels: int, wanted: int) -> torch.Tensor:
    """Make the audio of a clip from samples at its source's rate.

    Args:
        samples: [n] f32, the mean of the channels (or FFmpeg's mix of surround sound), from 1/25 s before the clip on.
        num_channels: of the source.

    Returns:
        [wanted] f32 at 16 kHz, in whole steps of 2^-15; zeros after the end of ``samples``.
    """
    layout = "stereo" if num_channels == 1 else "mono"
    levels = resample_by_ffmpeg(samples, rate, MOVIEPY_RATE, "s16", layout)[MOVIEPY_RATE // FRAMES_PER_SECOND :]
    times = (1.0 / SAMPLE_RATE) * np.arange(wanted)  # in seconds, with moviepy's rounding errors
    nearest = np.round(MOVIEPY_RATE * times).astype(np.int64)
    taken = np.zeros(wanted)
    inside = nearest < len(levels)
    taken[inside] = levels[nearest[inside]]
    loudest = _LOUDEST * _STEPS
    return torch.from_numpy((np.trunc(taken.clip(-loudest, loudest)) / _STEPS).astype(np.float32))
