"""Which rank does which shard: leases from the store that torch.distributed already has.

Extraction needs no collectives, only this: a counter that every rank draws from. A fast rank draws more often, and a
run begun on four GPUs can be finished on one, because nothing about the plan depends on who does what.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lrs3_loader.errors import RunError


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
        self._store.set("launch", json.dumps(message))

    def announcement(self) -> dict[str, Any]:
        """Wait for what rank 0 announced (it may be scanning a large corpus: hours are allowed)."""
        self._store.wait(["launch"], timedelta(hours=6))
        message: dict[str, Any] = json.loads(self._store.get("launch"))
        return message

    def leases(self, pending: Sequence[int]) -> Iterator[int]:
        """Draw shard indices, one at a time, until none is left. Over all ranks each comes exactly once."""
        while (ticket := self._store.add("tickets", 1)) <= len(pending):
            yield pending[ticket - 1]

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter that all ranks share; returns its new value (``amount=0`` reads it)."""
        return self._store.add(f"count/{counter}", amount)


def connect() -> WorkQueue:
    """The queue of this launch: torchrun's own store, or a private one when started as a single process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return WorkQueue(dist.HashStore(), rank=0, world_size=1)
    try:
        store, rank, world_size = next(rendezvous("env://"))
    except (ValueError, dist.DistError) as error:
        raise RunError(f"the ranks could not meet ({error}); start them with torchrun") from error
    # An elastic restart may meet the store of the attempt before: its tickets are spent.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return WorkQueue(dist.PrefixStore(f"lrs3_loader/{attempt}", store), rank, world_size)
