"""What the main process shares with its DataLoader workers, whether forked, spawned or persistent."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import get_worker_info

from lrs3_loader.errors import RunError
from lrs3_loader.run.tar import DamagedError

logger = logging.getLogger(__name__)

_ROWS = 64


class _Number:
    """An attribute that lies in the shared memory of its ``SharedState``."""

    def __init__(self, place: int):
        self._place = place

    def __get__(self, state: SharedState, kind: type) -> int:
        return int(state.numbers[self._place])

    def __set__(self, state: SharedState, value: int) -> None:
        state.numbers[self._place] = value


class SharedState:
    """Numbers in shared memory, among them the counts of samples that could not be read.

    Args:
        num_batches: the most batches that one rank can have in an epoch.
        names: names of the tars.
        skip_errors: skip, count and log samples that cannot be read, instead of raising an error.
    """

    def __init__(self, num_batches: int, names: Sequence[str], skip_errors: bool):
        self.names = names
        self._skip_errors = skip_errors
        self._logged: set[int] = set()
        self.numbers = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(num_batches, dtype=torch.bool).share_memory_()
        # One row per worker, because two processes adding to one number would lose counts.
        self._lost = torch.zeros((_ROWS, len(names)), dtype=torch.int64).share_memory_()

    epoch = _Number(0)
    generation = _Number(1)  # number of states that the main process has loaded
    workers_read = _Number(2)  # 1 once a worker process has begun to read

    @property
    def skipped(self) -> np.ndarray:
        """[num_batches] bool, true at the steps of this rank whose batch lost all of its samples."""
        return self._skipped.numpy()

    def lost(self) -> dict[str, int]:
        """Return the number of samples that could not be read, over all epochs, by the name of their tar."""
        counts = self._lost.sum(0).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}

    def add_lost(self, tar: int, error: DamagedError) -> None:
        """Count a sample as lost to its tar, and log the first one of each tar.

        Raises:
            RunError: errors must not be skipped.
        """
        if not self._skip_errors:
            raise RunError(f"{error}; {error.remedy}, or skip it with ShardStream(on_error='skip')") from error
        info = get_worker_info()
        self._lost[info.id % _ROWS if info else 0, tar] += 1
        if tar not in self._logged:
            self._logged.add(tar)
            logger.warning("skipping damaged samples of %s: %s", self.names[tar], error)
