"""How fast frames cross from a decode process to the one that extracts: through shared memory, without pickling."""

from __future__ import annotations

import time

import torch

from lrs3_loader.decode.shared_memory import Channel
from lrs3_loader.decode.workers import WorkerPool, WorkTable, prepare_parent
from lrs3_loader.types import Clip, DecodedChunk

CHUNK_SHAPE = (125, 224, 224, 3)  # five seconds of LRS3: 18.8 MB


def _send_chunks(worker: int, channel: Channel, table: WorkTable) -> None:
    """What a decode process hands over, without the decoding: a block of bytes written into shared memory."""
    clip = Clip("a/b/c", "c.mp4", 0)
    while True:
        number, _ = channel.receive()
        frames = channel.allocate(CHUNK_SHAPE).fill_(number % 256)
        channel.send(number, DecodedChunk(clip, 2 * len(frames), len(frames), frames, None))


def measure_handover(num_chunks: int) -> tuple[int, float]:
    """(bytes, seconds) of the chunks from one process, each read once here; the first is not counted."""
    prepare_parent("forkserver", [__name__])
    pool = WorkerPool(1, deadline_seconds=60, start_method="forkserver", serve=_send_chunks)
    (channel,) = pool.channels
    here = torch.empty(CHUNK_SHAPE, dtype=torch.uint8)
    started, num_bytes = 0.0, 0
    for number in range(1, 3):
        channel.send(number, None)
    for number in range(1, num_chunks + 2):
        here.copy_(channel.receive()[1].frames)
        channel.send(number + 2, None)
        if number == 1:
            started = time.perf_counter()
        else:
            num_bytes += here.numel()
    seconds = time.perf_counter() - started
    pool.close()
    return num_bytes, seconds
