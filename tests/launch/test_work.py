"""Leases over real stores, in threads and in processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from lrs3_loader.errors import RunError
from lrs3_loader.launch.leases import WorkQueue, agree_on_round, connect


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
        "from lrs3_loader.launch.leases import connect\n"
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


def draw(queue: WorkQueue, pending: list[int]) -> list[int]:
    return list(queue.leases(pending))


def test_a_round_is_not_taken_for_the_one_before() -> None:
    """Ranks that start anew find the old store; those that come first must not go on with what it holds."""
    store = dist.HashStore()

    def play_round(order: tuple[int, ...]) -> tuple[set[str], list[list[int]]]:
        names: dict[int, str] = {}

        def join(rank: int) -> None:
            names[rank] = agree_on_round(store, rank, len(order))

        threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
        for thread in threads:
            thread.start()
            time.sleep(0.3)  # the others are long in coming
        for thread in threads:
            thread.join()
        queues = [WorkQueue(dist.PrefixStore(names[rank], store), rank, len(order)) for rank in sorted(order)]
        queues[0].announce({"pending": [1, 2, 4]})
        return set(names.values()), [draw(queue, queue.announcement()["pending"]) for queue in queues]

    seen: set[str] = set()
    for order in ((0, 1), (1, 0), (0,), (2, 1, 0), (2, 0, 1)):
        names, drawn = play_round(order)
        assert len(names) == 1
        assert not names & seen
        assert drawn == [[1, 2, 4], *[[]] * (len(order) - 1)]
        seen |= names


def test_ranks_that_do_not_come_are_missed() -> None:
    with pytest.raises(RunError, match=r"not all of the 2 ranks started within 0\.3 s"):
        agree_on_round(dist.HashStore(), 0, 2, timeout_seconds=0.3)
    with pytest.raises(RunError, match="not all of the 2 ranks"):
        agree_on_round(dist.HashStore(), 1, 2, timeout_seconds=0.3)


@pytest.mark.parametrize("pending", [[], [0], [3, 4, 5], [0, 1, 7, 9, 10], list(range(1, 100_000))])
def test_any_indices_can_be_announced(pending: list[int]) -> None:
    queue = WorkQueue(dist.HashStore(), 0, 1)
    queue.announce({"pending": pending})
    assert queue.announcement() == {"pending": pending}


def test_a_silent_rank_is_told_from_one_at_work_and_one_that_left() -> None:
    store = dist.HashStore()
    queues = [WorkQueue(store, rank, 4) for rank in range(4)]
    queues[0].leave()
    queues[1].leave()
    stop = threading.Event()

    def work() -> None:
        for _ in range(10):
            queues[2].heartbeat()
            time.sleep(0.1)
        stop.set()
        queues[2].leave()

    thread = threading.Thread(target=work)
    thread.start()
    assert queues[0].wait_for_all(unresponsive_seconds=0.5) == [3]
    assert stop.is_set()  # the one at work was waited for
    thread.join()
    queues[3].leave()
    assert queues[0].wait_for_all() == []


def test_each_drawing_has_its_own_tickets() -> None:
    queue = WorkQueue(dist.HashStore(), 0, 1)
    assert list(queue.leases([1, 2])) == [1, 2]
    assert list(queue.leases([5, 6])) == []
    assert list(queue.leases([5, 6], "left")) == [5, 6]
