"""Decode processes by themselves: what a killed one leaves behind, when one counts as dead, where they start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lrs3_loader.decode.workers import StartMethod, WorkerPool


def _look_for_ever(event: Any) -> None:
    while True:
        event.is_set()


def test_workers_killed_while_they_look_do_not_keep_the_event_locked() -> None:
    """The DataLoader sets one event when it ends, and its workers look at it before every item."""
    pool = WorkerPool(1, deadline_seconds=60, start_method="forkserver")
    event = pool.context.Event()
    for _ in range(5):
        process = pool.context.Process(target=_look_for_ever, args=(event,), daemon=True)
        process.start()
        time.sleep(0.5)
        process.kill()
        process.join()
    setter = threading.Thread(target=event.set, daemon=True)
    setter.start()
    setter.join(10)
    assert not setter.is_alive()
    assert event.is_set()
    pool.close()


def _dies_slowly() -> None:
    os.closerange(3, 100)
    time.sleep(1)
    os._exit(7)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_one_that_is_still_dying_counts_as_dead(start_method: StartMethod) -> None:
    """The kernel closes the files of a process first, which breaks its connections."""
    pool = WorkerPool(1, deadline_seconds=60, start_method=start_method)
    process = pool.context.Process(target=_dies_slowly)
    process.start()
    assert pool.dead() == []
    assert pool.dead(wait_seconds=30) == [0]
    assert process.exitcode == 7
    pool.close()


def test_a_folder_for_sockets_with_too_long_a_name_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    code = "from lrs3_loader.decode.workers import prepare_parent\nprepare_parent('forkserver', [])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"RunError: decode workers cannot be started from {long} (AF_UNIX path too long)" in done.stderr
