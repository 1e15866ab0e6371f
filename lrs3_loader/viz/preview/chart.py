"""Strips below one time axis: curves, the mel spectrogram with the pitch, likeness of speech. Drawn once a clip.

Every strip has its name and the names of its curves on the left, in the curves' colours. Column x of the plot shows
the time ``(x + 1/2) / plot width`` of the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrs3_loader.types import FRAMES_PER_SECOND, ROWS_PER_FRAME
from lrs3_loader.viz.overlay import Colour, draw_line
from lrs3_loader.viz.text import LINE_PX, draw_text

LABEL_PX = 220  # left margin
GAP_PX = 6  # between strips
INK: Colour = (0.86, 0.87, 0.88)
FAINT: Colour = (0.55, 0.57, 0.60)
PAPER = (0.16, 0.17, 0.19)
MISSING = (0.38, 0.16, 0.16)  # background of frames without a face
COLOURS: tuple[Colour, ...] = (
    (0.36, 0.72, 1.00),
    (1.00, 0.66, 0.25),
    (0.45, 0.85, 0.45),
    (0.98, 0.45, 0.50),
    (0.75, 0.60, 1.00),
    (0.95, 0.90, 0.40),
)
PITCH_TOP_HZ = 400.0
MAX_LAG_SECONDS = 1.0
_HEAT = np.array([[0.04, 0.04, 0.10], [0.30, 0.08, 0.42], [0.72, 0.21, 0.33], [0.97, 0.55, 0.16], [0.99, 0.96, 0.65]])
MEL_RANGE = (-4.5, 0.5)  # log10 amplitude


@dataclass(frozen=True)
class Strip:
    """Curves that share one vertical axis."""

    name: str
    curves: Mapping[str, np.ndarray]  # [T] each; NaN makes a gap
    low: float | None = None  # the axis reaches at least this far down
    height: int = 92


def draw_strip(strip: Strip, width: int, missing: np.ndarray) -> np.ndarray:
    """A picture [strip.height, width, 3] f32 in 0..1. ``missing`` [T]: frames to be marked as without a face."""
    picture = _paper(strip.height, width, missing)
    plot = picture[:, LABEL_PX:]
    values = np.concatenate([*strip.curves.values()])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low = low if strip.low is None else min(low, strip.low)
    room = max(high - low, 1e-6)
    top, bottom = 4.0, strip.height - 5.0
    draw_text(picture, (6, 2), f"{strip.name}   {low:.2g} .. {high:.2g}", FAINT)
    for number, (name, curve) in enumerate(strip.curves.items()):
        x = (np.arange(len(curve)) + 0.5) / len(curve) * plot.shape[1] - 0.5
        y = bottom - (curve - low) / room * (bottom - top)
        draw_line(plot, np.stack([x, y], axis=1), COLOURS[number % len(COLOURS)])
        draw_text(picture, (6, 2 + (number + 1) * LINE_PX), name, COLOURS[number % len(COLOURS)])
    return picture


def draw_sound(mel: np.ndarray, f0_hz: np.ndarray, width: int, missing: np.ndarray, height: int = 92) -> np.ndarray:
    """The mel spectrogram ``mel`` [2T, 80] with the pitch ``f0_hz`` [2T] over it, as ``draw_strip``."""
    picture = _paper(height, width, missing)
    plot = picture[:, LABEL_PX:]
    low, high = MEL_RANGE
    rows = ((np.arange(height) + 0.5) / height * mel.shape[1]).astype(int)[::-1]
    columns = ((np.arange(plot.shape[1]) + 0.5) / plot.shape[1] * len(mel)).astype(int)
    plot[:] = heat((mel[columns][:, rows].T - low) / (high - low))
    x = (np.arange(len(f0_hz)) + 0.5) / len(f0_hz) * plot.shape[1] - 0.5
    y = height - 1 - np.where(f0_hz > 0, f0_hz, np.nan) / PITCH_TOP_HZ * (height - 1)
    draw_line(plot, np.stack([x, y], axis=1), COLOURS[0], width_px=2.0)
    draw_text(picture, (6, 2), "mel, 80 .. 7600 Hz", FAINT)
    draw_text(picture, (6, 2 + LINE_PX), f"pitch, 0 .. {PITCH_TOP_HZ:.0f} Hz", COLOURS[0])
    return picture


def draw_similarity(rows: np.ndarray, name: str, width: int, missing: np.ndarray, height: int = 92) -> np.ndarray:
    """How alike the speech encoder's rows [2T, D] are at each distance in time, as ``draw_strip``.

    Upwards: from one row apart to ``MAX_LAG_SECONDS``; bright: the row so much later is like this one. A sound that
    lasts is a bright foot, one that comes again a bright spot above it. Likeness is the cosine of the rows, taken from
    the clip's mean row, without which all rows are much alike.
    """
    picture = _paper(height, width, missing)
    plot = picture[:, LABEL_PX:]
    max_lag = min(round(MAX_LAG_SECONDS * FRAMES_PER_SECOND * ROWS_PER_FRAME), len(rows) - 1)
    likeness = lagged_similarity(rows, max_lag)
    if len(likeness):
        lags = ((np.arange(height) + 0.5) / height * len(likeness)).astype(int)[::-1]
        columns = ((np.arange(plot.shape[1]) + 0.5) / plot.shape[1] * len(rows)).astype(int)
        shown = likeness[lags][:, columns]
        plot[:] = np.where(np.isnan(shown)[..., None], np.array(PAPER), heat(np.nan_to_num(shown)))
    draw_text(picture, (6, 2), "speech likeness", FAINT)
    draw_text(picture, (6, 2 + LINE_PX), f"0 .. {MAX_LAG_SECONDS:g} s later", FAINT)
    draw_text(picture, (6, 2 + 2 * LINE_PX), name, FAINT)
    return picture


def lagged_similarity(rows: np.ndarray, max_lag: int) -> np.ndarray:
    """[max_lag, N] f64: cosine of row n and row n + lag, lag = 1 .. max_lag, about the mean; NaN beyond the end."""
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    likeness = np.full((max(max_lag, 0), len(rows)), np.nan)
    for lag in range(1, max_lag + 1):
        likeness[lag - 1, : len(rows) - lag] = (unit[:-lag] * unit[lag:]).sum(1)
    return likeness


def heat(share: np.ndarray) -> np.ndarray:
    """Values [...] to colours [..., 3] f32: 0 and below is near black, 1 and above pale yellow."""
    position = np.clip(share, 0, 1) * (len(_HEAT) - 1)
    below = np.minimum(position.astype(int), len(_HEAT) - 2)
    part = (position - below)[..., None]
    return (_HEAT[below] * (1 - part) + _HEAT[below + 1] * part).astype(np.float32)


def stack(strips: Sequence[np.ndarray]) -> np.ndarray:
    """The strips one below another, with gaps between."""
    gap = np.zeros((GAP_PX, strips[0].shape[1], 3), dtype=np.float32)
    return np.concatenate([part for strip in strips for part in (gap, strip)])


def cursor_column(frame: int, num_frames: int, width: int) -> int:
    """The column of a picture of ``width`` where the middle of ``frame`` lies."""
    return LABEL_PX + int((frame + 0.5) / num_frames * (width - LABEL_PX))


def _paper(height: int, width: int, missing: np.ndarray) -> np.ndarray:
    picture = np.zeros((height, width, 3), dtype=np.float32)
    picture[:, :LABEL_PX] = PAPER
    columns = ((np.arange(width - LABEL_PX) + 0.5) / (width - LABEL_PX) * len(missing)).astype(int)
    picture[:, LABEL_PX:] = np.where(missing[columns][:, None], np.array(MISSING), np.array(PAPER))
    return picture
