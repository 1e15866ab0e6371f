"""Collects the findings of a report: one pass over the ledgers, one over the shards without speech features."""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrs3_loader.run.folder import RunFolder, Totals
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.offsets import read_offsets
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.types import FRAMES_PER_SECOND, Shard
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
    histograms: dict[str, Histogram] = field(default_factory=dict)  # by the measure's name
    num_measured: int = 0  # clips
    damaged: list[str] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    offsets: list[dict[str, Any]] | None = None  # lines of sync.jsonl; None: not measured


def collect(folder: RunFolder, *, sample: int | None, num_picks: int, progress: Progress) -> Findings:
    """Read a run as far as it goes; shards that turn out damaged are named and passed over.

    Args:
        sample: how many clips to measure, evenly spread; all when None. Ledgers are always read in full.
        num_picks: how many clips to choose for drawing.
        progress: told of every clip read.

    Raises:
        RunError: a ledger or ``sync.jsonl`` is damaged.
    """
    done = folder.published()
    ledgers = {shard.name: folder.ledger(shard) for shard in folder.shards if shard.name in done}
    findings = _from_ledgers(folder, list(ledgers.values()))
    findings.offsets = read_offsets(folder)
    findings.histograms |= {measure.name: Histogram(measure.step) for measure in MEASURES}
    num_samples = findings.totals.num_samples
    chosen = evenly_spread(num_samples, num_samples if sample is None else sample)
    chooser = _Chooser(num_picks, len(chosen))
    for shard, index, found in _samples(folder, ledgers, chosen, findings.damaged):
        for measure in MEASURES:
            if all(name in found for name in measure.needs):
                findings.histograms[measure.name].add(measure.values(found))
        chooser.offer(shard, index, found)
        findings.num_measured += 1
        progress(1)
    findings.picks = chooser.picks()
    return findings


def evenly_spread(total: int, count: int) -> list[int]:
    """``count`` of the numbers below ``total`` (all, where it is not more), ascending and equally far apart."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _from_ledgers(folder: RunFolder, ledgers: list[Ledger]) -> Findings:
    works = [work for work in map(ShardWork.from_ledger, ledgers) if work is not None]
    keys = [key.split("/") for ledger in ledgers for key, _ in ledger.samples]
    usual = folder.record.get("software", {})
    versions = {
        json.dumps(ledger.provenance["software"], sort_keys=True)
        for ledger in ledgers
        if ledger.provenance.get("software", usual) != usual
    }
    durations = Histogram(DURATION.step)
    durations.add(np.array([frames for ledger in ledgers for _, frames in ledger.samples]) / FRAMES_PER_SECOND)
    stage_seconds: Counter[str] = Counter()
    for ledger in ledgers:
        stage_seconds.update(ledger.timings)
    return Findings(
        folder=folder,
        totals=folder.totals(),
        num_clips=sum(len(shard.clips) for shard in folder.shards),
        num_speakers=len({(split, speaker) for split, speaker, _ in keys}),
        splits=Counter(split for split, _, _ in keys),
        timeline=Timeline.from_works(works) if works else None,
        stage_seconds=stage_seconds,
        other_software=[json.loads(text) for text in sorted(versions)],
        histograms={DURATION.name: durations},
    )


def _samples(
    folder: RunFolder, ledgers: dict[str, Ledger], chosen: list[int], damaged: list[str]
) -> Iterator[tuple[Shard, int, dict[str, Any]]]:
    """The chosen samples, numbered through the run, with the fields that measures need and the sample has."""
    first = 0
    for shard in folder.shards:
        if shard.name not in ledgers:
            continue
        stop = first + len(ledgers[shard.name].samples)
        mine = [number - first for number in chosen[bisect_left(chosen, first) : bisect_left(chosen, stop)]]
        first = stop
        if not mine:
            continue
        try:
            index = TarIndex(folder.tar_path(shard))
        except DamagedError as error:
            damaged.append(str(error))
            continue
        try:
            for number in mine:
                yield shard, number, read_fields(index, number, _READ)
        except (DamagedError, IndexError) as error:
            damaged.append(str(error))
        finally:
            index.close()


def read_fields(index: TarIndex, number: int, wanted: frozenset[str]) -> dict[str, Any]:
    """One sample's json and those of the ``wanted`` fields that it has. Raises ``DamagedError``."""
    members = (name.removesuffix(".npy") for name in index.samples[number].members)
    return index.read(number, tuple(sorted(wanted.intersection(members))))


class _Chooser:
    """Picks clips for the gallery as they go by: the extremes, and others evenly spread."""

    def __init__(self, num_picks: int, num_offered: int) -> None:
        self._num_picks = num_picks
        self._wanted = set(evenly_spread(num_offered, 2 * num_picks))
        self._number = 0
        self._spread: list[Pick] = []
        self._extremes: dict[str, tuple[float, Pick]] = {}

    def offer(self, shard: Shard, index: int, sample: dict[str, Any]) -> None:
        key = sample["__key__"]
        quality = sample["json"].get("quality", {})
        if self._number in self._wanted:
            self._spread.append(Pick(key, shard, index, ""))
        self._number += 1
        if quality.get("relative_error") is not None:
            self._compare(quality["relative_error"], Pick(key, shard, index, "worst fit"))
        if "valid" in sample and not sample["valid"].all():
            self._compare(1 - sample["valid"].mean(), Pick(key, shard, index, "fewest frames with a face"))
        if "pose" in sample:
            self._compare(float(np.abs(sample["pose"][:, 1]).max()), Pick(key, shard, index, "turned furthest"))

    def _compare(self, value: float, pick: Pick) -> None:
        if pick.reason not in self._extremes or value > self._extremes[pick.reason][0]:
            self._extremes[pick.reason] = value, pick

    def picks(self) -> list[Pick]:
        """The extremes first (one clip may be several), then the others, ``num_picks`` at most."""
        chosen: dict[str, Pick] = {}
        for _, pick in self._extremes.values():
            before = chosen.get(pick.key)
            chosen[pick.key] = dataclasses.replace(
                pick, reason=f"{before.reason}, {pick.reason}" if before else pick.reason
            )
        others = [pick for pick in self._spread if pick.key not in chosen]
        room = max(0, self._num_picks - len(chosen))
        chosen |= {others[number].key: others[number] for number in evenly_spread(len(others), room)}
        return list(chosen.values())[: self._num_picks]
