"""Runs threads one at a time, in an order drawn from a seed, on a clock that is advanced when all of them sleep."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.calls import Killed

_STUCK_SECONDS = 60.0  # of real time; a task never takes so long between two pauses


@dataclass(eq=False)
class Process:
    """A simulated process: some tasks that are killed or suspended together.

    Attributes:
        name: for the log.
        host: name of its machine.
        clock_offset: what its monotonic clock shows more than the simulated one, in seconds.
    """

    name: str
    host: str
    clock_offset: float = 0.0
    is_dead: bool = False
    suspended_until: float = 0.0
    ending: str = ""  # how its main task ended


@dataclass(eq=False)
class Task:
    """A thread of a process."""

    process: Process
    body: Callable[[], None]
    wakes_at: float = 0.0
    is_done: bool = False
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Scheduler:
    """Chooses which task runs until its next pause.

    Args:
        seed: decides every choice; the same tasks with the same seed do the same.
    """

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.now = 0.0
        self.num_switches = 0
        self.log: list[str] = []
        self.tasks: list[Task] = []
        self.crashes: list[tuple[Process, BaseException]] = []
        self._current: Task | None = None
        self._until = float("inf")
        self._back = threading.Semaphore(0)

    @property
    def is_running(self) -> bool:
        """True while it is the turn of a task."""
        return self._current is not None

    @property
    def task(self) -> Task:
        """The task whose turn it is."""
        assert self._current is not None
        return self._current

    @property
    def process(self) -> Process:
        """The process whose turn it is."""
        assert self._current is not None
        return self._current.process

    def note(self, text: str) -> None:
        """Add a line to the log."""
        name = self._current.process.name if self._current is not None else "-"
        self.log.append(f"{self.now:10.2f}  {name:<12}  {text}")

    def spawn(self, process: Process, body: Callable[[], None]) -> Task:
        """Start a task; it first runs when it is chosen."""
        task = Task(process, body, self.now)
        self.tasks.append(task)
        threading.Thread(target=self._main, args=(task,), daemon=True).start()
        return task

    def _main(self, task: Task) -> None:
        self._acquire(task.go)
        try:
            if not task.process.is_dead:
                task.body()
        except Killed:
            pass
        except BaseException as error:
            self.crashes.append((task.process, error))
        task.is_done = True
        self._back.release()

    def pause(self, seconds: float) -> None:
        """Let others run; the current task goes on after ``seconds`` at the earliest."""
        task = self._current
        assert task is not None, "only a task may pause"
        if task.process.is_dead:
            raise Killed
        task.wakes_at = self.now + max(seconds, 0.0)
        if self._goes_first(task):
            self.now = task.wakes_at
            return
        self._back.release()
        self._acquire(task.go)
        if task.process.is_dead:
            raise Killed

    def _goes_first(self, task: Task) -> bool:
        """Tell whether no other task can run before ``task`` wakes, so that there is nothing to choose."""
        wakes_at = self._ready_at(task)
        others = (self._ready_at(other) for other in self.tasks if other is not task)
        return wakes_at == task.wakes_at <= self._until and all(time > wakes_at for time in others)

    def kill(self, process: Process) -> None:
        """End all tasks of a process where they are; those of the current task end at their next pause."""
        process.is_dead = True
        process.ending = process.ending or "killed"

    def suspend(self, process: Process, seconds: float) -> None:
        """Stop a process for a while, as SIGSTOP does, or a machine that swaps."""
        process.suspended_until = max(process.suspended_until, self.now + seconds)

    def run(self, until: float = float("inf")) -> None:
        """Run tasks until all are done, or the clock has reached ``until``."""
        self._until = until
        while alive := [task for task in self.tasks if not task.is_done]:
            ready = [(task, self._ready_at(task)) for task in alive]
            first = min(time for _, time in ready)
            if first > until:
                self.now = until
                return
            self.now = max(self.now, first)
            self._switch(self.draw.choice([task for task, time in ready if time <= self.now]))
        if until != float("inf"):
            self.now = max(self.now, until)

    def _ready_at(self, task: Task) -> float:
        if task.process.is_dead:
            return self.now
        return max(task.wakes_at, task.process.suspended_until)

    def _switch(self, task: Task) -> None:
        self.num_switches += 1
        self._current = task
        task.go.release()
        self._acquire(self._back)
        self._current = None
        if task.is_done:
            self.tasks.remove(task)

    def _acquire(self, semaphore: threading.Semaphore) -> None:
        if not semaphore.acquire(timeout=_STUCK_SECONDS):
            raise RuntimeError("a task neither pauses nor ends: it waits for something that is not simulated")


class SimulatedTime:
    """Stands in for the module ``time`` in modules of the product."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler

    def monotonic(self) -> float:
        return self._scheduler.now + self._scheduler.process.clock_offset

    perf_counter = monotonic
    time = monotonic

    def sleep(self, seconds: float) -> None:
        self._scheduler.pause(seconds)

    def strftime(self, form: str) -> str:
        return "2026-01-01 00:00:00"


class SimulatedThreading:
    """Stands in for the module ``threading``: threads are tasks of the process that starts them."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler

    def Event(self) -> SimulatedEvent:  # noqa: N802  (the name in the module)
        return SimulatedEvent(self._scheduler)

    def Thread(self, target: Callable[[], None], **_: object) -> SimulatedThread:  # noqa: N802
        return SimulatedThread(self._scheduler, target)


class SimulatedEvent:
    """``threading.Event`` on the simulated clock."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[Task] = []

    def set(self) -> None:
        self._is_set = True
        for task in self._waiting:
            task.wakes_at = self._scheduler.now

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        if not self._is_set:
            self._waiting.append(self._scheduler.task)
            self._scheduler.pause(timeout)
            self._waiting.remove(self._scheduler.task)
        return self._is_set


class SimulatedThread:
    """``threading.Thread`` as a task."""

    def __init__(self, scheduler: Scheduler, target: Callable[[], None]):
        self._scheduler = scheduler
        self._target = target
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._scheduler.spawn(self._scheduler.process, self._target)

    def join(self, timeout: float) -> None:
        until = self._scheduler.now + timeout
        while self._task is not None and not self._task.is_done and self._scheduler.now < until:
            self._scheduler.pause(0.1)
