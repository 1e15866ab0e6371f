"""Which rank does which shard: leases from the store that torch.distributed already has.

Extraction needs no collectives, only this: a counter that every rank draws from. A fast rank draws more often, and a
run begun on four GPUs can be finished on one, because nothing about the plan depends on who does what.

A lease costs one round trip to the store and is not given back: what a rank held when it went is found not to be
published, by the next launch, by the next round of an elastic one, or by rank 0 when all else is done.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lrs3_loader.errors import RunError

START_TIMEOUT_SECONDS = 1800.0  # for all ranks to start
UNRESPONSIVE_SECONDS = 900.0  # a rank that has done nothing for this long is gone: no clip takes a tenth of it
_POLL_SECONDS = 0.2


class WorkQueue:
    """Shard leases, shared counters and start-up messages of one launch.

    Args:
        store: any ``torch.distributed`` store that all ranks see.
        rank: this rank, ``0 <= rank < world_size``.
        world_size: number of ranks of this launch.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        self._store = store
        self.rank = rank
        self.world_size = world_size

    def announce(self, message: dict[str, Any]) -> None:
        """Rank 0 tells every rank what to work on: ``{"pending": [indices]}``, or ``{"error": text}``."""
        if "pending" in message:
            message = {**message, "pending": _as_ranges(message["pending"])}
        self._store.set("launch", json.dumps(message))

    def announcement(self) -> dict[str, Any]:
        """Wait for what rank 0 announced (it may be scanning a large corpus: hours are allowed)."""
        self._store.wait(["launch"], timedelta(hours=6))
        message: dict[str, Any] = json.loads(self._store.get("launch"))
        if "pending" in message:
            message["pending"] = [index for start, stop in message["pending"] for index in range(start, stop)]
        return message

    def leases(self, pending: Sequence[int], name: str = "tickets") -> Iterator[int]:
        """Draw shard indices, one at a time, until none is left. Over all ranks each comes exactly once.

        Each ``name`` is a drawing of its own.
        """
        while (ticket := self._add(name, 1)) <= len(pending):
            self.heartbeat()
            yield pending[ticket - 1]

    def heartbeat(self) -> None:
        """Say that this rank is at work (see ``wait_for_all``)."""
        self._add(f"beat/{self.rank}", 1)

    def leave(self) -> None:
        """Say that this rank has nothing left to do."""
        self._store.set(f"left/{self.rank}", "")
        self._add("ranks_left", 1)

    def wait_for_all(self, unresponsive_seconds: float = UNRESPONSIVE_SECONDS) -> list[int]:
        """Wait until every rank has left or is unresponsive: gone with its machine, say. Returns the unresponsive ones.

        Without collectives nothing else would notice. A rank that comes back to life afterwards does no harm: it
        publishes the same bytes.
        """
        others = list(range(self.world_size))
        monitor = _HeartbeatMonitor(unresponsive_seconds)
        while self._add("ranks_left", 0) < self.world_size:
            time.sleep(_POLL_SECONDS)
            if not monitor.is_due():
                continue
            others = [rank for rank in others if not self._store.check([f"left/{rank}"])]
            unresponsive = monitor.unresponsive({rank: self._add(f"beat/{rank}", 0) for rank in others})
            if others and len(unresponsive) == len(others):
                return unresponsive
        return []

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter that all ranks share; returns its new value (``amount=0`` reads it)."""
        return self._add(f"count/{counter}", amount)

    def _add(self, name: str, amount: int) -> int:
        try:
            return self._store.add(name, amount)
        except dist.DistError as error:
            raise RunError(
                f"rank {self.rank} has lost the store of this launch ({str(error).splitlines()[0]}): the machine that "
                "keeps it has gone; run the same command again to resume"
            ) from error


class _HeartbeatMonitor:
    """Which ranks' counts have stood still, by the clock of who watches."""

    def __init__(self, unresponsive_seconds: float):
        self._unresponsive_seconds = unresponsive_seconds
        self._looked = time.monotonic()
        self._seen: dict[int, tuple[int, float]] = {}  # rank -> (count, since when)

    def is_due(self) -> bool:
        return time.monotonic() - self._looked >= min(10.0, self._unresponsive_seconds / 4)

    def unresponsive(self, counts: dict[int, int]) -> list[int]:
        now = self._looked = time.monotonic()
        for rank, count in counts.items():
            if rank not in self._seen or self._seen[rank][0] != count:
                self._seen[rank] = count, now
        return [rank for rank in counts if now - self._seen[rank][1] > self._unresponsive_seconds]


def _as_ranges(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Rising indices as [start, stop): what is left of 100,000 shards is a few stretches of them."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = ranges[-1][0], index + 1
        else:
            ranges.append((index, index + 1))
    return ranges


def connect() -> WorkQueue:
    """The queue of this launch: torchrun's own store, or a private one when started as a single process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return WorkQueue(dist.HashStore(), rank=0, world_size=1)
    try:
        store, rank, world_size = next(rendezvous("env://"))
        name = agree_on_round(store, rank, world_size)
    except (ValueError, dist.DistError) as error:
        raise RunError(f"the ranks could not meet ({error}); start them with torchrun") from error
    return WorkQueue(dist.PrefixStore(name, store), rank, world_size)


def agree_on_round(
    store: dist.Store, rank: int, world_size: int, timeout_seconds: float = START_TIMEOUT_SECONDS
) -> str:
    """Agree on a name for this round of the launch; returns when all its ranks are there.

    When a node joins or leaves, torchrun starts all ranks anew, and they may find the store of the round before, with
    its tickets spent and its announcement still there. Nothing in their environment tells rounds apart (the count of
    restarts stays the same, and differs between nodes). But a round begins after all processes of the one before have
    ended: so a rank draws a number from the store's clock, and believes rank 0 only where it has drawn a later one.
    Rank 0 draws again and again until everybody has come.

    Raises:
        RunError: not all ranks came in time.
    """
    deadline = time.monotonic() + timeout_seconds
    arrived = store.add("lrs3_loader/clock", 1)
    name = f"lrs3_loader/{secrets.token_hex(8)}" if rank == 0 else ""
    while time.monotonic() < deadline:
        if rank == 0:
            now = store.add("lrs3_loader/clock", 1)
            store.set("lrs3_loader/round", json.dumps([now, name]))
            if store.add(f"{name}/arrived", 0) == world_size - 1:
                return name
        elif store.check(["lrs3_loader/round"]):
            drawn, name = json.loads(store.get("lrs3_loader/round"))
            if drawn > arrived:
                store.add(f"{name}/arrived", 1)
                return str(name)
        time.sleep(_POLL_SECONDS)
    raise RunError(f"not all of the {world_size} ranks came within {timeout_seconds:g} s; start them with torchrun")
