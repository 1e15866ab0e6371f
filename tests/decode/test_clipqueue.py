"""The order of requests and results, without any process."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from lrs3_loader.decode.clip_queue import NOOP, ChunkRequest, ClipQueue
from lrs3_loader.types import Clip, ClipHead, DecodedChunk, Reject, SourceInfo

SOURCE = SourceInfo(25.0, 1, 1, 1, 16_000, 1, 1, 0.0, 0, 0)


def chunk(clip: Clip, start: int, size: int = 10) -> DecodedChunk:
    """As many frames as the clip's utterance says, in chunks of ``size``."""
    total = int(clip.utterance.split("-")[1])
    head = ClipHead(torch.zeros(640 * total), torch.zeros(2 * total), 0, SOURCE) if start == 0 else None
    frames = torch.zeros((min(size, total - start), 1, 1, 3), dtype=torch.uint8)
    return DecodedChunk(clip, total, start, frames, head)


def queue_of(*lengths: int) -> ClipQueue[int]:
    return ClipQueue((index, Clip(f"a/b/{index}-{length}", "x.mp4", 0)) for index, length in enumerate(lengths))


def handed_on(queue: ClipQueue[int]) -> list[tuple[int, object]]:
    return [(tag, got.start if isinstance(got, DecodedChunk) else got.reason) for tag, got in queue.ready()]


def ask(queue: ClipQueue[int]) -> tuple[int, ChunkRequest]:
    number, request = next(queue)
    assert request is not None
    return number, request


def answer(queue: ClipQueue[int], number: int, request: ChunkRequest) -> bool:
    return queue.accept(number, chunk(request.clip, request.start))


def test_further_chunks_go_ahead_of_further_clips() -> None:
    queue = queue_of(25, 5, 5)
    first, second = ask(queue), ask(queue)
    assert answer(queue, *second)
    assert handed_on(queue) == []
    assert answer(queue, *first)
    rest = [ask(queue) for _ in range(3)]
    assert [request.start for _, request in rest] == [10, 20, 0]
    assert handed_on(queue) == [(0, 0)]
    for number, request in reversed(rest):
        assert answer(queue, number, request)
    assert handed_on(queue) == [(0, 10), (0, 20), (1, 0), (2, 0)]
    with pytest.raises(StopIteration):
        next(queue)
    assert queue.is_done


def test_asks_for_nothing_while_only_arrivals_can_tell() -> None:
    queue = queue_of(15)
    first = ask(queue)
    assert next(queue) == (NOOP, None)
    assert not queue.accept(NOOP, None)
    answer(queue, *first)
    assert ask(queue)[1].start == 10
    assert not queue.is_done


def test_a_reject_ends_its_clip_only() -> None:
    queue = queue_of(45, 5)
    first = ask(queue)
    answer(queue, *first)
    tickets = [ask(queue) for _ in range(3)]  # 10, 20, 30; 40 waits
    assert queue.accept(tickets[1][0], Reject(tickets[1][1].clip, "unreadable", "why"))
    assert not answer(queue, *tickets[2])  # nobody waits for what follows
    assert answer(queue, *tickets[0])
    last = ask(queue)
    assert last[1].clip.utterance == "1-5"
    answer(queue, *last)
    assert handed_on(queue) == [(0, 0), (0, 10), (0, "unreadable"), (1, 0)]


def test_what_was_lost_goes_out_again_first_and_in_order() -> None:
    queue = queue_of(5, 5, 5, 5)
    tickets = [ask(queue) for _ in range(3)]
    answer(queue, *tickets[1])
    queue.send_again()
    again = [ask(queue) for _ in range(3)]
    assert [number for number, _ in again] == [tickets[0][0], tickets[2][0], 4]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_arrival_gives_the_same_order(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([3, 10, 11, 35, 100]) for _ in range(30)]
    queue = queue_of(*lengths)
    got: list[tuple[int, object]] = []
    waiting: list[tuple[int, ChunkRequest]] = []

    def requests() -> Iterator[tuple[int, ChunkRequest]]:
        for number, request in queue:
            if request is None:
                return
            yield number, request

    while not queue.is_done:
        for ticket in requests():
            waiting.append(ticket)
            if len(waiting) >= 6:
                break
        if rng.random() < 0.1:
            queue.send_again()
            waiting.clear()
        elif waiting:
            answer(queue, *waiting.pop(rng.randrange(len(waiting))))
        got += handed_on(queue)
    assert got == [(tag, start) for tag, length in enumerate(lengths) for start in range(0, length, 10)]
