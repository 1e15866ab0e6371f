"""Streams and events of the stand-in device, and a check that one stream does not read what another still writes.

Nothing runs in parallel here: a kernel is computed when it is launched. What order a GPU would keep is followed by a
vector clock: each stream counts its kernels and knows up to which kernel of every other stream it has waited. A kernel
that reads a tensor whose last writer it has not waited for, or overwrites one that another stream may still read, is
an error, whatever the timing. Copies to pinned host memory hold garbage until the host has waited for them.

Mattern, "Virtual Time and Global States of Distributed Systems", 1989.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Clock = dict[int, int]  # by number of the stream: kernels of it that are known to be done


def _merge(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


@dataclass
class _Access:
    """Who last wrote a block of device memory, and who has read it since."""

    writer: tuple[int, int, str]  # stream, kernel, place
    readers: dict[int, tuple[int, str]] = field(default_factory=dict)  # by stream: kernel, place


class Timeline:
    """The order that streams, events and waits of the host keep."""

    def __init__(self, count_wait: Callable[[str], None]) -> None:
        self.count_wait = count_wait
        self._lock = threading.RLock()
        self._num_streams = 0
        self._host: Clock = {}
        self._memory: dict[int, _Access] = {}
        self._arriving: list[tuple[Clock, Tensor, Tensor]] = []  # copies to the host: (kernel, target, value)
        self._of_thread = threading.local()
        self.default = Stream(self)

    def new_stream(self) -> tuple[int, Clock]:
        with self._lock:
            self._num_streams += 1
            return self._num_streams, {}

    @property
    def current(self) -> Stream:
        """The stream on which this thread launches kernels."""
        stack: list[Stream] = getattr(self._of_thread, "stack", [])
        return stack[-1] if stack else self.default

    @contextlib.contextmanager
    def use(self, stream: Stream | None) -> Iterator[None]:
        """Launch this thread's kernels on a stream within the block; None changes nothing."""
        if not hasattr(self._of_thread, "stack"):
            self._of_thread.stack = []
        self._of_thread.stack.append(stream or self.current)
        try:
            yield
        finally:
            self._of_thread.stack.pop()

    def launch(self, reads: Sequence[Tensor], writes: Sequence[Tensor], makes: Sequence[Tensor], place: str) -> None:
        """Check and note one kernel on the current stream.

        Args:
            reads: host tensors behind its inputs.
            writes: those that it changes.
            makes: those that it returns, in memory of their own.
            place: who asked for it.

        Raises:
            RuntimeError: another stream may still write what it reads, or read what it writes.
        """
        with self._lock:
            stream = self.current
            _merge(stream.clock, self._host)
            for tensor in reads:
                self._check_read(stream, tensor, place)
            for tensor in writes:
                self._check_write(stream, tensor, place)
            tick = stream.clock[stream.number] = stream.clock.get(stream.number, 0) + 1
            for tensor in reads:
                if access := self._memory.get(_address(tensor)):
                    access.readers[stream.number] = tick, place
            for tensor in (*writes, *makes):
                self._memory[_address(tensor)] = _Access((stream.number, tick, place))

    def _check_read(self, stream: Stream, tensor: Tensor, place: str) -> None:
        access = self._memory.get(_address(tensor))
        if access is not None:
            writer, tick, written_at = access.writer
            if writer != stream.number and stream.clock.get(writer, 0) < tick:
                raise RuntimeError(
                    f"{place} reads what another stream may still be writing (at {written_at}): wait for an event of it"
                )

    def _check_write(self, stream: Stream, tensor: Tensor, place: str) -> None:
        self._check_read(stream, tensor, place)
        access = self._memory.get(_address(tensor))
        for reader, (tick, read_at) in access.readers.items() if access else ():
            if reader != stream.number and stream.clock.get(reader, 0) < tick:
                raise RuntimeError(
                    f"{place} overwrites what another stream may still read (at {read_at}): wait for an event of it"
                )

    def copy_later(self, target: Tensor, value: Tensor) -> None:
        """Note a copy to the host that is done once the host has waited for it; until then the target holds garbage."""
        with self._lock:
            self._arriving.append((dict(self.current.clock), target, value.clone()))
            target.copy_(_garbage(value))

    def host_waits(self, clock: Clock | None = None) -> None:
        """The host waits for these kernels (those of the current stream when not given); copies to it arrive."""
        with self._lock:
            _merge(self._host, self.current.clock if clock is None else clock)
            waiting = []
            for kernel, target, value in self._arriving:
                if all(self._host.get(stream, 0) >= tick for stream, tick in kernel.items()):
                    target.copy_(value)
                else:
                    waiting.append((kernel, target, value))
            self._arriving = waiting

    def synchronize(self) -> None:
        """The host waits for all streams."""
        with self._lock:
            everything: Clock = {}
            for access in self._memory.values():
                _merge(everything, {access.writer[0]: access.writer[1]})
            for kernel, _, _ in self._arriving:
                _merge(everything, kernel)
            self.host_waits(everything)


def _address(tensor: Tensor) -> int:
    """Names a block of memory; views share it. Tensors without memory of their own have none to protect."""
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _garbage(value: Tensor) -> Tensor:
    if value.is_floating_point():
        return torch.full_like(value, torch.nan)
    return ~value


class Stream:
    """Takes the place of ``torch.cuda.Stream``."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.number, self.clock = timeline.new_stream()
        self.device = torch.device("cuda:0")

    def wait_event(self, event: Event) -> None:
        _merge(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        _merge(self.clock, other.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._timeline)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._timeline.count_wait("stream")
        self._timeline.host_waits(self.clock)

    def query(self) -> bool:
        return True


class Event:
    """Takes the place of ``torch.cuda.Event``."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or self._timeline.current).clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._timeline.current).wait_event(self)

    def synchronize(self) -> None:
        self._timeline.count_wait("event")
        self._timeline.host_waits(self.clock)

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 1.0
