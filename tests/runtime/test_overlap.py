from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lrs3_loader.runtime.pipelining import BackgroundTask, one_behind, read_ahead


def test_each_item_is_started_before_the_one_before_it_is_finished() -> None:
    events: list[str] = []

    def start(item: int) -> int:
        events.append(f"start {item}")
        return item

    def finish(item: int) -> int:
        events.append(f"finish {item}")
        return 10 * item

    assert list(one_behind(range(3), start, finish)) == [0, 10, 20]
    assert events == ["start 0", "start 1", "finish 0", "start 2", "finish 1", "finish 2"]
    assert list(one_behind([], start, finish)) == []


def test_reading_ahead_keeps_the_order_and_the_depth() -> None:
    drawn: list[int] = []
    reached = threading.Event()

    def items() -> Iterator[int]:
        for item in range(20):
            drawn.append(item)
            if item == 3:
                reached.set()
            yield item

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 0
    assert reached.wait(5)  # one handed on, two waiting, one in the thread's hand
    assert drawn == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 20))
    with pytest.raises(ValueError, match="depth"):
        next(read_ahead([], 0))


def test_an_error_is_raised_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    ahead = read_ahead(items(), 5)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)


def test_closing_ends_the_thread() -> None:
    num_threads = threading.active_count()
    ahead = read_ahead(iter(range(1000)), 1)
    assert next(ahead) == 0
    assert threading.active_count() == num_threads + 1
    ahead.close()
    assert threading.active_count() == num_threads


def test_a_follower_does_one_job_at_a_time_and_hands_on_errors() -> None:
    done: list[int] = []
    gate = threading.Event()
    with BackgroundTask("test") as publisher:
        publisher.submit(lambda: (gate.wait(5), done.append(1))[1])
        assert done == []
        gate.set()
        publisher.submit(lambda: done.append(2))
        assert done[0] == 1
    assert done == [1, 2]

    def fail() -> None:
        raise OSError("disk full")

    with BackgroundTask("test") as publisher:
        publisher.submit(fail)
        with pytest.raises(OSError, match="disk full"):
            publisher.submit(lambda: done.append(3))
    with pytest.raises(OSError, match="disk full"), BackgroundTask("test") as publisher:
        publisher.submit(fail)
    assert done == [1, 2]


def test_a_follower_lets_another_error_pass() -> None:
    def leave(publisher: BackgroundTask) -> None:
        with publisher:
            publisher.submit(lambda: [].clear(0))  # type: ignore[call-arg]
            raise KeyError

    with pytest.raises(KeyError):
        leave(BackgroundTask("test"))
