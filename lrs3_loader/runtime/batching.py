"""Grouping sequences of different lengths into padded batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batch_by_length(lengths: Sequence[int], max_size: int, *, min_fill: float = 0.0) -> Iterator[list[int]]:
    """Group sequences of similar length, longest first; sequences of equal length keep their order.

    Args:
        lengths: the length of each sequence.
        max_size: the most items that a batch may hold, padding included. A longer sequence forms a batch by itself.
        min_fill: the shortest sequence of a batch is at least this share of its longest (1: equal lengths only).

    Yields:
        The indices of the sequences in one batch, its longest first.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            longest = lengths[batch[0]]
            too_large = (len(batch) + 1) * longest > max_size
            if too_large or lengths[i] < min_fill * longest:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def round_up(length: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``length``."""
    return -(-length // step) * step
