"""Batches of sequences of similar length: bounded, padded little, and the same every time."""

from __future__ import annotations

import torch

from lrs3_loader.runtime.batching import batch_by_length


def test_batches_are_full_but_not_padded_much() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [int(n) * 640 for n in torch.randint(10, 500, (300,), generator=generator)] + [6400] * 3
    batches = list(batch_by_length(lengths, 40 * 16000, min_fill=0.85))
    assert sorted(i for batch in batches for i in batch) == list(range(303))
    for batch in batches:
        sizes = [lengths[i] for i in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert len(batch) == 1 or len(batch) * sizes[0] <= 40 * 16000
        assert min(sizes) >= 0.85 * sizes[0]
    padded = sum(len(batch) * lengths[batch[0]] for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert len(batches) < 0.6 * len(lengths)


def test_batches_are_determined_by_lengths_and_order() -> None:
    assert list(batch_by_length([5, 9, 5, 9, 5], 18, min_fill=0.85)) == [[1, 3], [0, 2, 4]]
    assert list(batch_by_length([8, 9, 8], 100, min_fill=1)) == [[1], [0, 2]]
    assert list(batch_by_length([100, 90], 50)) == [[0], [1]]
    assert list(batch_by_length([], 50)) == []


def test_lengths_are_rounded_up_to_steps() -> None:
    assert list(batch_by_length([9, 9, 3], 32)) == [[0, 1, 2]]
