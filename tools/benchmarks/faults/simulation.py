"""Ranks, launches and readers of one run under a simulated clock, scheduler, store and network disk.

One schedule is drawn from one seed: machines come and go, ranks are killed or suspended, the disk and the store are
slow for a while, replies are lost, and a second user starts the same command. What runs is the product's own code:
``runner.run`` with leases, run lock, publishing and progress counters, and ``ShardStream`` that follows the run. Only
decoding and the models are stand-ins (see ``scenarios``).

In the end an undisturbed launch completes the run. Then every clip is a sample or a reject, once; every shard has the
bytes that it has in an undisturbed run, at any time at which it was visible; readers saw whole shards in order; and of
two launches only the one that held the run lock published.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist

from benchmarks.faults import scenarios
from benchmarks.faults.calls import Call, FileCalls, Handle, read_unwatched, watched
from benchmarks.faults.known import KNOWN_SCHEDULES
from benchmarks.faults.scenarios import KEYS, REJECTED, Laboratory, in_short, read_tree, tiny_features
from benchmarks.faults.scheduler import Process, Scheduler, SimulatedThreading, SimulatedTime
from lrs3_loader.config import CorpusConfig, LaunchConfig, PlanConfig, RunConfig, WorkerConfig, demo_defaults
from lrs3_loader.errors import RunError
from lrs3_loader.launch import leases, prepare, progress, runner
from lrs3_loader.launch.leases import WorkQueue, agree_on_round
from lrs3_loader.run import lock
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import plans
from lrs3_loader.stream.dataset import ShardStream
from lrs3_loader.types import Clip

HOSTS = ("node0", "node1", "node2")
HOURS = 10_000.0  # in seconds; more than a launch takes that nothing disturbs
_INSTANT = ("stat", "close", "read", "open", "chmod", "truncate")  # nothing that others could notice
_LOST = "lost"  # a key that no rank uses
_HORIZON = 600.0  # seconds in which things go wrong
_SUSPENSIONS = (5.0, 40.0, 90.0, 400.0, 2_000.0)  # around the 60 s of the lock and the 900 s of the leases
_LOCKS = ("everywhere", "on each machine", "nowhere")  # where the kernel locks of the disk work


@dataclass
class Finding:
    """One schedule: what happened and what was wrong."""

    seed: int
    problems: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)  # problems that are known, see ``known.KNOWN_SCHEDULES``
    events: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    num_switches: int = 0
    seconds: float = 0.0  # simulated


class SimulatedStore:
    """What ``leases`` uses of a ``torch.distributed`` store; every request takes time, and may fail."""

    def __init__(self, world: World, host: str, data: dict[str, Any] | None = None, prefix: str = ""):
        self._world = world
        self.host = host
        self._data = {} if data is None else data
        self._prefix = prefix

    @property
    def is_lost(self) -> bool:
        """True after the machine that holds the store was lost."""
        return _LOST in self._data

    def lose(self) -> None:
        self._data[_LOST] = True

    def prefixed(self, name: str) -> SimulatedStore:
        """Return the same store under a prefix, as ``dist.PrefixStore`` does."""
        return SimulatedStore(self._world, self.host, self._data, f"{self._prefix}{name}/")

    def _request(self, work: Callable[[], Any]) -> Any:
        world = self._world
        world.scheduler.pause(world.latency())
        if self.is_lost:
            raise dist.DistNetworkError("connection reset by peer")
        result = work()
        if world.loses_reply():
            world.scheduler.note("the reply of the store is lost")
            raise dist.DistNetworkError("connection reset by peer")
        return result

    def add(self, key: str, amount: int) -> int:
        def work() -> int:
            value = int(self._data.get(self._prefix + key, 0)) + amount
            self._data[self._prefix + key] = value
            return value

        return int(self._request(work))

    def set(self, key: str, value: str) -> None:
        self._request(lambda: self._data.__setitem__(self._prefix + key, value))

    def get(self, key: str) -> bytes:
        return str(self._request(lambda: self._data[self._prefix + key])).encode()

    def check(self, keys: list[str]) -> bool:
        return bool(self._request(lambda: all(self._prefix + key in self._data for key in keys)))


class _WorldCalls(FileCalls):
    """File calls of many processes on one disk."""

    def __init__(self, world: World):
        super().__init__(world.laboratory.world, before=world.before_call, after=world.after_call, lock=world.flock)
        self._world = world
        self._owners: dict[int, Process] = {}
        self._inodes: dict[Handle, int] = {}
        self._kernel_locks: dict[tuple[str, int], Handle] = {}  # by host and inode

    def is_dead(self) -> bool:
        scheduler = self._world.scheduler
        return scheduler.is_running and scheduler.process.is_dead

    def die(self) -> None:
        self._world.scheduler.kill(self._world.scheduler.process)

    def opened(self, descriptor: int, handle: Handle, is_owned: bool) -> None:
        super().opened(descriptor, handle, is_owned)
        self._owners[descriptor] = self._world.scheduler.process
        self._inodes[handle] = os.fstat(descriptor).st_ino

    def closed(self, descriptor: int) -> None:
        handle = self.handle(descriptor)
        self._kernel_locks = {key: held for key, held in self._kernel_locks.items() if held is not handle}
        super().closed(descriptor)

    def take(self, handle: Handle, host: str) -> None:
        """Take a kernel lock of a file on one machine, or on all (an empty name), or raise."""
        key = host, self._inodes[handle]
        if self._kernel_locks.setdefault(key, handle) is not handle:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    def close_of(self, process: Process) -> None:
        """Close what a process that has ended had open."""
        for descriptor in [found for found in self._unowned if self._owners.get(found) is process]:
            os.close(descriptor)


@dataclass(eq=False)
class Launch:
    """One start of the command, on some machines."""

    name: str
    hosts: list[str]  # of its ranks; the store lives on the first
    store: SimulatedStore
    attempt: int = 0  # number of elastic restarts that torchrun counts
    num_rounds: int = 0
    ranks: list[Process] = field(default_factory=list)
    agent: Process | None = None

    @property
    def is_over(self) -> bool:
        return all(process.ending for process in self.ranks)


class World:
    """One schedule.

    Args:
        laboratory: where it happens; already entered.
        seed: decides everything.
    """

    def __init__(self, laboratory: Laboratory, seed: int):
        self.laboratory = laboratory
        self.scheduler = Scheduler(seed)
        self.finding = Finding(seed)
        draw = self.scheduler.draw
        self.locks = draw.choice(_LOCKS)
        self._disk_seconds = draw.choice((0.001, 0.01, 0.2))
        self._store_seconds = draw.choice((0.001, 0.02))
        self._work_seconds = draw.choice((1.0, 20.0, 60.0))
        self._slow_until: dict[str, float] = {}
        self._loses_replies = draw.random() < 0.2
        self._is_calm = False
        self._calls = _WorldCalls(self)
        self._launches: list[Launch] = []
        self._launch_of: dict[Process, Launch] = {}
        self._holder: Launch | None = None  # who took the run lock last
        self._numbers: dict[Process, int] = {}  # process ids
        self._wanted = laboratory.tars()

    # What the stand-ins ask -------------------------------------------------------------------------------------------

    def latency(self) -> float:
        """Seconds that a request to the store takes."""
        return self._store_seconds * self.scheduler.draw.uniform(0.5, 2.0)

    def loses_reply(self) -> bool:
        """Tell whether the reply to a request of the store is lost."""
        return self._loses_replies and not self._is_calm and self.scheduler.draw.random() < 0.002

    def work(self) -> None:
        """Take the time that extracting a shard takes."""
        self.scheduler.pause(self._work_seconds * self.scheduler.draw.uniform(0.2, 2.0))

    def before_call(self, call: Call) -> None:
        """Take the time that a file call takes."""
        seconds = self._disk_seconds * self.scheduler.draw.uniform(0.2, 2.0)
        if call.kind in _INSTANT or not self.scheduler.is_running:
            return
        if self.scheduler.now < self._slow_until.get(self.scheduler.process.host, 0.0):
            seconds *= 100
        self.scheduler.pause(seconds)

    def after_call(self, call: Call) -> None:
        """Look at what has become visible."""
        if call.kind != "rename" or not call.target.startswith(("run/shards/", "run/ledger/")):
            return
        path = self.laboratory.world / call.target
        if call.target.endswith(".tar"):
            self._published(call.target)
            shard = path.name.partition(".")[0]
            if hashlib.sha256(read_unwatched(path)).hexdigest() != self._wanted[shard]:
                self.problem(f"{call.target} has other bytes than in an undisturbed run")
        elif json.loads(read_unwatched(path))["sha256"] != self._wanted[path.stem]:
            self.problem(f"{call.target} records another tar than that of an undisturbed run")

    def _published(self, path: str) -> None:
        own = self._launch_of[self.scheduler.process]
        self.finding.events["shards published"] += 1
        self.scheduler.note(f"publishes {path}")
        if self._holder is not None and own is not self._holder:
            self.problem(f"{own.name} publishes {path} although {self._holder.name} has the run lock")

    def flock(self, handle: Handle, operation: int, real: Callable[[], None]) -> None:
        """Stand in for the kernel's locks."""
        if self.locks == "nowhere":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        self._calls.take(handle, "" if self.locks == "everywhere" else self.scheduler.process.host)

    def problem(self, text: str) -> None:
        is_known = any(fnmatch.fnmatchcase(text, pattern) for pattern in KNOWN_SCHEDULES)
        self.scheduler.note(f"{'known' if is_known else 'PROBLEM'}: {text}")
        (self.finding.known if is_known else self.finding.problems).append(text)

    # Processes --------------------------------------------------------------------------------------------------------

    def process(self, kind: str, host: str) -> Process:
        offset = 1_000.0 * (sum(host.encode()) % 97)
        process = Process(f"{kind}", host, clock_offset=offset)
        self._numbers[process] = len(self._numbers) + 1
        return process

    def holder_record(self) -> lock.Holder:
        """Stand in for ``Holder.me``: the record of a simulated process."""
        process = self.scheduler.process
        own = self._launch_of[process]
        number = self._numbers[process]
        return lock.Holder(
            token=f"{process.name}@{self.scheduler.now}",
            host=process.host,
            boot=process.host,
            pid_namespace="pid:[1]",
            pid=number,
            start_ticks=number,
            launch=own.name,
            attempt=own.attempt,
            since="2026-01-01 00:00:00",
        )

    def start_ticks(self, pid: int) -> int | None:
        """Stand in for the start of a process as /proc gives it; None if it has ended."""
        return pid if any(number == pid and not one.is_dead for one, number in self._numbers.items()) else None

    def start_launch(self, hosts: list[str], store: SimulatedStore | None = None, attempt: int = 0) -> Launch:
        """Start the command with a rank on each of these machines (one may be named several times)."""
        name = f"launch{len(self._launches)}"
        launch = Launch(name, hosts, store or SimulatedStore(self, hosts[0]), attempt)
        self._launches.append(launch)
        self.finding.events["launches"] += 1
        self.scheduler.note(f"{name} starts on {', '.join(hosts)}")
        self._start_ranks(launch)
        return launch

    def _start_ranks(self, launch: Launch) -> None:
        launch.num_rounds += 1
        launch.ranks = [
            self.process(f"{launch.name}.{launch.num_rounds}.{rank}", host) for rank, host in enumerate(launch.hosts)
        ]
        for rank, process in enumerate(launch.ranks):
            self._launch_of[process] = launch
            self._spawn_rank(launch, process, rank)
        launch.agent = self.process("agent", launch.hosts[0])
        self.scheduler.spawn(launch.agent, lambda: self._agent(launch))

    def _spawn_rank(self, launch: Launch, process: Process, rank: int) -> None:
        world_size = len(launch.hosts)

        def body() -> None:
            try:
                name = self._agree(launch, rank)
                queue = WorkQueue(launch.store.prefixed(name), rank, world_size)  # type: ignore[arg-type]
                runner.run(self._config(), self._launch_config(), queue)
                process.ending = "done"
            except RunError as error:
                process.ending = f"error: {error}"
            except SystemExit:
                process.ending = "error: told by rank 0"
            finally:
                self.scheduler.log.append(f"{self.scheduler.now:10.2f}  {process.name:<12}  ends: {process.ending}")
                self._end(process)

        self.scheduler.spawn(process, body)

    def _agree(self, launch: Launch, rank: int) -> str:
        try:
            return agree_on_round(launch.store, rank, len(launch.hosts))  # type: ignore[arg-type]
        except dist.DistError as error:
            raise RunError(f"the ranks could not connect to one another ({error})") from error  # as ``connect`` does

    def _end(self, process: Process) -> None:
        process.ending = process.ending or "killed"
        process.is_dead = True
        self._calls.close_of(process)

    def _agent(self, launch: Launch) -> None:
        """Do as torchrun does: when a rank fails, end the others; they end with their agent."""
        while not launch.is_over:
            self.scheduler.pause(5.0)
            if any(process.ending and process.ending != "done" for process in launch.ranks):
                self.scheduler.pause(self.scheduler.draw.uniform(0.0, 5.0))
                self.kill(launch)

    def kill(self, launch: Launch) -> None:
        """Kill all ranks of a launch."""
        for process in launch.ranks:
            if not process.is_dead:
                self.kill_process(process)

    def kill_process(self, process: Process) -> None:
        self.scheduler.note(f"{process.name} is killed")
        self.scheduler.kill(process)

    def _config(self) -> RunConfig:
        config = demo_defaults(RunConfig())
        corpus = CorpusConfig(corpus=self.laboratory.corpus)
        return replace(config, corpus=corpus, plan=PlanConfig(shard_clips=1))

    def _launch_config(self) -> LaunchConfig:
        return LaunchConfig(out=self.laboratory.world / "run", device="cpu", workers=WorkerConfig(num_workers=1))

    # What goes wrong --------------------------------------------------------------------------------------------------

    def _misfortunes(self) -> None:
        """Let things happen for a while."""
        draw, scheduler = self.scheduler.draw, self.scheduler
        self.start_launch([draw.choice(HOSTS) for _ in range(draw.choice((1, 2, 3, 4)))])
        happenings = (
            (self._kill_a_rank, 3),
            (self._suspend_a_rank, 4),
            (self._suspend_a_launch, 2),
            (self._lose_a_host, 1),
            (self._restart_elastic, 2),
            (self._slow_disk, 2),
            (self._start_another, 3),
        )
        kinds = [happening for happening, weight in happenings for _ in range(weight)]
        while scheduler.now < _HORIZON:
            scheduler.pause(draw.choice((2.0, 20.0, 60.0)) * draw.uniform(0.1, 2.0))
            draw.choice(kinds)()

    def _alive(self) -> list[Process]:
        return [process for launch in self._launches for process in launch.ranks if not process.is_dead]

    def _kill_a_rank(self) -> None:
        if alive := self._alive():
            self.finding.events["ranks killed"] += 1
            self.kill_process(self.scheduler.draw.choice(alive))

    def _suspend_a_rank(self) -> None:
        if alive := self._alive():
            seconds, process = self.scheduler.draw.choice(_SUSPENSIONS), self.scheduler.draw.choice(alive)
            self.finding.events["ranks suspended"] += 1
            self.scheduler.note(f"{process.name} is suspended for {seconds:g} s")
            self.scheduler.suspend(process, seconds)

    def _suspend_a_launch(self) -> None:
        if running := [launch for launch in self._launches if not launch.is_over]:
            seconds, launch = self.scheduler.draw.choice(_SUSPENSIONS), self.scheduler.draw.choice(running)
            self.finding.events["launches suspended"] += 1
            self.scheduler.note(f"{launch.name} is suspended for {seconds:g} s")
            for process in launch.ranks:
                self.scheduler.suspend(process, seconds)

    def _lose_a_host(self) -> None:
        host = self.scheduler.draw.choice(HOSTS)
        self.finding.events["machines lost"] += 1
        self.scheduler.note(f"{host} is lost")
        for process in self._alive():
            if process.host == host:
                self.kill_process(process)
        for launch in self._launches:
            if launch.store.host == host:
                launch.store.lose()
            if launch.agent is not None and launch.agent.host == host:
                self.scheduler.kill(launch.agent)

    def _restart_elastic(self) -> None:
        running = [launch for launch in self._launches if not launch.is_over and not launch.store.is_lost]
        if not running:
            return
        launch, draw = self.scheduler.draw.choice(running), self.scheduler.draw
        self.finding.events["elastic restarts"] += 1
        self.kill(launch)
        if launch.agent is not None:
            self.scheduler.kill(launch.agent)
        self.scheduler.pause(draw.uniform(0.1, 10.0))
        launch.hosts = [launch.hosts[0], *(draw.choice(HOSTS) for _ in range(draw.choice((0, 1, 2, 3))))]
        launch.attempt += draw.choice((0, 1))
        self.scheduler.note(f"{launch.name} is restarted on {', '.join(launch.hosts)}")
        self._start_ranks(launch)

    def _slow_disk(self) -> None:
        host, seconds = self.scheduler.draw.choice(HOSTS), self.scheduler.draw.choice((10.0, 100.0, 1_000.0))
        self.finding.events["slow disks"] += 1
        self.scheduler.note(f"the disk is slow on {host} for {seconds:g} s")
        self._slow_until[host] = self.scheduler.now + seconds

    def _start_another(self) -> None:
        if sum(not launch.is_over for launch in self._launches) < 3:
            draw = self.scheduler.draw
            self.start_launch([draw.choice(HOSTS) for _ in range(draw.choice((1, 1, 2)))])

    # Readers ----------------------------------------------------------------------------------------------------------

    def _reader(self) -> None:
        """Follow the run from its beginning and check every sample."""
        stream = ShardStream(
            self.laboratory.world / "run", "raw", follow=True, poll_seconds=20.0, shuffle=False, rank=0, world_size=1
        )
        keys = []
        for sample in stream:
            keys.append(str(sample["__key__"]))
            wanted = tiny_features(Clip(keys[-1], "", 1)).arrays
            if any(not np.array_equal(sample[name], wanted[name]) for name in wanted):
                self.problem(f"a reader got other contents of {keys[-1]}")
        self.finding.events["samples read"] += len(keys)
        if keys != [key for key in KEYS if key not in REJECTED]:
            self.problem(f"a reader got {keys}")

    # One schedule -----------------------------------------------------------------------------------------------------

    def run(self) -> Finding:
        """Let the schedule happen and check what is left."""
        scheduler, finding = self.scheduler, self.finding
        self.laboratory.restore({})
        scheduler.note(f"kernel locks work {self.locks}; file calls take {self._disk_seconds:g} s")
        with self._simulated():
            for number in range(2):
                scheduler.spawn(self.process(f"reader{number}", "node9"), self._reader)
            nemesis = scheduler.spawn(Process("nemesis", "node9"), self._misfortunes)
            scheduler.run(until=_HORIZON + 400.0)
            self._finish(nemesis.process)
            scheduler.run(until=scheduler.now + HOURS)
            for task in list(scheduler.tasks):
                self.problem(f"{task.process.name} is still at work hours later")
                scheduler.kill(task.process)
            scheduler.run()
        for process, error in scheduler.crashes:
            self.problem(f"{process.name} crashes: {in_short(error)}")
        self._check_end()
        finding.log, finding.num_switches, finding.seconds = scheduler.log, scheduler.num_switches, scheduler.now
        return finding

    def _finish(self, nemesis: Process) -> None:
        """End what goes wrong and all that runs; then launch the command again, as often as it refuses."""
        self.scheduler.kill(nemesis)
        self._is_calm = True
        self._slow_until.clear()

        def body() -> None:
            for launch in self._launches:
                self.kill(launch)
            for number in range(3):
                last = self.start_launch([HOSTS[number]] * 2)
                while not last.is_over:
                    self.scheduler.pause(10.0)
                if all(process.ending == "done" for process in last.ranks):
                    return
            self.problem(f"the last launch ends with {[process.ending for process in last.ranks]}")

        self.scheduler.spawn(Process("user", "node9"), body)

    def _check_end(self) -> None:
        folder = RunFolder.open(self.laboratory.world / "run")
        totals = folder.totals()
        if (totals.num_samples, len(totals.rejects)) != (len(KEYS) - len(REJECTED), len(REJECTED)):
            self.problem(f"{totals.num_samples} samples and {len(totals.rejects)} rejects of {len(KEYS)} clips")
        for shard, problems in folder.check():
            for text in problems:
                self.problem(f"in the end, {shard.name}: {text}")
        tree = read_tree(self.laboratory.world)
        for path in tree:
            if (path.startswith("run/tmp/") and path != "run/tmp/") or path.endswith(".lock"):
                self.problem(f"{path} is left over")

    @contextmanager
    def _simulated(self) -> Iterator[None]:
        """Replace clock, threads and processes in the modules that are simulated."""
        scheduler = self.scheduler
        time, threads = SimulatedTime(scheduler), SimulatedThreading(scheduler)
        enter, end = lock.RunLock.__enter__, lock.RunLock.__exit__

        def entered(own: lock.RunLock) -> lock.RunLock:
            result = enter(own)
            self._holder = self._launch_of[scheduler.process]
            scheduler.note("has the run lock")
            return result

        def left(own: lock.RunLock, *error: Any) -> None:
            if self._holder is self._launch_of[scheduler.process]:
                self._holder = None
            end(own, *error)

        world = self

        class Extractor(scenarios._Extractor):
            def process_frames(self, *arguments: Any) -> Any:
                world.work()
                return super().process_frames(*arguments)

        def extractor(config: Any, models: Any, device: Any) -> Extractor:
            return Extractor(config, device, is_second=False)

        def end_process() -> None:
            scheduler.note("has lost the run lock and ends")
            world.kill_process(scheduler.process)

        with ExitStack() as stack:
            logging.disable(logging.CRITICAL)
            stack.callback(logging.disable, logging.NOTSET)
            patch = stack.enter_context
            for module in (lock, leases, plans, progress, runner):
                patch(mock.patch.object(module, "time", time))
            patch(mock.patch.object(lock, "threading", threads))
            patch(mock.patch.object(leases, "_POLL_SECONDS", 5.0))
            patch(mock.patch.object(lock, "SETTLE_SECONDS", 1.0))
            patch(mock.patch.object(lock, "_start_ticks", self.start_ticks))
            patch(mock.patch.object(lock, "_end_this_process", end_process))
            patch(mock.patch.object(lock.Holder, "me", self.holder_record))
            patch(mock.patch.object(lock.RunLock, "__enter__", entered))
            patch(mock.patch.object(lock.RunLock, "__exit__", left))
            patch(mock.patch.object(runner, "BackgroundTask", _Inline))
            patch(mock.patch.object(runner, "progress_display", _no_display))
            patch(mock.patch.object(prepare, "ShardExtractor", extractor))
            patch(watched(self._calls))
            yield


class _Inline:
    """Stands in for ``BackgroundTask``: jobs run at once."""

    def __init__(self, name: str) -> None:
        pass

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: Callable[[], None]) -> None:
        job()


@contextmanager
def _no_display(*_: object) -> Iterator[None]:
    yield


def simulate(laboratory: Laboratory, seed: int) -> Finding:
    """Run one schedule."""
    return World(laboratory, seed).run()
