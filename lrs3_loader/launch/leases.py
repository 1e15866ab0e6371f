"""Assigns shards to ranks: leases drawn from a counter in the store that torch.distributed already has.

A fast rank draws more often. A lease costs one round trip to the store and is not returned: shards of a lost rank are
found unpublished by the next launch, by the next round of an elastic launch, or by rank 0 after all others are done.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lrs3_loader.errors import RunError

START_TIMEOUT_SECONDS = 1800.0  # for all ranks to start
ANNOUNCEMENT_SECONDS = 6 * 3600.0  # for rank 0 to prepare the run
UNRESPONSIVE_SECONDS = 900.0  # a rank without progress for this long counts as lost; no clip takes a tenth of it
_POLL_SECONDS = 0.2

Answer = TypeVar("Answer")


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
        if "pending" in message:  # as ranges [start, stop), so that a message about 100,000 shards stays short
            indices = np.array(message["pending"], dtype=int)
            runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
            message = {**message, "pending": [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]}
        self._ask(lambda: self._store.set("launch", json.dumps(message)))

    def announcement(self) -> dict[str, Any]:
        """Wait for rank 0's announcement, for hours if need be: it may be scanning a large corpus.

        Raises:
            RunError: rank 0 has announced nothing within six hours.
        """
        until = time.monotonic() + ANNOUNCEMENT_SECONDS
        while not self._ask(lambda: self._store.check(["launch"])):  # ``wait`` would not be interrupted by signals
            if time.monotonic() > until:
                raise RunError(f"rank 0 has not prepared the run within {ANNOUNCEMENT_SECONDS:g} s; look at its log")
            time.sleep(_POLL_SECONDS)
        message: dict[str, Any] = json.loads(self._ask(lambda: self._store.get("launch")))
        if "pending" in message:
            message["pending"] = [index for start, stop in message["pending"] for index in range(start, stop)]
        return message

    def leases(self, pending: Sequence[int], name: str = "tickets") -> Iterator[int]:
        """Draw shard indices until none is left; each goes to exactly one rank. Each ``name`` has its own counter."""
        while (ticket := self._add(name, 1)) <= len(pending):
            self.heartbeat()
            yield pending[ticket - 1]

    def heartbeat(self) -> None:
        """Report that this rank is making progress (see ``wait_for_all``)."""
        self._add(f"beat/{self.rank}", 1)

    def leave(self) -> None:
        """Report that this rank has nothing left to do."""
        self._ask(lambda: self._store.set(f"left/{self.rank}", ""))
        self._add("ranks_left", 1)

    def wait_for_all(self, unresponsive_seconds: float = UNRESPONSIVE_SECONDS) -> list[int]:
        """Wait until every rank has left or stopped responding; returns the ranks that stopped.

        Without collectives nothing else would notice a lost rank. If it recovers afterwards, it does no harm: it
        publishes the same bytes.
        """
        seen: dict[int, tuple[int, float]] = {}  # rank -> (count of its heartbeats, since when)
        looked = time.monotonic()
        while self._add("ranks_left", 0) < self.world_size:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if now - looked < min(10.0, unresponsive_seconds / 4):
                continue
            looked = now
            others = [rank for rank in range(self.world_size) if not self._has_left(rank)]
            for rank in others:
                count = self._add(f"beat/{rank}", 0)
                if rank not in seen or seen[rank][0] != count:
                    seen[rank] = count, now
            unresponsive = [rank for rank in others if now - seen[rank][1] > unresponsive_seconds]
            if others and len(unresponsive) == len(others):
                return unresponsive
        return []

    def _has_left(self, rank: int) -> bool:
        return self._ask(lambda: self._store.check([f"left/{rank}"]))

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter that all ranks share; returns its new value (``amount=0`` reads it)."""
        return self._add(f"count/{counter}", amount)

    def _add(self, name: str, amount: int) -> int:
        return self._ask(lambda: self._store.add(name, amount))

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        try:
            return request()
        except dist.DistError as error:
            raise RunError(
                f"rank {self.rank} has lost the store of this launch ({str(error).splitlines()[0]}): the machine that "
                "holds it is gone; run the same command again to resume"
            ) from error


def connect() -> WorkQueue:
    """Return the queue of this launch, on torchrun's store, or on a private one for a single process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return WorkQueue(dist.HashStore(), rank=0, world_size=1)
    try:
        store, rank, world_size = next(rendezvous("env://"))
        name = agree_on_round(store, rank, world_size)
    except (ValueError, dist.DistError) as error:
        raise RunError(f"the ranks could not connect to one another ({error}); start them with torchrun") from error
    return WorkQueue(dist.PrefixStore(name, store), rank, world_size)


def agree_on_round(
    store: dist.Store, rank: int, world_size: int, timeout_seconds: float = START_TIMEOUT_SECONDS
) -> str:
    """Agree on a name for this round of the launch; returns when all its ranks have started.

    When a node joins or leaves, torchrun restarts all ranks, and they may find the store of the previous round, with
    its counters used up and its announcement still set. Nothing in their environment tells rounds apart (the count of
    restarts stays the same, and differs between nodes). But a round starts after all processes of the previous one have
    ended, so each rank draws a number from a counter in the store, and accepts only an announcement by rank 0 with a
    later number. Rank 0 repeats its announcement until all ranks have arrived.

    Raises:
        RunError: not all ranks arrived in time.
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
    raise RunError(f"not all of the {world_size} ranks started within {timeout_seconds:g} s; start them with torchrun")
