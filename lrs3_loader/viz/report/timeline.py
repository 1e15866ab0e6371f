"""Throughput over time: frames per second of each rank, on a time axis without the pauses between launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np

from lrs3_loader.run.ledger import Ledger

MAX_BINS = 160
_MIN_PAUSE_SECONDS = 120.0
_MIN_PAUSE_SHARE = 0.1  # of the time worked: shorter ones are shown at their length


@dataclass(frozen=True)
class ShardWork:
    """The work on one shard: who did it, and when."""

    rank: int
    device: str
    start: float  # seconds since 1970
    stop: float
    num_frames: int
    num_clips: int  # rejects included

    @classmethod
    def from_ledger(cls, ledger: Ledger) -> ShardWork | None:
        """None for a ledger that does not say when, or by whom."""
        made = ledger.provenance
        try:
            start, stop = (datetime.fromisoformat(made[name]).timestamp() for name in ("started_at", "finished_at"))
            rank = int(made["rank"])
        except (KeyError, TypeError, ValueError):
            return None
        num_clips = len(ledger.samples) + len(ledger.rejects)
        return cls(rank, str(made.get("device", "?")), start, max(stop, start + 1e-3), ledger.num_frames, num_clips)


@dataclass(frozen=True)
class TimeAxis:
    """Time worked: spans in which some rank was busy, one after another, pauses left out."""

    spans: tuple[tuple[float, float], ...]  # start and stop, ascending

    @classmethod
    def from_works(cls, works: Sequence[ShardWork]) -> TimeAxis:
        busy = _union([(work.start, work.stop) for work in works], gap=0.0)
        worked = sum(stop - start for start, stop in busy)
        return cls(tuple(_union(busy, gap=max(_MIN_PAUSE_SECONDS, _MIN_PAUSE_SHARE * worked))))

    @property
    def seconds(self) -> float:
        return sum(stop - start for start, stop in self.spans)

    def place(self, time: float) -> float:
        """Seconds from the left end of the axis."""
        return sum(min(max(time - start, 0.0), stop - start) for start, stop in self.spans)

    def pauses(self) -> list[tuple[float, float]]:
        """Return where pauses were cut out (seconds from the left end), and how long each was."""
        return [(self.place(first[1]), second[0] - first[1]) for first, second in pairwise(self.spans)]


def _union(spans: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Spans that overlap, or lie at most ``gap`` apart, become one."""
    joined: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


@dataclass(frozen=True)
class RankTotals:
    """Totals of one rank over all launches."""

    rank: int
    devices: tuple[str, ...]
    num_shards: int
    num_clips: int
    num_frames: int
    busy_seconds: float

    @property
    def frames_per_second(self) -> float:
        return self.num_frames / max(self.busy_seconds, 1e-9)


@dataclass(frozen=True)
class Timeline:
    """Throughput in equal bins of the axis; a shard's frames count evenly over the time it took."""

    axis: TimeAxis
    ranks: tuple[RankTotals, ...]
    rates: np.ndarray  # [ranks, bins] f64, frames a second
    busy: np.ndarray  # [ranks, bins] bool: at work at all, if only on clips that were rejected

    @classmethod
    def from_works(cls, works: Sequence[ShardWork]) -> Timeline:
        """Build the timeline of at least one shard."""
        axis = TimeAxis.from_works(works)
        numbers = sorted({work.rank for work in works})
        num_bins = int(np.clip(4 * len(works), 24, MAX_BINS))
        edges = np.linspace(0, axis.seconds, num_bins + 1)
        width = axis.seconds / num_bins
        rates, busy = np.zeros((len(numbers), num_bins)), np.zeros((len(numbers), num_bins), dtype=bool)
        for work in works:
            start, stop = axis.place(work.start), axis.place(work.stop)
            shared = np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None)
            row = numbers.index(work.rank)
            rates[row] += work.num_frames * shared / (stop - start) / width
            busy[row] |= shared > 0
        return cls(axis, tuple(_rank_totals(number, works) for number in numbers), rates, busy)


def _rank_totals(rank: int, works: Sequence[ShardWork]) -> RankTotals:
    mine = [work for work in works if work.rank == rank]
    busy = _union([(work.start, work.stop) for work in mine], gap=0.0)
    return RankTotals(
        rank,
        tuple(sorted({work.device for work in mine})),
        len(mine),
        sum(work.num_clips for work in mine),
        sum(work.num_frames for work in mine),
        sum(stop - start for start, stop in busy),
    )
