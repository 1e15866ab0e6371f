"""Averages the scalars of many steps, and times the steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch

from lrs3_loader.train.ranks import mean_over_ranks

Batch = TypeVar("Batch")


class Meter:
    """Collects what is known of the steps since it was last read. All ranks must read it after the same steps."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self.start()

    def start(self) -> None:
        """Begin to measure: time that passes between two calls of this belongs to the steps between them."""
        self._sums, self._num_steps = {}, 0
        self._started, self._waited = time.monotonic(), 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure how long each has to be waited for."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            yield batch

    def add(self, scalars: Mapping[str, torch.Tensor]) -> None:
        """Add the scalars of a step; they stay on their device, so that nothing waits for them."""
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_steps += 1

    def read(self) -> dict[str, float]:
        """Return means over the steps and the ranks, and how fast this rank was; empty if there were no steps.

        ``steps_per_second`` counts from the start, and ``waiting`` is the share (0..1) of that time in which this rank
        waited for its next batch. Then it begins to measure again.
        """
        if not self._num_steps:
            return {}
        means = mean_over_ranks(torch.stack(list(self._sums.values())) / self._num_steps)
        figures = dict(zip(self._sums, means.tolist(), strict=True))
        seconds = time.monotonic() - self._started
        figures |= {
            "steps_per_second": round(self._num_steps / seconds, 2),
            "waiting": round(self._waited / seconds, 3),
        }
        self.start()
        return figures
