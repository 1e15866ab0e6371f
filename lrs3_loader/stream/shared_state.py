"""Numbers shared by the main process and its DataLoader workers, whether forked, spawned or persistent."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import get_worker_info

_ROWS = 64
_EPOCH, _GENERATION, _WORKERS_READ = range(3)


class SharedState:
    """Numbers in shared memory, which the dataset takes along into its workers.

    Args:
        num_batches: the most batches that one rank can have in an epoch.
        num_sources: number of tars.
    """

    def __init__(self, num_batches: int, num_sources: int):
        self._numbers = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(num_batches, dtype=torch.bool).share_memory_()
        # One row per worker, because two processes adding to one number would lose counts.
        self._lost = torch.zeros((_ROWS, num_sources), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._numbers[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._numbers[_EPOCH] = epoch

    @property
    def generation(self) -> int:
        """The number of states that the main process has loaded."""
        return int(self._numbers[_GENERATION])

    def next_generation(self) -> int:
        """Count another loaded state and return the new number."""
        self._numbers[_GENERATION] += 1
        return self.generation

    @property
    def workers_read(self) -> bool:
        """True once a worker process has begun to read."""
        return bool(self._numbers[_WORKERS_READ])

    def note_worker(self) -> None:
        """Record that a worker process has begun to read."""
        self._numbers[_WORKERS_READ] = 1

    @property
    def skipped(self) -> np.ndarray:
        """[num_batches] bool, true at the steps of this rank whose batch lost all of its samples."""
        return self._skipped.numpy()

    @property
    def lost(self) -> np.ndarray:
        """[num_sources] i64, samples of each tar that could not be read, over all epochs."""
        return self._lost.sum(0).numpy()

    def add_lost(self, source: int) -> None:
        """Count one more lost sample of a tar."""
        info = get_worker_info()
        self._lost[info.id % _ROWS if info else 0, source] += 1
