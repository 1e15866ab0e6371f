"""Schedules of ranks, launches and readers under a simulated clock; ``tools/bench.py faults`` runs thousands."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.faults import scenarios
from benchmarks.faults.calls import Killed
from benchmarks.faults.scenarios import Laboratory
from benchmarks.faults.scheduler import Process, Scheduler, SimulatedThreading, SimulatedTime
from benchmarks.faults.simulation import Finding, simulate
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.run.lock import RunLock
from lrs3_loader.types import Clip, ClipFeatures
from support.fault_tools import IS_THOROUGH

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="file calls cannot be replaced before Python 3.11"),
]

NUM_SCHEDULES = 1_000 if IS_THOROUGH else 60


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as one:
        one.tars()
        yield one


def schedules(laboratory: Laboratory, count: int) -> Iterator[Finding]:
    for seed in range(count):
        yield simulate(laboratory, seed)


def test_whatever_happens_each_shard_is_published_whole_and_once(laboratory: Laboratory) -> None:
    """A failure is seen in full with ``tools/bench.py faults --points 0 --states 0 --schedules 1 --seed N``."""
    happened = set()
    for found in schedules(laboratory, NUM_SCHEDULES):
        assert not found.problems, f"seed {found.seed}: {found.problems}"
        happened |= set(found.events)
    wanted = {"launches", "ranks killed", "ranks suspended", "launches suspended", "machines lost", "elastic restarts"}
    assert happened == wanted | {"slow disks", "shards published", "samples read"}


def test_a_schedule_follows_from_its_seed(laboratory: Laboratory) -> None:
    assert simulate(laboratory, 3).log == simulate(laboratory, 3).log != simulate(laboratory, 4).log


# That schedules find what they are for ---------------------------------------------------------------------------


def check_found(laboratory: Laboratory, text: str) -> None:
    """One of some schedules has a problem with these words."""
    for found in schedules(laboratory, 40):
        if any(text in problem for problem in found.problems + found.known):
            return
    pytest.fail(f"no schedule has a problem with {text!r}")


def test_they_find_a_lock_that_admits_all(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLock, "_lock_file", lambda self: True)
    monkeypatch.setattr(RunLock, "_succeed", lambda self, last, has_locks: True)
    check_found(laboratory, "has the run lock")


def test_they_find_leases_that_are_lost(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = WorkQueue.leases

    def skips_one(self: WorkQueue, pending: list[int], name: str = "tickets") -> Iterator[int]:
        yield from (index for index in real(self, pending, name) if index != 2)

    monkeypatch.setattr(WorkQueue, "leases", skips_one)
    check_found(laboratory, "3 samples and 2 rejects of 6 clips")


def test_they_find_bytes_that_differ(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    real, numbers = scenarios.tiny_features, itertools.count()

    def differs(clip: Clip, *wanted: Any) -> ClipFeatures:
        features = real(clip, *wanted)
        features.arrays["f0"][0] += next(numbers)
        return features

    monkeypatch.setattr(scenarios, "tiny_features", differs)
    check_found(laboratory, "has other bytes than in an undisturbed run")


# The scheduler ---------------------------------------------------------------------------------------------------


def test_tasks_run_one_at_a_time_in_the_order_of_the_clock() -> None:
    scheduler = Scheduler(0)
    time = SimulatedTime(scheduler)
    seen: list[tuple[str, float]] = []

    def sleep(name: str, seconds: float) -> None:
        for _ in range(2):
            time.sleep(seconds)
            seen.append((name, time.monotonic()))

    for name, seconds in (("slow", 50.0), ("fast", 20.0)):
        scheduler.spawn(Process(name, "here"), lambda name=name, seconds=seconds: sleep(name, seconds))  # type: ignore[misc]
    scheduler.run()
    assert seen == [("fast", 20.0), ("fast", 40.0), ("slow", 50.0), ("slow", 100.0)]


def test_a_suspended_process_goes_on_later_and_a_killed_one_never() -> None:
    scheduler = Scheduler(0)
    ends: list[float] = []

    def body() -> None:
        scheduler.pause(10)
        ends.append(scheduler.now)

    suspended, killed = Process("suspended", "here"), Process("killed", "here")
    for process in (suspended, killed):
        scheduler.spawn(process, body)
    scheduler.run(until=5)
    scheduler.suspend(suspended, 300)
    scheduler.kill(killed)
    scheduler.run()
    assert ends == [305.0]
    assert scheduler.crashes == []


def test_threads_and_events_are_simulated() -> None:
    scheduler = Scheduler(0)
    threads = SimulatedThreading(scheduler)
    seen: list[object] = []

    def main() -> None:
        event = threads.Event()
        thread = threads.Thread(target=lambda: seen.append(event.wait(1_000.0)), name="x", daemon=True)
        thread.start()
        scheduler.pause(7)
        event.set()
        thread.join(timeout=5.0)
        seen.append(scheduler.now)

    scheduler.spawn(Process("main", "here"), main)
    scheduler.run()
    assert seen[0] is True
    assert 7.0 <= float(str(seen[1])) < 8.0


def test_a_crash_is_kept() -> None:
    scheduler = Scheduler(0)
    scheduler.spawn(Process("a", "here"), lambda: [][0])
    scheduler.run()
    assert [type(error) for _, error in scheduler.crashes] == [IndexError]
    assert not isinstance(scheduler.crashes[0][1], Killed)
