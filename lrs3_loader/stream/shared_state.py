"""A few numbers that the main process and its DataLoader workers see alike, whether forked, spawned or persistent."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import get_worker_info

_ROWS = 64
_EPOCH, _GENERATION, _WORKERS_READ = range(3)


class SharedState:
    """Lives in shared memory; travels with the dataset into its workers."""

    def __init__(self, num_batches: int, num_sources: int):
        """Room for so many batches of one rank, and so many tars."""
        self._numbers = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(num_batches, dtype=torch.bool).share_memory_()
        # A row for each worker: two processes adding to one number would lose counts.
        self._lost = torch.zeros((_ROWS, num_sources), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._numbers[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._numbers[_EPOCH] = epoch

    @property
    def generation(self) -> int:
        """Counts the states loaded in the main process."""
        return int(self._numbers[_GENERATION])

    def next_generation(self) -> int:
        self._numbers[_GENERATION] += 1
        return self.generation

    @property
    def workers_read(self) -> bool:
        """Some worker process has begun a pass."""
        return bool(self._numbers[_WORKERS_READ])

    def note_worker(self) -> None:
        self._numbers[_WORKERS_READ] = 1

    @property
    def skipped(self) -> np.ndarray:
        """[num_batches] bool, by place in this rank's pass: all samples of that batch were lost."""
        return self._skipped.numpy()

    @property
    def lost(self) -> np.ndarray:
        """[num_sources] i64: samples of each tar that could not be read, added up over all passes."""
        return self._lost.sum(0).numpy()

    def add_lost(self, source: int, count: int) -> None:
        info = get_worker_info()
        self._lost[info.id % _ROWS if info else 0, source] += count
