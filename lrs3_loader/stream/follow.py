"""Reading a run while it is written: its shards in the order of the plan, each as soon as its ledger is there.

The order is the plan's, not that of appearance: so all ranks and workers agree on it without talking to one another,
and a position in it means the same after a restart. A writer leases shards in that order too, so what is waited for
is always among the shards in flight.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream.sources import Source, published_source

logger = logging.getLogger(__name__)

_MESSAGE_SECONDS = 60.0  # between two messages of one wait


def wait_for_run(path: str | Path, poll_seconds: float, log_waits: bool) -> RunFolder:
    """The run in a folder or behind a URL, once it has begun."""
    wait = _Wait(poll_seconds, log_waits)
    while not RunFolder.exists(path):
        wait.tick(f"a run to begin in {path}")
    wait.over()
    return RunFolder.open(path)


def follow(folder: RunFolder, poll_seconds: float, log_waits: bool) -> Iterator[Source]:
    """Every shard of the run's plan; returns after the last.

    A tar that does not match its ledger is waited for as well (a restarted writer makes it anew) and named in the
    messages. Of many readers only one should log that it waits.
    """
    for number, shard in enumerate(folder.shards, 1):
        wait = _Wait(poll_seconds, log_waits)
        source, problem = published_source(folder, shard)
        while source is None:
            trouble = f" ({problem})" if problem else ""
            wait.tick(f"{shard.name}, shard {number} of {len(folder.shards)}, in {folder.path}{trouble}")
            source, problem = published_source(folder, shard)
        wait.over()
        yield source


class _Wait:
    """Sleeps, and says what for: at once, then every minute."""

    def __init__(self, poll_seconds: float, log_waits: bool):
        self._poll_seconds = poll_seconds
        self._log_waits = log_waits
        self._started: float | None = None
        self._spoken = 0.0

    def tick(self, what: str) -> None:
        now = time.monotonic()
        if self._started is None or now - self._spoken >= _MESSAGE_SECONDS:
            self._started = now if self._started is None else self._started
            self._spoken = now
            if self._log_waits:
                # A warning: what a worker process says must be seen without any logging being set up.
                logger.warning("waiting for %s (%.0f s so far)", what, now - self._started)
        time.sleep(self._poll_seconds)

    def over(self) -> None:
        if self._started is not None and self._log_waits:
            logger.warning("waited %.0f s, going on", time.monotonic() - self._started)
        self._started = None
