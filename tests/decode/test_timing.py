"""Which source frame is shown at each time, 25 times a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.frames import read_frames
from lrs3_loader.decode.timing import resample_to_25fps
from lrs3_loader.decode.video import probe_video
from support import media_files as files

pytestmark = pytest.mark.smoke

TIME_BASES = [Fraction(1, 25), Fraction(1, 12_800), Fraction(1, 90_000), Fraction(1, 1000)]
RATES = [
    *(Fraction(rate) for rate in (8, 10, 12, 15, 18, 20, 24, 26, 28, 30, 48, 50, 60, 90, 100, 120, 240)),
    *(Fraction(25, 2), Fraction(75, 2), Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(60_000, 1001)),
]


def timestamps(rate: Fraction, num_seconds: float, time_base: Fraction) -> tuple[np.ndarray, int]:
    """Times of the frames of a constant rate, and when the last one ends, rounded to the time base."""
    times = [round(Fraction(i) / rate / time_base) + 4_711 for i in range(round(num_seconds * rate) + 1)]
    return np.array(times[:-1]), times[-1]


def errors_ms(pts: np.ndarray, indices: np.ndarray, time_base: Fraction) -> np.ndarray:
    """How much later than at the time of each frame at 25 fps its source frame is."""
    return ((pts[indices] - pts[0]) * float(time_base) - np.arange(len(indices)) / 25) * 1000


@pytest.mark.parametrize("time_base", TIME_BASES, ids=str)
def test_constant_25_fps_is_the_identity(time_base: Fraction) -> None:
    pts, end = timestamps(Fraction(25), 40, time_base)
    assert resample_to_25fps(pts, end, time_base).tolist() == list(range(1000))


def test_25_fps_with_unsteady_timestamps_is_the_identity() -> None:
    pts = 40 * np.arange(1000) + np.random.default_rng(0).integers(-14, 15, 1000)
    pts[0] = 0
    assert resample_to_25fps(pts, 40_000, Fraction(1, 1000)).tolist() == list(range(1000))


def test_by_hand() -> None:
    # 15 fps, frames at 0, 66.7, 133.3 ms until 200 ms: nearest to 0, 40, 80, 120, 160 ms.
    assert resample_to_25fps(np.array([0, 1, 2]), 3, Fraction(1, 15)).tolist() == [0, 1, 1, 2, 2]
    assert resample_to_25fps(np.arange(6), 6, Fraction(1, 50)).tolist() == [0, 2, 4]
    # Frames at 0, 40, 200 ms until 240 ms: 120 ms is as far from 40 as from 200.
    assert resample_to_25fps(np.array([0, 1, 5]), 6, Fraction(1, 25)).tolist() == [0, 1, 1, 2, 2, 2]
    # Every second time lies half-way between two frames; the last has one only, 40 ms early.
    assert resample_to_25fps(np.arange(4), 4, Fraction(2, 25)).tolist() == [0, 1, 1, 2, 2, 2, 3, 3]
    assert resample_to_25fps(np.array([7]), 8, Fraction(1, 1000)).tolist() == [0]


@pytest.mark.parametrize("time_base", TIME_BASES[2:], ids=str)
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_frames_are_the_nearest_and_not_late_or_early_on_average(rate: Fraction, time_base: Fraction) -> None:
    for num_seconds in (2, 3.3, 10):
        pts, end = timestamps(rate, num_seconds, time_base)
        indices = resample_to_25fps(pts, end, time_base)
        assert len(indices) == int(25 * (end - pts[0]) * time_base + Fraction(1, 2))
        assert (np.diff(indices) >= 0).all()
        errors = errors_ms(pts, indices, time_base)
        assert abs(errors.mean()) < 2, (num_seconds, errors.mean())
        # The slow way: all distances. Of two that differ by less than 6 ms either may be taken.
        times = (pts - pts[0]) * float(time_base) * 1000
        nearest = np.abs(times[None] - 40 * np.arange(len(indices))[:, None]).min(1)
        assert (np.abs(errors) < nearest + 6.001).all()


@pytest.mark.parametrize("steps", [(8, 90), (10, 70), (20, 60), (30, 50), (5, 200)])
def test_variable_rates_are_not_late_or_early_on_average(steps: tuple[int, int]) -> None:
    for seed in range(20):
        pts = np.cumsum(np.random.default_rng(seed).integers(*steps, 121))
        indices = resample_to_25fps(pts[:-1], int(pts[-1]), Fraction(1, 1000))
        assert abs(errors_ms(pts, indices, Fraction(1, 1000)).mean()) < 2


@pytest.mark.parametrize("rate", [Fraction(12), Fraction(30_000, 1001), Fraction(50), Fraction(60)], ids=str)
def test_the_frames_of_a_file_are_those_of_its_timestamps(tmp_path: Path, rate: Fraction) -> None:
    path = files.write_media(tmp_path / "a.mp4", num_frames=round(3 * rate), frames_per_second=rate)
    track = probe_video(path, "a.mp4", DecodeConfig())
    frames = read_frames(track, track.frame_indices_25fps()).numpy()
    times = np.array([files.frame_number(frame) for frame in frames]) / float(rate)
    assert len(times) == 75
    assert np.abs(times - np.arange(75) / 25).max() < 0.5 / float(rate) + 0.004
    assert abs((times - np.arange(75) / 25).mean()) < 0.002


def test_the_frames_of_a_file_of_variable_rate(tmp_path: Path) -> None:
    seconds = [0.0, *(np.cumsum(np.random.default_rng(3).integers(8, 90, size=60)) / 1000).tolist()]
    path = files.write_media(tmp_path / "a.mp4", num_frames=len(seconds), frame_times=seconds)
    track = probe_video(path, "a.mp4", DecodeConfig())
    frames = read_frames(track, track.frame_indices_25fps()).numpy()
    times = np.array([seconds[files.frame_number(frame)] for frame in frames])
    assert abs((times - np.arange(len(times)) / 25).mean()) < 0.002
