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


class TimeAxis:
    """Time worked: ``spans`` (start, stop) in which some rank was busy, one after another, pauses left out."""

    def __init__(self, works: Sequence[ShardWork]) -> None:
        worked = _busy_seconds(works)
        self.spans = _union(works, gap=max(_MIN_PAUSE_SECONDS, _MIN_PAUSE_SHARE * worked))
        self.seconds = sum(stop - start for start, stop in self.spans)

    def place(self, time: float) -> float:
        """Seconds from the left end of the axis."""
        return sum(min(max(time - start, 0.0), stop - start) for start, stop in self.spans)

    def pauses(self) -> list[tuple[float, float]]:
        """Return where pauses were cut out (seconds from the left end), and how long each was."""
        return [(self.place(first[1]), second[0] - first[1]) for first, second in pairwise(self.spans)]


def _union(works: Sequence[ShardWork], gap: float) -> list[tuple[float, float]]:
    """The times of works; those that overlap, or lie at most ``gap`` apart, become one."""
    joined: list[tuple[float, float]] = []
    for start, stop in sorted((work.start, work.stop) for work in works):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def _busy_seconds(works: Sequence[ShardWork]) -> float:
    return sum(stop - start for start, stop in _union(works, gap=0.0))


@dataclass(frozen=True)
class RankTotals:
    """Totals of one rank over all launches."""

    rank: int
    devices: list[str]
    num_shards: int
    num_clips: int
    num_frames: int
    busy_seconds: float


class Timeline:
    """Throughput in equal bins of the ``axis``; a shard's frames count evenly over the time it took.

    ``ranks``: their totals; ``rates`` [ranks, bins] f64: frames per second; ``busy`` [ranks, bins] bool: at work at
    all, if only on clips that were rejected.
    """

    def __init__(self, works: Sequence[ShardWork]) -> None:
        self.axis = TimeAxis(works)
        num_bins = int(np.clip(4 * len(works), 24, MAX_BINS))
        edges, width = np.linspace(0, self.axis.seconds, num_bins + 1, retstep=True)
        self.ranks = []
        rates, busy = [], []
        for rank in sorted({work.rank for work in works}):
            mine = [work for work in works if work.rank == rank]
            starts, stops = (
                np.array([self.axis.place(getattr(work, end)) for work in mine])[:, None] for end in ("start", "stop")
            )
            shared = np.clip(np.minimum(edges[1:], stops) - np.maximum(edges[:-1], starts), 0, None)  # [works, bins]
            num_frames = np.array([work.num_frames for work in mine])
            rates.append(num_frames / (stops - starts)[:, 0] @ shared / width)
            busy.append(shared.any(axis=0))
            num_clips, devices = sum(work.num_clips for work in mine), sorted({work.device for work in mine})
            totals = RankTotals(rank, devices, len(mine), num_clips, int(num_frames.sum()), _busy_seconds(mine))
            self.ranks.append(totals)
        self.rates, self.busy = np.array(rates), np.array(busy)
