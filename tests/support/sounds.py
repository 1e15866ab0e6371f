"""Waveforms for the tests of the sound features: what real clips hold, and made-up extremes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640


def read_sound(path: Path) -> np.ndarray:
    """Sound of a media file, [640 T] f32, mono, 16 kHz: FFmpeg's own resampling, good enough as a test subject."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        sound = np.concatenate([frame.to_ndarray().ravel() for frame in frames])
    return sound[: len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].astype(np.float32)


def real_sounds(data: Path) -> dict[str, np.ndarray]:
    """Speech, a digitally silent track and music-free noise from the real clips, by file name."""
    paths = sorted((data / "clips").glob("*.mp4")) + sorted((data / "lrs3_mini").glob("t*/*/*.mp4"))
    return {str(path.relative_to(data)): read_sound(path) for path in paths}


def synthetic_sounds() -> dict[str, np.ndarray]:
    """Four seconds each of what breaks careless numerics."""
    rng = np.random.default_rng(0)
    n = 100 * SAMPLES_PER_FRAME
    time = np.arange(n) / SAMPLE_RATE
    click = np.zeros(n)
    click[n // 2] = 1
    sounds = {
        "silence": np.zeros(n),
        "noise": rng.normal(0, 0.1, n),
        "faint noise": rng.normal(0, 1e-7, n),  # below the floor of the logarithm
        "noise of a few 16-bit steps": np.round(rng.normal(0, 3, n)) / 32768,
        "tone between bins": np.sin(2 * np.pi * 440 * time),  # leaks into every band, six decades down
        "tone on a bin": np.sin(2 * np.pi * 1000 * time),
        "constant": np.full(n, 0.5),
        "click": click,
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}
