"""The arithmetic of streaming, by itself: batches from lengths, and positions from batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.stream.position import Position, Segment, position_after, remaining_batches
from lrs3_loader.stream.schedule import (
    BatchIds,
    BatchRule,
    equalize_batches,
    interleave,
    make_batches,
    shuffle_blocks,
    shuffled_order,
)

FRAMES = np.random.default_rng(0).integers(6, 60, size=200)


def frames_of(ids: np.ndarray) -> np.ndarray:
    return FRAMES[ids]


def rule(batch_size: int | None = 4, batch_frames: int | None = None, shuffle: bool = True) -> BatchRule:
    return BatchRule(batch_size, batch_frames, 4, shuffle)


def row_of(*sizes: int) -> list[BatchIds]:
    """Batches of such sizes, of running ids."""
    stops = list(itertools.accumulate(sizes))
    return [BatchIds(0, np.arange(stop - size, stop)) for stop, size in zip(stops, sizes, strict=True)]


def ids_of(batches: list[BatchIds]) -> list[int]:
    return [number for batch in batches for number in batch.ids.tolist()]


def test_shards_are_shuffled_whole() -> None:
    order = shuffled_order([3, 0, 2, 4], True, seed=1, epoch=2).tolist()
    assert sorted(order) == list(range(9))
    assert {tuple(order[k] for k in range(9) if order[k] in part) for part in ({0, 1, 2}, {3, 4}, {5, 6, 7, 8})} == {
        (0, 1, 2),
        (3, 4),
        (5, 6, 7, 8),
    }
    assert shuffled_order([3, 2], False, 1, 2).tolist() == [0, 1, 2, 3, 4]
    assert shuffled_order([], True, 1, 2).tolist() == []


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("limits", [(4, None), (None, 240)])
def test_batches_keep_to_their_limit_and_take_every_sample_once(
    limits: tuple[int | None, int | None], block_size: int
) -> None:
    batches = list(make_batches(shuffle_blocks(np.arange(200), block_size), frames_of, rule(*limits), [0]))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    if limits[0]:
        assert [len(batch) for batch in batches].count(4) == 50
    else:
        padded = [len(batch) * (-(-int(FRAMES[batch].max()) // 4) * 4) for batch in batches]
        assert max(padded) <= 240
        assert np.median(padded) > 180


def test_a_clip_longer_than_the_limit_has_a_batch_to_itself() -> None:
    assert [len(part) for part in rule(None, 20).cut(np.arange(3), np.array([8, 50, 8]))] == [1, 1, 1]


def test_the_shuffle_reaches_no_farther_than_the_buffer() -> None:
    batches = list(make_batches(shuffle_blocks(np.arange(200), 20), frames_of, rule(), [0]))
    for place, batch in enumerate(batches):
        first_pool, last_pool = batch.min() // 20, batch.max() // 20
        assert last_pool - first_pool <= 1  # the second: what was carried over
        assert abs(place // 5 - last_pool) <= 1


@pytest.mark.parametrize("num_partitions", [1, 2, 3, 12])
def test_partitions_keep_step(num_partitions: int) -> None:
    order = shuffled_order([50, 100, 50], True, 0, 0)
    batches = list(interleave(order, num_partitions, 16, frames_of, rule(None, 150), [0, 0]))
    assert sorted(ids_of(batches)) == list(range(200))
    assert [batch.partition for batch in batches] == [k % num_partitions for k in range(len(batches))]
    stretches = np.array_split(order, num_partitions)
    assert all(set(batch.ids.tolist()) <= set(stretches[batch.partition].tolist()) for batch in batches)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 1, 1, 1), (1, 1, 5, 4, 4, 4, 2), (9,)])
def test_evening_out_splits_only_what_it_must(sizes: tuple[int, ...], world_size: int) -> None:
    batches = list(equalize_batches(row_of(*sizes), world_size))
    assert len(batches) == -(-len(sizes) // world_size) * world_size
    assert ids_of(batches) == list(range(sum(sizes)))  # none lost, none twice, none moved


def test_evening_out_leaves_what_is_even_and_refuses_the_impossible() -> None:
    assert [len(batch.ids) for batch in equalize_batches(row_of(3, 1, 4, 1), 2)] == [3, 1, 4, 1]
    with pytest.raises(RunError, match="3 batches cannot be shared evenly by 2 ranks"):
        list(equalize_batches(row_of(1, 1, 1), 2))


def test_evening_out_does_not_wait_for_the_end() -> None:
    endless = (BatchIds(0, np.arange(4)) for _ in itertools.count())
    assert len(list(itertools.islice(equalize_batches(endless, 4), 100))) == 100


def data_loader(places: list[int], num_workers: int, skipped: np.ndarray) -> list[int]:
    """The order in which a DataLoader hands on what its workers yield: one of each in turn, while they have any."""
    queues = [[p for p in places if p % num_workers == w and not skipped[p]] for w in range(num_workers)]
    order = []
    while any(queues):
        order += [queue.pop(0) for queue in queues if queue]
    return order


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_positions_say_exactly_what_was_delivered(num_workers: int) -> None:
    """Against a slow simulation, for many patterns of lost batches, twice in a row, on one rank of two."""
    random = np.random.default_rng(num_workers)
    batches = row_of(*[1] * 26)
    for trial in range(60):
        bad = set(random.choice(26, size=trial % 9, replace=False).tolist())
        position, seen = Position(0).for_world_size(2), []
        for _ in range(2):
            mine = list(remaining_batches(batches, position, 1, equal_batches=True))
            skipped = np.zeros(40, dtype=bool)
            skipped[[scheduled.step for scheduled in mine if scheduled.number in bad]] = True
            order = data_loader([scheduled.step for scheduled in mine], num_workers, skipped)
            if not order:
                break
            stop = int(random.integers(len(order)))
            seen += [mine[place].number for place in order[: stop + 1]]
            position = Position.from_json(position_after(position, 1, order[stop], num_workers, skipped).to_json())
        rest = [
            scheduled.number
            for scheduled in remaining_batches(batches, position, 1, equal_batches=True)
            if scheduled.number not in bad
        ]
        assert sorted(seen + rest) == [number for number in range(1, 26, 2) if number not in bad]


def test_numbers_run_on_when_the_number_of_ranks_changes() -> None:
    position = Position(0, (Segment(2, 3), Segment(3, 1)))
    left = [list(remaining_batches(row_of(*[2] * 18), position, rank, equal_batches=True)) for rank in range(3)]
    assert sorted(number for scheduled in itertools.chain(*left) for number in scheduled.batch.ids) == list(
        range(18, 36)
    )
    assert sorted(scheduled.number for scheduled in itertools.chain(*left)) == list(range(9, 18))
