"""Strips below one time axis: curves, the mel spectrogram with the pitch, similarity of speech. Drawn once per clip.

Every strip has its name, and the names of its curves in their colours, in a margin on the left. Column x of the plot
shows the time ``(x + 1/2) / plot width`` of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrs3_loader.types import FRAMES_PER_SECOND, ROWS_PER_FRAME
from lrs3_loader.viz.overlay import LINE_PX

LABEL_PX = 220  # left margin
MIN_WIDTH = LABEL_PX + 60  # of a chart: less shows no curve
GAP_PX = 10  # above each strip
AXIS_PX = 20  # below the last strip, for the ticks of time
INK, FAINT, GRID = "#dbdee0", "#9fa4aa", "#3a3d42"
PAPER = "#292b30"
MARGIN = "#1b1c20"
MISSING = "#612929"  # background of frames without a face
COLOURS = ("#5cb8ff", "#ffa840", "#73d973", "#fa7380", "#bf99ff", "#f2e666")
SPEAKING, SILENT = "#40d96b", "#fa5a5a"
HEAT_MAP = "inferno"
PITCH_TOP_HZ = 400.0
MAX_LAG_SECONDS = 1.0
MEL_RANGE = (-4.5, 0.5)  # log10 amplitude
_DPI = 100
_HEAT: dict[str, Any] = {"cmap": HEAT_MAP, "aspect": "auto", "interpolation": "nearest", "origin": "lower"}
_STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.edgecolor": GRID,
    "text.color": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "lines.linewidth": 1.2,
}


@dataclass(frozen=True)
class Strip:
    """One plot of the chart."""

    name: str
    draw: Callable[[Axes, float], None]  # draws from 0 to so many seconds
    legend: Sequence[tuple[str, str]] = ()  # texts below the name, and their colours
    height: int = 92  # pixels


def curves(name: str, values: Mapping[str, np.ndarray], low: float | None = None, height: int = 92) -> Strip:
    """Curves [T] that share one vertical axis, which reaches down to ``low`` at least; NaN makes a gap."""

    def draw(axes: Axes, seconds: float) -> None:
        for curve, colour in zip(values.values(), COLOURS, strict=False):
            axes.plot(_times(curve, seconds), curve, color=colour)
        if low is not None:
            axes.set_ylim(bottom=min(low, axes.get_ylim()[0]))
        axes.locator_params(axis="y", nbins=4)
        axes.grid(visible=True)

    return Strip(name, draw, list(zip(values, COLOURS, strict=False)), height)


def speaking(scores: np.ndarray) -> Strip:
    """Active-speaker scores [T], filled down to 0: above it the face speaks what is heard, below it does not."""

    def draw(axes: Axes, seconds: float) -> None:
        values = scores.astype(np.float64)
        times = _times(values, seconds)
        axes.plot(times, values, color=INK, linewidth=0.8)
        for colour, side in ((SPEAKING, values.clip(min=0)), (SILENT, values.clip(max=0))):
            axes.fill_between(times, 0, side, color=colour, lw=0)
        axes.axhline(0, color=FAINT, linewidth=0.6)
        axes.locator_params(axis="y", nbins=4)

    return Strip("active speaker score", draw, [("speaking", SPEAKING), ("not speaking", SILENT)], height=64)


def spectrogram(mel: np.ndarray, f0_hz: np.ndarray) -> Strip:
    """The mel spectrogram [2T, 80] with the pitch [2T] over it (its axis is on the left)."""

    def draw(axes: Axes, seconds: float) -> None:
        low, high = MEL_RANGE
        axes.imshow(mel.T, extent=(0, seconds, 0, PITCH_TOP_HZ), vmin=low, vmax=high, **_HEAT)
        voiced = np.where(f0_hz > 0, f0_hz, np.nan)
        axes.plot(_times(f0_hz, seconds), voiced, color=COLOURS[0], linewidth=1.6)
        axes.set(ylim=(0, PITCH_TOP_HZ), yticks=(100, 200, 300))

    return Strip("mel, 80 .. 7600 Hz", draw, [("pitch, Hz", COLOURS[0])])


def similarity(rows: np.ndarray, encoder: str) -> Strip:
    """Similarity of the speech encoder's ``rows`` [2T, D] at each distance in time.

    Upwards: from one row apart to ``MAX_LAG_SECONDS``; bright: the row so much later is similar to this one. A sound
    that lasts is a bright foot, one that is repeated a bright spot above it. Similarity is the cosine of the rows less
    the clip's mean row, without which all rows are much alike.
    """

    def draw(axes: Axes, seconds: float) -> None:
        rate = FRAMES_PER_SECOND * ROWS_PER_FRAME
        found = lagged_similarity(rows, min(round(MAX_LAG_SECONDS * rate), len(rows) - 1))
        if len(found):
            axes.locator_params(axis="y", nbins=3)
            axes.imshow(found, extent=(0, seconds, 0, len(found) / rate), vmin=0, vmax=1, **_HEAT)

    return Strip("speech similarity", draw, [("seconds later", FAINT), (encoder, FAINT)])


def lagged_similarity(rows: np.ndarray, max_lag: int) -> np.ndarray:
    """[max_lag, N] f64: cosine of row n and row n + lag, lag = 1 .. max_lag, about the mean; NaN beyond the end."""
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found = np.full((max(max_lag, 0), len(rows)), np.nan)
    for lag in range(1, max_lag + 1):
        found[lag - 1, : len(rows) - lag] = (unit[:-lag] * unit[lag:]).sum(1)
    return found


def _times(curve: np.ndarray, seconds: float) -> np.ndarray:
    return (np.arange(len(curve)) + 0.5) / len(curve) * seconds


def draw_chart(strips: Sequence[Strip], width: int, missing: np.ndarray) -> np.ndarray:
    """Draw strips one below another, with gaps above each and the ticks of time below the last.

    Args:
        width: pixels, at least ``MIN_WIDTH``: the margin of ``LABEL_PX`` is included.
        missing: [T] bool, frames to be marked as without a face.

    Returns:
        an image [h, width, 3] f32 in 0..1; h is even.
    """
    height = sum(strip.height + GAP_PX for strip in strips) + AXIS_PX
    height += height % 2
    seconds = len(missing) / FRAMES_PER_SECOND
    edges, marked = np.arange(len(missing) + 1) / FRAMES_PER_SECOND, np.append(missing, False)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=MARGIN)
        canvas = FigureCanvasAgg(figure)
        top = 0
        for strip in strips:
            top += GAP_PX + strip.height
            box = (LABEL_PX / width, 1 - top / height, 1 - LABEL_PX / width, strip.height / height)
            axes = figure.add_axes(box, facecolor=PAPER, xlim=(0, seconds), xmargin=0)
            whole = axes.get_xaxis_transform()
            axes.fill_between(edges, 0, 1, where=marked, step="post", transform=whole, color=MISSING, lw=0, zorder=0)
            plot_px = axes.get_window_extent().width
            for number, (text, colour) in enumerate([(strip.name, INK), *strip.legend]):
                place = ((6 - LABEL_PX) / plot_px, 1 - (4 + number * LINE_PX) / strip.height)
                axes.text(*place, text, color=colour, transform=axes.transAxes, va="top")
            strip.draw(axes, seconds)
            axes.set_xlim(0, seconds)
            axes.tick_params(labelbottom=strip is strips[-1])
        axes.xaxis.set_major_formatter("{x:g} s")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255


def cursor_column(frame: int, num_frames: int, width: int) -> int:
    """The column of an image of ``width`` where the middle of ``frame`` lies."""
    return LABEL_PX + int((frame + 0.5) / num_frames * (width - LABEL_PX))
