"""Reads a run while it is written: its shards in the order of the plan, each as soon as it is published.

The order of the plan is known to all ranks and workers, and stays the same after a restart. The extraction takes shards
in this order as well, so the shard waited for is always among those in progress.
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
    """Wait until a run has begun in a folder or at a URL, and open it."""
    wait = _Wait(poll_seconds, log_waits)
    while not RunFolder.exists(path):
        wait.sleep(f"a run to begin in {path}")
    wait.end()
    return RunFolder.open(path)


def follow(folder: RunFolder, poll_seconds: float, log_waits: bool) -> Iterator[Source]:
    """Yield every shard of the run's plan, waiting for those that are not published yet.

    This also waits for a tar that does not match its ledger, which a restarted extraction replaces, and names it in the
    log. Of several readers, only one should have ``log_waits``.
    """
    for number, shard in enumerate(folder.shards, 1):
        wait = _Wait(poll_seconds, log_waits)
        source, problem = published_source(folder, shard)
        while source is None:
            trouble = f" ({problem})" if problem else ""
            wait.sleep(f"{shard.name}, shard {number} of {len(folder.shards)}, in {folder.path}{trouble}")
            source, problem = published_source(folder, shard)
        wait.end()
        yield source


class _Wait:
    """Sleeps, and logs what it waits for at once and then every minute."""

    def __init__(self, poll_seconds: float, log_waits: bool):
        self._poll_seconds = poll_seconds
        self._log_waits = log_waits
        self._started: float | None = None
        self._logged_at = 0.0

    def sleep(self, what: str) -> None:
        now = time.monotonic()
        if self._started is None or now - self._logged_at >= _MESSAGE_SECONDS:
            self._started = now if self._started is None else self._started
            self._logged_at = now
            if self._log_waits:
                # A warning, so that it is seen without logging being configured in the worker process.
                logger.warning("waiting for %s (%.0f s so far)", what, now - self._started)
        time.sleep(self._poll_seconds)

    def end(self) -> None:
        if self._started is not None and self._log_waits:
            logger.warning("waited %.0f s, going on", time.monotonic() - self._started)
        self._started = None
