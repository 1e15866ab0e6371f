"""Overlapping of successive steps, within one thread and on background threads."""

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
    """Yield ``finish(start(item))`` of every item in order. Each item is started before its predecessor is finished."""
    waiting: list[Started] = []
    for item in items:
        waiting.append(start(item))
        if len(waiting) > 1:
            yield finish(waiting.pop(0))
    for started in waiting:
        yield finish(started)


def read_ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the items in order while a background thread draws up to ``depth`` of them in advance.

    An exception of ``items`` is raised at its place in the sequence. Closing this generator ends the thread as soon as
    it has the item that it is waiting for.
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
    """Runs one job at a time on a background thread.

    Use it as a context manager: leaving the block waits for the last job and raises its error, unless the block itself
    raised one.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job after waiting for the previous one, whose error is raised here."""
        self.wait()
        self._last = self._executor.submit(job)

    def wait(self) -> None:
        """Wait for the current job, if any, and raise its error."""
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
