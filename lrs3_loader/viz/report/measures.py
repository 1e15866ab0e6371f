"""Measures of every clip, and histograms whose memory does not grow with the number of values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lrs3_loader.viz.preview.measures import face_size, mouth_opening

Sample = Mapping[str, Any]
MIN_BARS = 9
_MAX_BIN = 1e12


class Histogram:
    """Counts of values in bins of one fixed width: bin k holds what rounds to ``k * step``, ``step`` > 0."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.total = 0
        self._counts: Counter[int] = Counter()

    def add(self, values: np.ndarray) -> None:
        """Count ``values`` [n]; those that are not finite are left out."""
        bins = np.rint(np.clip(values[np.isfinite(values)] / self.step, -_MAX_BIN, _MAX_BIN)).astype(np.int64)
        numbers, counts = np.unique(bins, return_counts=True)
        self._counts.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        self.total += len(bins)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` (0..1) of all lie, to half a step. Raises ``IndexError`` when empty."""
        return self._bin_at(share) * self.step

    def bars(self, max_bars: int, limits: tuple[float, float], tail: float = 0.002) -> tuple[float, float, np.ndarray]:
        """At most ``max_bars`` + 1 wider bins over all but the outermost ``tail`` of the values on either side.

        Args:
            limits: values cannot lie outside; few bins are widened to ``MIN_BARS`` up to there.

        Returns:
            left edge of the first bar, width of each, and counts [n]; the outermost bars hold what lies beyond them.
        """
        low, high = self._bin_at(tail), self._bin_at(1 - tail)
        bound_low, bound_high = (limit / self.step for limit in limits)
        room = max(0, MIN_BARS - (high - low + 1))
        low = math.ceil(max(low - room // 2, min(low, bound_low)))
        high = math.floor(min(high + room - room // 2, max(high, bound_high)))
        merged = max(1, -(-(high - low + 1) // max_bars))
        first = low // merged
        counts = np.zeros(high // merged - first + 1, dtype=np.int64)
        bars = np.clip(np.array(list(self._counts)) // merged - first, 0, len(counts) - 1)
        np.add.at(counts, bars, list(self._counts.values()))
        return (first * merged - 0.5) * self.step, merged * self.step, counts

    def _bin_at(self, share: float) -> int:
        numbers = sorted(self._counts)
        reached = np.cumsum([self._counts[number] for number in numbers])
        return numbers[int(np.searchsorted(reached, share * self.total))]


class Measure(NamedTuple):
    """One distribution of the report."""

    name: str
    unit: str
    what: str  # what one value is of, and how it is counted
    step: float  # of its histogram
    limits: tuple[float, float]  # no value lies outside
    needs: tuple[str, ...]  # fields that a sample must hold
    values: Callable[[Any], np.ndarray]  # [n] of one sample


def _degrees(axis: int) -> Callable[[Sample], np.ndarray]:
    return lambda sample: np.degrees(sample["pose"][sample["valid"], axis])


def _face_size(sample: Sample) -> np.ndarray:
    return face_size(sample["lm68"][sample["valid"]])


def _mouth_opening(sample: Sample) -> np.ndarray:
    points = sample["lm68"][sample["valid"]]
    return 100 * mouth_opening(points) / np.maximum(face_size(points), 1e-6)


def _fit_error(sample: Sample) -> np.ndarray:
    error = sample["json"].get("quality", {}).get("relative_error")
    return np.array([] if error is None else [100 * error], dtype=np.float64)


def _pitch(sample: Sample) -> np.ndarray:
    return sample["f0"][sample["f0"] > 0]


def _valid_share(sample: Sample) -> np.ndarray:
    return 100 * sample["valid"].mean(keepdims=True)


_ABOVE_0 = (0.0, math.inf)
_SIZE = "a frame: √(width × height) of the landmarks"
_OPENING = "a frame: distance of the inner lips"
MEASURES = (
    Measure("Face size", "px", _SIZE, 1, _ABOVE_0, ("lm68", "valid"), _face_size),
    Measure("Yaw", "°", "a frame; above 0: to the right of the image", 1, (-90, 90), ("pose", "valid"), _degrees(1)),
    Measure("Pitch", "°", "a frame; above 0: looking down", 1, (-90, 90), ("pose", "valid"), _degrees(0)),
    Measure("Mouth opening", "% of face", _OPENING, 0.5, _ABOVE_0, ("lm68", "valid"), _mouth_opening),
    Measure("F0", "Hz", "a voiced row, 50 a second", 2, _ABOVE_0, ("f0",), _pitch),
    Measure("Reprojection error", "% of face", "a clip: landmarks to the fitted model", 0.05, _ABOVE_0, (), _fit_error),
    Measure("Valid fraction", "%", "a clip: its frames with a face", 1, (0, 100), ("valid",), _valid_share),
)
DURATION = Measure("Duration", "s", "a clip", 0.2, _ABOVE_0, (), lambda sample: np.zeros(0))  # the ledgers tell it
