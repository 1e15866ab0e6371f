"""The choice of requests and the order of results, without any process."""

from __future__ import annotations

import random

import pytest
import torch

from lrs3_loader.decode.clip_queue import PART_FRAMES, PREFETCH, ChunkRequest, ClipQueue
from lrs3_loader.types import Clip, ClipHead, DecodedChunk, Reject, SourceInfo

SOURCE = SourceInfo(25.0, 1, 1, 1, 16_000, 1, 1, 0.0, 0, 0)
FRAME = 3  # bytes
Asked = tuple[int, ChunkRequest]


def chunk(request: ChunkRequest) -> DecodedChunk:
    """What a worker decodes for a request; the clip's utterance says how many frames it has."""
    total, start = int(request.clip.utterance.split("-")[1]), request.start
    head = ClipHead(torch.zeros(640 * total), torch.zeros(2 * total), 0, SOURCE) if start == 0 else None
    assert request.max_bytes is not None
    frames = torch.zeros((min(max(1, request.max_bytes // FRAME), total - start), 1, 1, 3), dtype=torch.uint8)
    return DecodedChunk(request.clip, total, start, frames, head)


def queue_of(*lengths: int, workers: int = 1, budget: int = 1 << 20, chunk_frames: int = 10) -> ClipQueue[int]:
    clips = ((index, Clip(f"a/b/{index}-{length}", "x.mp4", 0)) for index, length in enumerate(lengths))
    return ClipQueue(clips, workers, budget, FRAME * chunk_frames)


def handed_on(queue: ClipQueue[int]) -> list[tuple[int, object]]:
    return [(tag, got.start if isinstance(got, DecodedChunk) else got.reason) for tag, got in queue.ready()]


def ask(queue: ClipQueue[int], worker: int = 0) -> Asked:
    asked = queue.request(worker)
    assert asked is not None
    return asked


def answer(queue: ClipQueue[int], asked: Asked) -> bool:
    return queue.accept(asked[0], chunk(asked[1]))


def test_further_chunks_go_ahead_of_further_clips() -> None:
    queue = queue_of(25, 5, 5)
    first, second = ask(queue), ask(queue)
    assert queue.request(0) is None  # as many wait at the worker as may
    assert answer(queue, second)
    assert handed_on(queue) == []
    assert answer(queue, first)
    rest = [ask(queue), ask(queue)]
    assert [request.start for _, request in rest] == [10, 20]
    assert handed_on(queue) == [(0, 0)]
    for asked in reversed(rest):
        assert answer(queue, asked)
    assert handed_on(queue) == [(0, 10), (0, 20), (1, 0)]
    assert answer(queue, ask(queue))
    assert handed_on(queue) == [(2, 0)]
    assert queue.request(0) is None
    assert queue.is_done


def test_asks_for_nothing_while_only_arrivals_can_tell() -> None:
    queue = queue_of(15)
    first = ask(queue)
    assert queue.request(0) is None
    answer(queue, first)
    assert ask(queue)[1].start == 10
    assert not queue.is_done


def test_one_worker_decodes_a_part_and_others_the_next_ones() -> None:
    queue = queue_of(3 * PART_FRAMES, workers=2)
    answer(queue, ask(queue, 0))
    assert [ask(queue, worker)[1].start for worker in (0, 1, 0, 1)] == [10, PART_FRAMES, 20, PART_FRAMES + 10]


def test_a_reject_ends_its_clip_only() -> None:
    queue = queue_of(45, 5)
    answer(queue, ask(queue))
    asked = [ask(queue), ask(queue)]  # 10, 20; 30 and 40 wait
    assert queue.accept(asked[0][0], Reject(asked[0][1].clip, "unreadable", "why"))
    assert not answer(queue, asked[1])  # nobody waits for what follows
    last = ask(queue)
    assert last[1].clip.utterance == "1-5"
    answer(queue, last)
    assert handed_on(queue) == [(0, 0), (0, "unreadable"), (1, 0)]


def test_what_a_worker_lost_goes_out_again_first() -> None:
    queue = queue_of(5, 5, 5, 5, workers=2)
    asked = [ask(queue, worker) for worker in (0, 1, 0, 1)]
    queue.send_again(0)
    again = [ask(queue, 0), ask(queue, 0)]
    assert [request for _, request in again] == [asked[0][1], asked[2][1]]
    assert not answer(queue, asked[0])  # its old number
    assert all(answer(queue, each) for each in (asked[1], asked[3], *again))
    assert handed_on(queue) == [(tag, 0) for tag in range(4)]


@pytest.mark.parametrize("budget_frames", [0, 1, 4, 40, 400])
def test_the_budget_holds_and_the_next_chunk_always_comes(budget_frames: int) -> None:
    lengths = [300, 1, 7, 500, 40, 12, 300, 300]
    queue = queue_of(*lengths, workers=3, budget=FRAME * budget_frames, chunk_frames=50)
    rng = random.Random(0)
    asked: list[tuple[int, Asked]] = []
    got: list[tuple[int, object]] = []
    most = 0
    while not queue.is_done:
        requests = [(worker, queue.request(worker)) for worker in [0, 1, 2] * PREFETCH]
        asked += [(worker, request) for worker, request in requests if request is not None]
        most = max(most, queue.num_bytes)
        worker = rng.choice(asked)[0]  # a worker answers in the order that it was asked
        answer(queue, asked.pop(next(i for i, each in enumerate(asked) if each[0] == worker))[1])
        got += handed_on(queue)
    assert [tag for tag, _ in got] == sorted(tag for tag, _ in got)
    assert {tag for tag, _ in got} == set(range(len(lengths)))
    assert most <= FRAME * max(budget_frames, 4 * 3)  # of clips that are new, a frame may come with each request


def test_less_is_asked_for_where_memory_is_short_and_at_last_a_frame() -> None:
    queue = queue_of(45)
    for size in (30, 1, 0):
        number, request = ask(queue)
        assert request.max_bytes == size
        assert queue.shrink(number) == (size > 0)
    known = queue_of(45)
    answer(known, ask(known))
    sizes = []
    number, request = ask(known)
    ask(known)
    while known.shrink(number):
        sizes.append(request.max_bytes)
        assert len(known.in_flight) == 0  # the request after it was dropped, too
        number, request = ask(known)
        assert request.start == 10
    assert sizes == [30]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_arrival_gives_the_same_order(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([3, 10, 11, 35, 100, 300]) for _ in range(30)]
    queue = queue_of(*lengths, workers=3, budget=FRAME * rng.choice([20, 100, 10_000]))
    frames: dict[int, list[int]] = {tag: [] for tag in range(len(lengths))}
    order = []
    waiting: list[list[Asked]] = [[], [], []]
    while not queue.is_done:
        worker = rng.randrange(3)
        if rng.random() < 0.05:
            queue.send_again(worker)
            waiting[worker].clear()
        elif rng.random() < 0.05 and waiting[worker]:
            asked = waiting[worker].pop(0)
            if not queue.shrink(asked[0]):
                answer(queue, asked)
        elif rng.random() < 0.5 and (asked := queue.request(worker)) is not None:
            waiting[worker].append(asked)
        elif waiting[worker]:
            answer(queue, waiting[worker].pop(0))
        for tag, got in queue.ready():
            if isinstance(got, DecodedChunk):
                order.append(tag)
                frames[tag] += range(got.start, got.stop)
    assert order == sorted(order)
    assert [frames[tag] for tag in frames] == [list(range(length)) for length in lengths]
