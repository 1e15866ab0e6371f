"""Geometry of the page's figures, which ``templates/svg.jinja`` draws as inline SVG, and numbers written for people.

Colours come from the page's style sheet, so figures are light or dark as the page is. Lengths are in SVG units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lrs3_loader.viz.report.measures import Histogram, Measure
from lrs3_loader.viz.report.timeline import Timeline

MAX_BARS = 36
_BAR_AREA_HEIGHT = 98.0
_AREA_HEIGHT = 120.0  # of the throughput of all ranks
_LABELLED_RANKS = 16  # with more ranks, strips are thinner and only some are labelled


@dataclass(frozen=True)
class Tick:
    x: float
    text: str
    anchor: str  # class of the text: "", "mid" or "end"


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    height: float
    title: str
    kind: str = "bar"


@dataclass(frozen=True)
class BarChart:
    """Bars above a labelled axis, with a line at the median where there is one."""

    label: str
    bars: list[Bar]
    ticks: list[Tick]
    median_x: float | None = None
    width: float = 320.0
    height: float = 104.0


def histogram(values: Histogram, measure: Measure) -> BarChart:
    """Bars with a line at the median; the outermost bars hold what lies beyond them."""
    low, step, counts = values.bars(MAX_BARS, measure.limits)
    edges = [figure(low + number * step) for number in range(len(counts) + 1)]
    titles = [f"{start} – {stop} {measure.unit}" for start, stop in pairwise(edges)]
    high = low + len(counts) * step
    median = values.quantile(0.5)
    label = f"histogram, median {figure(median)} {measure.unit}"
    width = BarChart.width
    ticks = _ticks(low, high, width)
    return BarChart(label, _bars(titles, counts, width), ticks, (median - low) / (high - low) * width)


def counted(counts: Mapping[str, int], marked: str) -> BarChart:
    """A bar for each name, of which the ``marked`` one stands out; every fifth of many names is written below."""
    bars = _bars(list(counts), np.array(list(counts.values())), BarChart.width, marked)
    shown = [(bar, name) for number, (bar, name) in enumerate(zip(bars, counts, strict=True)) if number % 5 == 0]
    return BarChart("bars", bars, [Tick(bar.x + bar.width / 2, name, "mid") for bar, name in shown])


def _bars(titles: list[str], counts: np.ndarray, width: float, marked: str | None = None) -> list[Bar]:
    step = width / len(counts)
    gap = min(1.0, step / 8)
    heights = counts / max(int(counts.max()), 1) * _BAR_AREA_HEIGHT
    return [
        Bar(
            number * step + gap / 2,
            step - gap,
            height,
            f"{title}: {count:,}",
            "bar" if marked in (None, title) else "bar second",
        )
        for number, (title, count, height) in enumerate(zip(titles, counts, heights, strict=True))
    ]


@dataclass(frozen=True)
class StripRun:
    """Neighbouring bins of a rank's strip that look alike."""

    x: float
    width: float
    shade: float  # opacity, 0..1
    title: str


@dataclass(frozen=True)
class Strip:
    """One rank over time."""

    y: float
    height: float
    label: str  # empty where there is no room for one
    runs: list[StripRun]


@dataclass(frozen=True)
class ThroughputChart:
    """All ranks together as an area over time, and below it one strip per rank."""

    area: list[tuple[float, float]]
    grid: list[tuple[float, str]]  # heights of lines, and their labels
    strips: list[Strip]
    pauses: list[tuple[float, float]]  # x, and seconds that were left out there
    ticks: list[Tick]
    bottom: float
    width: float = 960.0
    left: float = 52.0  # margin

    @property
    def plot_width(self) -> float:
        return self.width - self.left


def throughput(timeline: Timeline) -> ThroughputChart:
    """Lay out the frames per second of a run over the time worked."""
    total = timeline.rates.sum(0)
    top = nice_step(float(total.max()) / 3) * 3 if total.max() > 0 else 1.0
    seconds, width = timeline.axis.seconds, ThroughputChart.width - ThroughputChart.left
    edges = np.linspace(0, width, len(total) + 1)
    room = _AREA_HEIGHT - 6
    heights = _AREA_HEIGHT - np.clip(total / top, 0, 1) * room
    steps = list(zip(np.repeat(edges, 2)[1:-1], np.repeat(heights, 2), strict=True))
    strips = _strips(timeline, edges)
    return ThroughputChart(
        area=[(0.0, _AREA_HEIGHT), *steps, (width, _AREA_HEIGHT)],
        grid=[(_AREA_HEIGHT - third / 3 * room, figure(top * third / 3)) for third in (1, 2, 3)],
        strips=strips,
        pauses=[(place / seconds * width, length) for place, length in timeline.axis.pauses()],
        ticks=_ticks(0.0, seconds, width, is_time=True),
        bottom=strips[-1].y + strips[-1].height + 1,
    )


def _strips(timeline: Timeline, edges: np.ndarray) -> list[Strip]:
    thin = len(timeline.ranks) > _LABELLED_RANKS
    height = 5.0 if thin else 16.0
    fastest = max(float(timeline.rates.max()), 1e-9)
    strips = []
    for row, rank in enumerate(timeline.ranks):
        rates, busy = timeline.rates[row], timeline.busy[row]
        look = np.where(busy, np.round(rates / max(float(rates.max()), 1e-9), 2), -1)
        runs = []
        for first, stop in pairwise([0, *(np.flatnonzero(np.diff(look)) + 1).tolist(), len(rates)]):
            rate = float(rates[first:stop].mean())
            text = f"{rate:.0f} frames/s" if busy[first] else "idle"
            shade = 0.12 + 0.85 * rate / fastest if busy[first] else 0.03
            runs.append(StripRun(edges[first], edges[stop] - edges[first], shade, f"rank {rank.rank}: {text}"))
        label = f"rank {rank.rank}" if not thin or row % 8 == 0 else ""
        strips.append(Strip(_AREA_HEIGHT + 8 + row * (height + 1), height, label, runs))
    return strips


def _ticks(low: float, high: float, width: float, is_time: bool = False) -> list[Tick]:
    """About five round numbers along an axis from ``low`` to ``high``."""
    step = _time_step((high - low) / 6) if is_time else nice_step((high - low) / 4)
    ticks = []
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        value = number * step
        x = (value - low) / (high - low) * width
        anchor = "end" if x > width - 12 else "" if x < 12 else "mid"
        ticks.append(Tick(x, duration(value) if is_time else figure(value), anchor))
    return ticks


def _time_step(least: float) -> float:
    whole = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    return next((float(step) for step in whole if step >= least), nice_step(least / 86400) * 86400)


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... (times a power of ten) that is not below ``least``, above 0."""
    power = 10 ** math.floor(math.log10(max(least, 1e-12)))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9)))


def figure(value: float) -> str:
    """A number with as many digits as say something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-9 else "0"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``4 h``, ``2 d 4 h``."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def size(num_bytes: int) -> str:
    """``512 B``, ``1.9 MB``, ``3.21 TB``."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
