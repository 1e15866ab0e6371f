"""Collects the findings of a report: one pass over the ledgers, one over the shards without speech features."""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.quality.figures import SILENT_RMS
from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.run.folder import RunFolder, Totals
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.offsets import read_offsets
from lrs3_loader.run.shards import check_sample
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.selection.expression import Expression
from lrs3_loader.selection.waterfall import Step, waterfall
from lrs3_loader.types import FRAMES_PER_SECOND, Shard, field_of_member
from lrs3_loader.viz.report.clip_figures import ClipFigures, find_extremes, summarize
from lrs3_loader.viz.report.measures import DURATION, MEASURES, Histogram
from lrs3_loader.viz.report.timeline import ShardWork, Timeline

Progress = Callable[[int], object]
_READ = frozenset(name for measure in MEASURES for name in measure.needs)


@dataclass(frozen=True)
class Pick:
    """A clip to be drawn, where it lies, and why it was chosen."""

    key: str
    shard: Shard
    index: int  # in its tar
    reason: str


class Extremes(NamedTuple):
    """Clips at the ends of one figure; their reason is ``worst`` or ``best``, with the value."""

    figure: str
    unit: str
    picks: list[Pick]


@dataclass
class Findings:
    """Everything that the page shows."""

    folder: RunFolder
    totals: Totals
    num_clips: int  # planned
    num_speakers: int  # of samples
    splits: Counter[str]  # samples
    timeline: Timeline | None  # None: no ledger says when it was made
    stage_seconds: Counter[str]
    other_software: list[dict[str, str]]  # versions, other than the run's own, that made some shards
    offsets: list[dict[str, Any]] | None  # lines of sync.jsonl; None: not measured
    histograms: dict[str, Histogram]  # by the measure's name
    num_silent: int = 0  # samples in which nothing is heard
    num_chosen: int = 0  # clips that may be measured and drawn
    num_measured: int = 0  # clips
    damaged: list[str] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    figures: ClipFigures | None = None  # None: they are damaged
    extremes: list[Extremes] = field(default_factory=list)
    selection: list[Step] = field(default_factory=list)  # what each condition of the user takes


def collect(
    folder: RunFolder, *, sample: int | None, num_picks: int, progress: Progress, where: Expression | None = None
) -> Findings:
    """Read a run as far as it goes; shards that turn out damaged are named and passed over.

    Args:
        sample: how many clips to measure, evenly spread; all when None. Ledgers are always read in full.
        num_picks: how many clips to choose for drawing.
        progress: told of every clip read.
        where: measure and draw only clips for which this is true.

    Raises:
        RunError: a figure that ``where`` names was not measured, or ``sync.jsonl`` is damaged.
    """
    done = folder.published()
    ledgers = {ledger.shard: ledger for ledger in folder.ledgers(done)}
    findings = _from_ledgers(folder, list(ledgers.values()))
    findings.damaged += folder.ledger_errors
    candidates = _add_figures(findings, ledgers, where, draw=num_picks > 0)
    lengths = np.array([length for ledger in ledgers.values() for _, length in ledger.samples], np.int64)
    findings.histograms[DURATION.name].add(lengths[candidates] / FRAMES_PER_SECOND)
    num_candidates = findings.num_chosen = len(candidates)
    chosen = candidates[evenly_spread(num_candidates, num_candidates if sample is None else sample)].tolist()
    chooser = _Chooser(num_picks, len(chosen))
    for shard, index, found in _samples(folder, ledgers, chosen, findings.damaged):
        for measure in MEASURES:
            if found.keys() >= {*measure.needs}:
                findings.histograms[measure.name].add(measure.values(found))
        chooser.offer(shard, index, found)
        findings.num_measured += 1
        progress(1)
    findings.picks = chooser.picks()
    return findings


def _add_figures(
    findings: Findings, ledgers: Mapping[str, Ledger], where: Expression | None, *, draw: bool
) -> np.ndarray:
    """Add to ``findings`` what the figures of all clips say; return the numbers of the clips that are chosen."""
    candidates = np.arange(findings.totals.num_samples)
    try:
        table = FigureTable.of_ledgers(ledgers.values(), str(findings.folder.path))
    except RunError as error:
        if where is not None:
            raise
        findings.damaged.append(str(error))
        return candidates
    findings.num_silent = int((table.columns.get("sound_rms", np.ones(1)) < SILENT_RMS).sum())
    if findings.offsets is not None:
        table = table.with_offsets(findings.offsets)
    if where is not None:
        mask, findings.selection = waterfall(table, where)
        candidates = np.flatnonzero(mask)
        table = table.rows(candidates)
    findings.figures = summarize(table, where)
    if draw:
        findings.extremes = _extremes(findings.folder, ledgers, table)
    return candidates


def _extremes(folder: RunFolder, ledgers: Mapping[str, Ledger], table: FigureTable) -> list[Extremes]:
    """The clips at the ends of each figure."""

    def pick(row: int, reason: str) -> Pick:
        name, key = table.columns["shard"][row], table.columns["key"][row]
        shard = folder.shards[folder.shards.names.index(name)]
        return Pick(key, shard, ledgers[name].places[key], reason)

    return [
        Extremes(name, unit, [pick(row, f"{kind}: {table.columns[name][row]:.4g}") for row, kind in rows])
        for name, unit, rows in find_extremes(table)
    ]


def evenly_spread(total: int, count: int) -> list[int]:
    """``count`` of the numbers below ``total`` (all, where it is not more), ascending and equally far apart."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _from_ledgers(folder: RunFolder, ledgers: list[Ledger]) -> Findings:
    works = [work for work in map(ShardWork.from_ledger, ledgers) if work is not None]
    keys = [key.split("/") for ledger in ledgers for key, _ in ledger.samples]
    usual = folder.record.get("software", {})
    versions = {json.dumps(ledger.provenance.get("software", usual), sort_keys=True) for ledger in ledgers}
    histograms = {measure.name: Histogram(measure.step) for measure in (DURATION, *MEASURES)}
    stage_seconds: Counter[str] = Counter()
    for ledger in ledgers:
        stage_seconds.update(ledger.timings)
    return Findings(
        folder=folder,
        totals=folder.totals(),
        num_clips=folder.shards.num_clips,
        num_speakers=len({speaker for _, speaker, _ in keys}),
        splits=Counter(split for split, _, _ in keys),
        timeline=Timeline(works) if works else None,
        stage_seconds=stage_seconds,
        other_software=[found for found in map(json.loads, sorted(versions)) if found != usual],
        offsets=read_offsets(folder.store),
        histograms=histograms,
    )


def _samples(
    folder: RunFolder, ledgers: dict[str, Ledger], chosen: list[int], damaged: list[str]
) -> Iterator[tuple[Shard, int, dict[str, Any]]]:
    """The chosen samples, numbered through the run, with the fields that measures need and the sample has."""
    first = 0
    for name, ledger in ledgers.items():
        stop = first + len(ledger.samples)
        mine = [number - first for number in chosen[bisect_left(chosen, first) : bisect_left(chosen, stop)]]
        first = stop
        if not mine:
            continue
        shard = folder.shards[folder.shards.names.index(name)]
        try:
            with folder.open_tar(shard) as index:
                for number in mine:
                    yield shard, number, read_fields(index, number, _READ)
        except (DamagedError, IndexError) as error:
            damaged.append(str(error))


def read_fields(index: TarIndex, number: int, wanted: frozenset[str]) -> dict[str, Any]:
    """One sample's json and those of the ``wanted`` fields that it has. Raises ``DamagedError``."""
    held = {field_of_member(name) for name in index.samples[number].members}
    sample = index.read(number, tuple(sorted(wanted.intersection(held))))
    return check_sample(str(index.path), sample)


class _Chooser:
    """Picks clips for the gallery as they go by: the extremes, and others evenly spread."""

    def __init__(self, num_picks: int, num_offered: int) -> None:
        self._num_picks = num_picks
        self._wanted = set(evenly_spread(num_offered, 2 * num_picks))
        self._num_offered = 0
        self._spread: list[Pick] = []
        self._extremes: dict[str, tuple[float, Pick]] = {}

    def offer(self, shard: Shard, index: int, sample: dict[str, Any]) -> None:
        pick = Pick(sample["__key__"], shard, index, "")
        if self._num_offered in self._wanted:
            self._spread.append(pick)
        self._num_offered += 1
        values: dict[str, float | None] = {
            "worst fit": sample["json"].get("quality", {}).get("relative_error"),
            "fewest frames with a face": (1 - sample["valid"].mean()) or None if "valid" in sample else None,
            "turned furthest": float(np.abs(sample["pose"][:, 1]).max()) if "pose" in sample else None,
        }
        for reason, value in values.items():
            if value is not None and (reason not in self._extremes or value > self._extremes[reason][0]):
                self._extremes[reason] = value, dataclasses.replace(pick, reason=reason)

    def picks(self) -> list[Pick]:
        """The extremes first (one clip may be several), then the others, ``num_picks`` at most."""
        chosen: dict[str, Pick] = {}
        for _, pick in self._extremes.values():
            reasons = [found.reason for found in (chosen.get(pick.key), pick) if found is not None]
            chosen[pick.key] = dataclasses.replace(pick, reason=", ".join(reasons))
        others = [pick for pick in self._spread if pick.key not in chosen]
        room = max(0, self._num_picks - len(chosen))
        return [*chosen.values(), *(others[number] for number in evenly_spread(len(others), room))][: self._num_picks]
