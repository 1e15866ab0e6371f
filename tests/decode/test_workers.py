"""Decode processes by themselves: messages, when one counts as dead, where they start."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lrs3_loader.decode import shared_memory
from lrs3_loader.decode.shared_memory import Channel
from lrs3_loader.decode.workers import StartMethod, WorkerPool, WorkTable


def _dies_slowly(worker: int, channel: Channel, table: WorkTable) -> None:
    channel.receive()
    channel.close()
    time.sleep(1)
    os._exit(7)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_one_that_is_still_dying_counts_as_dead(start_method: StartMethod) -> None:
    """The kernel closes the files of a process before the process has ended."""
    pool = WorkerPool(1, deadline_seconds=60, start_method=start_method, serve=_dies_slowly)
    pool.channels[0].send(1, "request")
    assert pool.wait(60) == [0]
    with pytest.raises(EOFError):
        pool.channels[0].receive()
    assert pool.exit_code(0) == 7
    first = pool.processes[0].pid
    pool.restart(0)
    assert pool.processes[0].pid != first
    assert pool.wait(0) == []
    pool.close()


def _answers(worker: int, channel: Channel, table: WorkTable) -> None:
    number, text = channel.receive()
    with table.working_on(worker, number):
        channel.send(number, (worker, text, table.read(worker)[0]))
    channel.receive()


def test_requests_are_answered_and_the_table_is_shared() -> None:
    with_text = "x" * 10**6  # more than a pipe or socket holds
    pool = WorkerPool(2, deadline_seconds=60, start_method="forkserver", serve=_answers)
    for worker in (0, 1):
        pool.channels[worker].send(5 + worker, with_text)
    for worker in (0, 1):
        assert pool.channels[worker].receive() == (5 + worker, (worker, with_text, 5 + worker))
    pool.close()


def test_nothing_is_lost_or_blocks_when_nobody_receives() -> None:
    ours, theirs = Channel.pair()
    for number in range(100):
        ours.send(number, torch.full((10**6,), float(number)))
    ours.close()
    for number in range(100):
        assert float(theirs.receive()[1].mean()) == number
    with pytest.raises(EOFError):
        theirs.receive()
    theirs.close()


def test_more_memory_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(shared_memory, "available_bytes", lambda: 5 << 20)
    with pytest.raises(MemoryError, match="6 MiB wanted, 5 MiB free"):
        shared_memory.create_shared(6 << 20)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match="4 MiB wanted: No space left"):
        shared_memory.create_shared(4 << 20)
    assert len(os.listdir("/proc/self/fd")) == before


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
