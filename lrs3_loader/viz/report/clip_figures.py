"""Summarizes the table of figures of all clips: distributions, what presets take, splits and speakers, extremes.

Letters: n clips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lrs3_loader.quality.figures import FIGURES
from lrs3_loader.run.figure_table import TEXT_COLUMNS, FigureTable
from lrs3_loader.selection.expression import OFFSET_COLUMNS, Expression, known_names, parse_where
from lrs3_loader.selection.presets import PRESETS
from lrs3_loader.selection.thresholds import Threshold, thresholds
from lrs3_loader.selection.waterfall import Step, waterfall
from lrs3_loader.viz.report.measures import Histogram

NUM_SPEAKERS = 10  # rows of the table of speakers
NUM_EXTREMES = 2  # clips drawn at either end of a figure
_NUM_BINS = 36.0
#: Figures whose ends are drawn, and which of them is good.
JUDGED = {
    "relative_error": "low",
    "face_sharpness": "high",
    "off_axis_mean": "low",
    "identity_change": "low",
    "scene_cut_strength": "low",
    "mouth_audio_correlation": "high",
    "speaking_fraction": "high",
    "audio_snr_db": "high",
}
#: Columns of the tables of splits and speakers, where a run has them.
COMPARED = (
    "face_size_px",
    "face_sharpness",
    "off_axis_mean",
    "identity_change",
    "relative_error",
    "mouth_audio_correlation",
    "speaking_fraction",
    "speech_fraction",
    "audio_snr_db",
    "audio_bandwidth_hz",
)
_GROUPS = {
    "none": "In every run",
    "basic": "Face, mouth, audio and source (--quality basic)",
    "full": "Pixels (--quality full)",
    "sync": "Audio-video offset (verify --sync)",
    "": "Others",
}


@dataclass(frozen=True)
class Distribution:
    """The values of one figure."""

    name: str
    unit: str
    meaning: str
    num_known: int  # clips that have it
    low: float  # 5th percentile
    median: float
    high: float  # 95th percentile
    histogram: Histogram | None  # None: all clips have the same value
    bounds: Sequence[tuple[str, Threshold]] = ()  # which rule sets it, and the bound


class Group(NamedTuple):
    """Figures that are measured together."""

    title: str
    varied: list[Distribution]
    constant: list[Distribution]


@dataclass(frozen=True)
class Rule:
    """A preset, and the clips and hours that each of its conditions would remove from the run."""

    name: str
    source: str
    not_covered: str
    steps: list[Step]  # of the conditions whose figures the run has
    left_out: list[tuple[str, str]]  # conditions without their figures, and why


class Part(NamedTuple):
    """Clips of one split or speaker."""

    name: str
    num_clips: int
    seconds: float
    medians: list[float]  # of the figures compared; NaN where no clip has it


@dataclass
class ClipFigures:
    """Summary of the quality figures of all clips: distributions, presets, splits and speakers."""

    num_clips: int
    seconds: float
    missing: str  # which clips have no figures, and what to do; empty if all have them
    groups: list[Group] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)  # names of the medians of parts
    splits: list[Part] = field(default_factory=list)
    speakers: list[Part] = field(default_factory=list)  # those with most seconds
    num_speakers: int = 0
    minutes_by_speaker: Histogram | None = None  # None: every speaker has as much


def summarize(table: FigureTable, where: Expression | None = None) -> ClipFigures:
    """Summarize a table; its memory does not grow with the number of clips.

    Args:
        where: a condition of the user, whose bounds are marked as those of presets are.
    """
    names = [name for name in _ordered(table.columns) if np.isfinite(table.columns[name]).any()]
    compared = [name for name in COMPARED if name in names]
    bounds = _bounds(where)
    found = [_distribution(name, table.columns[name], bounds.get(name, ())) for name in names]
    seconds = _sums(table, "speaker")
    return ClipFigures(
        num_clips=len(table),
        seconds=table.seconds,
        missing=table.missing,
        groups=_groups(found),
        rules=[_rule(name, table) for name in PRESETS] if names else [],
        compared=compared,
        splits=sorted(_parts(table, "split", compared)),
        speakers=list(_parts(table, "speaker", compared, NUM_SPEAKERS)),
        num_speakers=len(seconds),
        minutes_by_speaker=_histogram(seconds / 60),
    )


def find_extremes(table: FigureTable) -> list[tuple[str, str, list[tuple[int, str]]]]:
    """Find the clips at the ends of the figures of ``JUDGED``.

    Returns:
        for each figure that differs between clips: its name, its unit, and (row of the table, "worst" or "best") of
        up to ``NUM_EXTREMES`` clips of either kind, the worst first.
    """
    found = []
    for name, good in JUDGED.items():
        values = table.columns.get(name, np.zeros(0))
        known = np.flatnonzero(np.isfinite(values))
        order = known[np.argsort(values[known], kind="stable")]
        count = min(NUM_EXTREMES, len(order) // 2)
        if count == 0 or values[order[0]] == values[order[-1]]:
            continue
        low, high = order[:count].tolist(), order[::-1][:count].tolist()
        worst, best = (high, low) if good == "low" else (low, high)
        rows = [(row, "worst") for row in worst] + [(row, "best") for row in best]
        found.append((name, known_names()[name], rows))
    return found


def _ordered(columns: Mapping[str, np.ndarray]) -> list[str]:
    """The names of figures in the order of their definitions, unknown ones last."""
    fixed = {*TEXT_COLUMNS, "num_frames", "duration_seconds"}
    order = {name: place for place, name in enumerate([*FIGURES, *OFFSET_COLUMNS])}
    return sorted(columns.keys() - fixed, key=lambda name: (order.get(name, len(order)), name))


def _bounds(where: Expression | None) -> dict[str, list[tuple[str, Threshold]]]:
    """All bounds of presets, and of the user's condition, by the figure that they are of."""
    rules = {name: parse_where([preset.where]) for name, preset in PRESETS.items()} | {"--where": where}
    found: dict[str, list[tuple[str, Threshold]]] = {}
    for name, rule in rules.items():
        for bound in thresholds(rule) if rule is not None else ():
            found.setdefault(bound.figure, []).append((name, bound))
    return found


def _distribution(name: str, column: np.ndarray, bounds: Sequence[tuple[str, Threshold]]) -> Distribution:
    values = column[np.isfinite(column)]
    figure = FIGURES.get(name)
    meaning = figure.meaning if figure is not None else ""
    unit = known_names().get(name, "")
    low, median, high = np.percentile(values, (5, 50, 95)).tolist()
    return Distribution(name, unit, meaning, len(values), low, median, high, _histogram(values), bounds)


def _histogram(values: np.ndarray) -> Histogram | None:
    """A histogram of about 36 bins over all but the outermost values; None if there is one value only."""
    if not len(values) or values.min() == values.max():
        return None
    low, high = np.percentile(values, (0.2, 99.8))
    span = float(high - low) or float(np.ptp(values))
    power = 10.0 ** math.floor(math.log10(span / _NUM_BINS))
    step = power * next(factor for factor in (1, 2, 5, 10) if power * factor >= span / _NUM_BINS * 0.999)
    if np.array_equal(values, np.rint(values)):
        step = max(step, 1.0)
    histogram = Histogram(step)
    histogram.add(values)
    return histogram


def _groups(found: Sequence[Distribution]) -> list[Group]:
    groups = {level: Group(title, [], []) for level, title in _GROUPS.items()}
    for each in found:
        level = "sync" if each.name in OFFSET_COLUMNS else FIGURES[each.name].level if each.name in FIGURES else ""
        (groups[level].constant if each.histogram is None else groups[level].varied).append(each)
    return [group for group in groups.values() if group.varied or group.constant]


def _rule(name: str, table: FigureTable) -> Rule:
    preset = PRESETS[name]
    usable, left_out = [], []
    for condition in preset.conditions:
        lacking = [figure for figure in Expression(condition).names if figure not in table.columns]
        if lacking:
            left_out.append((condition, f"{', '.join(lacking)} was not measured"))
        else:
            usable.append(condition)
    joined = parse_where([" and ".join(usable)])
    steps = [] if joined is None else waterfall(table, joined)[1]
    return Rule(name, preset.source, preset.not_covered, steps, left_out)


def _sums(table: FigureTable, column: str) -> np.ndarray:
    """Seconds of each of the different texts of a column."""
    totals: Counter[str] = Counter()
    for name, seconds in zip(table.columns[column], table.columns["duration_seconds"].tolist(), strict=True):
        totals[name] += seconds
    return np.array(list(totals.values()))


def _parts(table: FigureTable, column: str, compared: Sequence[str], most: int | None = None) -> Iterator[Part]:
    """The clips of each text of a column, those with the most seconds first."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table.columns[column]):
        rows.setdefault(name, []).append(row)
    seconds = table.columns["duration_seconds"]
    sums = {name: float(seconds[mine].sum()) for name, mine in rows.items()}
    for name in sorted(rows, key=lambda name: (-sums[name], name))[:most]:
        medians = [_median(table.columns[figure][rows[name]]) for figure in compared]
        yield Part(name, len(rows[name]), sums[name], medians)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
