"""Doing the next thing before the last one is finished: within a thread, and on a thread beside it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
Started = TypeVar("Started")
Result = TypeVar("Result")


def one_behind(
    items: Iterable[Item], start: Callable[[Item], Started], finish: Callable[[Started], Result]
) -> Iterator[Result]:
    """``finish(start(item))`` of every item, in order; each item is started before the one before it is finished."""
    waiting: list[Started] = []
    for item in items:
        waiting.append(start(item))
        if len(waiting) > 1:
            yield finish(waiting.pop(0))
    for started in waiting:
        yield finish(started)


def read_ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items in the same order, drawn by a thread that runs up to ``depth`` items ahead.

    An exception of ``items`` is raised here, at its place. Closing this generator ends the thread after the item that
    it is waiting for.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    waiting: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(is_last: bool, value: Item | BaseException | None) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((is_last, value), timeout=0.1)
                break

    def draw() -> None:
        try:
            for item in items:
                put(False, item)
                if closed.is_set():
                    return
        except BaseException as error:
            put(True, error)
        else:
            put(True, None)

    thread = threading.Thread(target=draw, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_last, value = waiting.get()
            if not is_last:
                yield value  # type: ignore[misc]  # an item
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        closed.set()
        thread.join()


class BackgroundTask:
    """A thread that does one job behind its caller's back: ``submit`` waits for the job before and raises its error.

    Leaving its block waits for the last job. When the block is left by an exception, an error of that job is dropped
    for the one already on its way.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job done, once the one before it is."""
        self.wait()
        self._last = self._executor.submit(job)

    def wait(self) -> None:
        """Until nothing is left to do. Raises what the job raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> BackgroundTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._executor.shutdown()
