"""How fast frames cross from a decode process to the one that extracts: through shared memory, without pickling."""

from __future__ import annotations

import multiprocessing
import time

import torch
from torch.utils.data import DataLoader, Dataset

from lrs3_loader.decode.shared_memory import empty_shared
from lrs3_loader.decode.workers import own_child_signals, prepare_parent

CHUNK_SHAPE = (125, 224, 224, 3)  # five seconds of LRS3: 18.8 MB


class _Chunks(Dataset[torch.Tensor]):
    """What a decode process hands over, without the decoding: a block of bytes written into shared memory."""

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks

    def __len__(self) -> int:
        return self.num_chunks

    def __getitem__(self, index: int) -> torch.Tensor:
        return empty_shared(CHUNK_SHAPE, torch.uint8).fill_(index % 256)


def measure_handover(num_chunks: int) -> tuple[int, float]:
    """(bytes, seconds) of the chunks from one process, each read once here; the first is not counted."""
    prepare_parent("forkserver", [__name__])
    loader: DataLoader[torch.Tensor] = DataLoader(
        _Chunks(num_chunks + 1),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("forkserver"),
    )
    with own_child_signals():
        chunks = iter(loader)
    here = torch.empty(CHUNK_SHAPE, dtype=torch.uint8)
    here.copy_(next(chunks))
    started, num_bytes = time.perf_counter(), 0
    for chunk in chunks:
        here.copy_(chunk)
        num_bytes += here.numel()
    return num_bytes, time.perf_counter() - started
