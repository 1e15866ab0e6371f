"""Leases over real stores, in threads and in processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest
import torch.distributed as dist

from lrs3_loader.work import WorkQueue, connect


def test_a_single_process_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    queue = connect()
    assert (queue.rank, queue.world_size) == (0, 1)
    assert list(queue.leases([7, 3, 5])) == [7, 3, 5]


def test_each_lease_comes_once_over_all_ranks() -> None:
    store = dist.HashStore()
    pending = list(range(500))
    taken: list[list[int]] = [[] for _ in range(4)]

    def work(rank: int) -> None:
        taken[rank].extend(WorkQueue(store, rank, 4).leases(pending))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for part in taken for index in part) == pending


def test_leases_are_drawn_one_at_a_time() -> None:
    store = dist.HashStore()
    first, second = WorkQueue(store, 0, 2), WorkQueue(store, 1, 2)
    leases = first.leases([0, 1, 2])
    assert next(leases) == 0
    assert list(second.leases([0, 1, 2])) == [1, 2]
    assert list(leases) == []


def test_counters_and_announcements_are_shared() -> None:
    store = dist.HashStore()
    first, second = WorkQueue(store, 0, 2), WorkQueue(store, 1, 2)
    first.add("clips", 3)
    second.add("clips", 4)
    assert first.add("clips", 0) == 7
    first.announce({"pending": [1, 2]})
    assert second.announcement() == {"pending": [1, 2]}


@pytest.mark.parametrize("rank", [-1, 2])
def test_refuses_a_rank_outside_the_world(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must lie in"):
        WorkQueue(dist.HashStore(), rank, 2)


def test_ranks_of_separate_processes_meet() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = (
        "from lrs3_loader.work import connect\n"
        "import time\n"
        "queue = connect()\n"
        "mine = list(queue.leases(list(range(40))))\n"
        "queue.add('done', 1)\n"
        "while queue.add('done', 0) < 2: time.sleep(.05)\n"
        "print(*mine)\n"
        "queue.add('left', 1)\n"
        "while queue.rank == 0 and queue.add('left', 0) < 2: time.sleep(.05)\n"
    )
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert sorted(int(word) for output in outputs for word in output.split()) == list(range(40))
