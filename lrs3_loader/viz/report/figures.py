"""Geometry of the page's figures, which ``templates/svg.jinja`` draws as inline SVG, and numbers written for people.

Colours come from the page's style sheet, so figures are light or dark as the page is. Lengths are in SVG units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from lrs3_loader.viz.report.measures import Histogram
from lrs3_loader.viz.report.timeline import Timeline

MAX_BARS = 36
_BARS = {"width": 320.0, "height": 104.0}  # of a bar chart
_BAR_AREA_HEIGHT = 98.0
WIDE, NARROW = 960.0, 420.0  # of the throughput, for pages of either kind
_LEFT = 52.0  # of its plot
_AREA_HEIGHT = 120.0  # of the throughput of all ranks
_LABELLED_RANKS = 16  # with more ranks, strips are thinner and only some are labelled

Tick = tuple[float, str, str]  # x, text, and the class that anchors it: "", "mid" or "end"


def histogram(
    values: Histogram, unit: str, limits: tuple[float, float], marks: Iterable[tuple[float, str]] = ()
) -> dict[str, Any]:
    """Bars with a line at the median; the outermost bars hold what lies beyond them.

    Args:
        limits: between which all values can lie.
        marks: (value, text) of further lines; those beyond the bars are left out.
    """
    low, step, counts = values.bars(MAX_BARS, limits)
    edges = [figure(low + number * step) for number in range(len(counts) + 1)]
    titles = [f"{start} – {stop} {unit}" for start, stop in pairwise(edges)]
    high = low + len(counts) * step
    median = values.quantile(0.5)
    return _BARS | {
        "label": f"histogram, median {figure(median)} {unit}",
        "bars": _bars(titles, counts),
        "ticks": _ticks(low, high, _BARS["width"]),
        "median_x": (median - low) / (high - low) * _BARS["width"],
        "marks": [
            ((value - low) / (high - low) * _BARS["width"], text) for value, text in marks if low <= value <= high
        ],
    }


def counted(counts: Mapping[str, int], marked: str) -> dict[str, Any]:
    """A bar for each name, of which the ``marked`` one stands out; every fifth of many names is written below."""
    bars = _bars(list(counts), np.array(list(counts.values())), marked)
    ticks = [(x + width / 2, name, "mid") for (x, width, *_), name in list(zip(bars, counts, strict=True))[::5]]
    return _BARS | {"label": "bars", "bars": bars, "ticks": ticks}


def _bars(titles: list[str], counts: np.ndarray, marked: str | None = None) -> list[tuple[Any, ...]]:
    """x, width, height, title and class of every bar."""
    step = _BARS["width"] / len(counts)
    gap = min(1.0, step / 8)
    places = np.arange(len(counts)) * step + gap / 2
    heights = counts / max(int(counts.max()), 1) * _BAR_AREA_HEIGHT
    texts = [f"{title}: {count:,}" for title, count in zip(titles, counts, strict=True)]
    kinds = ["bar" if marked in (None, title) else "bar second" for title in titles]
    return [(x, step - gap, *rest) for x, *rest in zip(places, heights, texts, kinds, strict=True)]


def throughput(timeline: Timeline, width: float = WIDE) -> dict[str, Any]:
    """All ranks together as an area over the time worked, and below it one strip per rank."""
    total = timeline.rates.sum(0)
    grid = MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(0, max(float(total.max()), 1.0))
    seconds, plot = timeline.axis.seconds, width - _LEFT
    edges = np.linspace(0, plot, len(total) + 1)
    scale = (_AREA_HEIGHT - 6) / grid[-1]
    steps = zip(np.repeat(edges, 2)[1:-1], np.repeat(_AREA_HEIGHT - total * scale, 2), strict=True)
    strips = _strips(timeline, edges)
    return {
        "width": width,
        "left": _LEFT,
        "plot_width": plot,
        "area": [(0.0, _AREA_HEIGHT), *steps, (plot, _AREA_HEIGHT)],
        "grid": [(_AREA_HEIGHT - rate * scale, figure(rate)) for rate in grid[1:]],
        "strips": strips,
        "pauses": [(place / seconds * plot, length) for place, length in timeline.axis.pauses()],
        "ticks": _ticks(0.0, seconds, plot, is_time=True),
        "bottom": strips[-1]["y"] + strips[-1]["height"] + 1,
    }


def _strips(timeline: Timeline, edges: np.ndarray) -> list[dict[str, Any]]:
    """A strip for each rank, in runs of bins that look alike: (x, width, opacity, title)."""
    thin = len(timeline.ranks) > _LABELLED_RANKS
    height = 5.0 if thin else 16.0
    fastest = max(float(timeline.rates.max()), 1e-9)
    strips = []
    for row, (rank, rates, busy) in enumerate(zip(timeline.ranks, timeline.rates, timeline.busy, strict=True)):
        look = np.where(busy, np.round(rates / max(float(rates.max()), 1e-9), 2), -1)
        runs = []
        for first, stop in pairwise([0, *(np.flatnonzero(np.diff(look)) + 1).tolist(), len(rates)]):
            rate = float(rates[first:stop].mean())
            text = f"{rate:.0f} frames/s" if busy[first] else "idle"
            shade = 0.12 + 0.85 * rate / fastest if busy[first] else 0.03
            runs.append((edges[first], edges[stop] - edges[first], shade, f"rank {rank.rank}: {text}"))
        label = f"rank {rank.rank}" if not thin or row % 8 == 0 else ""
        strips.append({"y": _AREA_HEIGHT + 8 + row * (height + 1), "height": height, "label": label, "runs": runs})
    return strips


def _ticks(low: float, high: float, width: float, is_time: bool = False) -> list[Tick]:
    """About five round numbers along an axis from ``low`` to ``high``."""
    unit = next(unit for unit in (86400, 3600, 60, 1) if unit == 1 or high - low >= 2 * unit) if is_time else 1
    ticks = []
    for number in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low / unit, high / unit):
        value = float(number * unit)
        x = (value - low) / (high - low) * width
        if -0.1 <= x <= width + 0.1:
            anchor = "end" if x > width - 12 else "" if x < 12 else "mid"
            ticks.append((x, duration(value) if is_time else figure(value), anchor))
    return ticks


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


def size(num_bytes: float) -> str:
    """``512 B``, ``1.9 MB``, ``3.21 TB``."""
    power = 0
    while num_bytes >= 1000 and power < 4:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
