"""Numbers -> inline SVG. Colours come from the page's style sheet, so figures follow its light and dark dress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from lrs3_loader.viz.report.measures import Histogram
from lrs3_loader.viz.report.timeline import Timeline

MAX_BARS = 36
_PLOT_TOP, _PLOT_BOTTOM, _WIDTH, _HEIGHT = 6.0, 104.0, 320.0, 126.0
_WIDE, _LEFT = 960.0, 52.0  # of the timeline, and its left margin
_LABELLED_RANKS = 16  # with more ranks, strips are thinner and only some are labelled


def histogram(values: Histogram, unit: str, limits: tuple[float, float]) -> str:
    """Bars with a line at the median; the outermost bars hold what lies beyond them."""
    low, width, counts = values.bars(MAX_BARS, limits)
    bar = _WIDTH / len(counts)
    top = max(int(counts.max()), 1)
    parts = []
    for number, count in enumerate(counts):
        height = count / top * (_PLOT_BOTTOM - _PLOT_TOP)
        start, stop = low + number * width, low + (number + 1) * width
        title = f"{figure(start)} – {figure(stop)} {unit}: {count:,}"
        parts.append(_bar(number * bar, _PLOT_BOTTOM - height, bar, height, title))
    high = low + len(counts) * width
    median = (values.quantile(0.5) - low) / (high - low) * _WIDTH
    parts.append(f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="0" y2="{_PLOT_BOTTOM}"/>')
    parts += _ticks(low, high, _WIDTH, _PLOT_BOTTOM)
    return _svg(_WIDTH, _HEIGHT, parts, f"histogram, median {figure(values.quantile(0.5))} {unit}")


def counted(names: Sequence[str], counts: Sequence[int], marked: str) -> str:
    """A bar for each name; every fifth of many names is written below. The ``marked`` one stands out."""
    bar = _WIDTH / len(names)
    top = max(*counts, 1)
    parts = []
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        height = count / top * (_PLOT_BOTTOM - _PLOT_TOP)
        kind = "bar" if name == marked else "bar second"
        parts.append(_bar(number * bar, _PLOT_BOTTOM - height, bar, height, f"{name}: {count:,}", kind))
        if len(names) <= 10 or number % 5 == 0:
            parts.append(
                f'<text x="{(number + 0.5) * bar:.1f}" y="{_HEIGHT - 6}" class="tick mid">{escape(name)}</text>'
            )
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_PLOT_BOTTOM}" y2="{_PLOT_BOTTOM}"/>')
    return _svg(_WIDTH, _HEIGHT, parts, "bars")


def throughput(timeline: Timeline) -> str:
    """All ranks together as an area over time, and below it one strip a rank: the stronger its colour, the faster."""
    total = timeline.rates.sum(0)
    top = nice_step(float(total.max()) / 3) * 3 if total.max() > 0 else 1.0
    plot, seconds = 120.0, timeline.axis.seconds
    scale = (_WIDE - _LEFT) / seconds
    edges = np.linspace(_LEFT, _WIDE, len(total) + 1)
    heights = plot - np.clip(total / top, 0, 1) * (plot - 6)
    corners = [f"{x:.1f},{y:.1f}" for k, y in enumerate(heights) for x in edges[k : k + 2]]
    parts = [f'<polygon class="area" points="{_LEFT},{plot} {" ".join(corners)} {_WIDE},{plot}"/>']
    for third in range(1, 4):
        y = plot - third / 3 * (plot - 6)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="tick end">{figure(top * third / 3)}</text>')
    strips, bottom = _rank_strips(timeline, edges, plot + 8)
    parts += strips
    for place, length in timeline.axis.pauses():
        x = _LEFT + place * scale
        parts.append(
            f'<line class="pause" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}">'
            f"<title>pause of {duration(length)}, left out</title></line>"
        )
    ticks = _ticks(0.0, seconds, _WIDE - _LEFT, bottom, unit="time")
    parts.append(f'<g transform="translate({_LEFT} 0)">{"".join(ticks)}</g>')
    return _svg(_WIDE, bottom + 22, parts, "frames a second over time, together and by rank")


def _rank_strips(timeline: Timeline, edges: np.ndarray, top: float) -> tuple[list[str], float]:
    """The strips, and where the last one ends."""
    thin = len(timeline.ranks) > _LABELLED_RANKS
    height = 5.0 if thin else 16.0
    fastest = max(float(timeline.rates.max()), 1e-9)
    parts = []
    for row, rank in enumerate(timeline.ranks):
        y = top + row * (height + 1)
        if not thin or row % 8 == 0:
            parts.append(
                f'<text x="{_LEFT - 6}" y="{y + min(height, 12):.1f}" class="tick end">rank {rank.rank}</text>'
            )
        for start, stop, rate, busy in _runs(edges, timeline.rates[row], timeline.busy[row]):
            title = f"rank {rank.rank}: " + (f"{rate:.0f} frames/s" if busy else "idle")
            shade = 0.12 + 0.85 * rate / fastest if busy else 0.03
            parts.append(
                f'<rect class="heat" x="{start:.1f}" y="{y:.1f}" width="{stop - start:.2f}" height="{height}" '
                f'fill-opacity="{shade:.3f}"><title>{title}</title></rect>'
            )
    return parts, top + len(timeline.ranks) * (height + 1)


def _runs(edges: np.ndarray, rates: np.ndarray, busy: np.ndarray) -> list[tuple[float, float, float, bool]]:
    """(left, right, rate, busy) of neighbouring bins that look alike."""
    shades = np.where(busy, np.round(rates / max(float(rates.max()), 1e-9), 2), -1)
    starts = [0, *(np.flatnonzero(np.diff(shades)) + 1).tolist(), len(rates)]
    return [
        (float(edges[first]), float(edges[stop]), float(rates[first:stop].mean()), bool(busy[first]))
        for first, stop in pairwise(starts)
    ]


def shares(named: Sequence[tuple[str, float]]) -> str:
    """One bar cut into shares, most first; each share's colour is that of its number in the legend beside it."""
    total = sum(value for _, value in named) or 1.0
    parts, x = [], 0.0
    for number, (name, value) in enumerate(named):
        width = value / total * _WIDE
        parts.append(
            f'<rect class="c{number % 6}" x="{x:.1f}" y="0" width="{width:.2f}" height="22">'
            f"<title>{escape(name)}: {value / total:.1%}</title></rect>"
        )
        x += width
    return _svg(_WIDE, 22, parts, "shares", stretch=True)


def landmarks(lines: Sequence[np.ndarray], dots: np.ndarray, fitted: np.ndarray | None, size: int) -> str:
    """``lines`` [n, 2] each and ``dots`` [68, 2] in panel pixels; ``fitted`` [68, 2] as smaller dots."""
    parts = [f'<polyline class="trace" points="{_points(line)}"/>' for line in lines]
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.7"/>' for x, y in dots]
    if fitted is not None:
        parts += [f'<circle class="fit" cx="{x:.1f}" cy="{y:.1f}" r="1.2"/>' for x, y in fitted]
    return _svg(size, size, parts, "landmarks")


def pitch(f0_hz: np.ndarray, top_hz: float) -> str:
    """F0 [n] as dots over a picture that is stretched to the same box; unvoiced rows are left out."""
    x = (np.flatnonzero(f0_hz > 0) + 0.5) / len(f0_hz) * 100
    y = 100 - np.minimum(f0_hz[f0_hz > 0] / top_hz, 1) * 100
    steps = "".join(f"M{a:.2f} {b:.1f}h.01" for a, b in zip(x, y, strict=True))
    return (
        '<svg class="over" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="pitch">'
        f'<path class="pitch" d="{steps}"/></svg>'
    )


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


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... (times a power of ten) that is not below ``least``, above 0."""
    power = 10 ** math.floor(math.log10(max(least, 1e-12)))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9)))


def _ticks(low: float, high: float, width: float, y: float, unit: str = "") -> list[str]:
    """The axis below a plot, with about five round numbers."""
    parts = [f'<line class="axis" x1="0" x2="{width}" y1="{y}" y2="{y}"/>']
    step = _time_step((high - low) / 6) if unit == "time" else nice_step((high - low) / 4)
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        value = number * step
        x = (value - low) / (high - low) * width
        side = " end" if x > width - 12 else "" if x < 12 else " mid"
        text = duration(value) if unit == "time" else figure(value)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" class="tick{side}">{text}</text>')
    return parts


def _time_step(least: float) -> float:
    whole = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    return next((float(step) for step in whole if step >= least), nice_step(least / 86400) * 86400)


def _bar(x: float, y: float, width: float, height: float, title: str, kind: str = "bar") -> str:
    gap = min(1.0, width / 8)
    return (
        f'<rect class="{kind}" x="{x + gap / 2:.2f}" y="{y:.1f}" width="{width - gap:.2f}" height="{height:.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _points(points: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(width: float, height: float, parts: Sequence[str], label: str, stretch: bool = False) -> str:
    aspect = ' preserveAspectRatio="none"' if stretch else ""
    head = f'<svg viewBox="0 0 {width:g} {height:g}"{aspect} role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"
