"""Batches of a fixed number of frames, cut from the frames of many clips.

All batches have one shape, so kernels are chosen once and numbers do not depend on how clips are cut. Batches never
cross a shard, so the bytes of a shard do not depend on other shards. A batch of very large frames holds fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Owner = TypeVar("Owner")


@dataclass(frozen=True)
class FrameSpan(Generic[Owner]):
    """Consecutive frames of one clip inside a batch."""

    owner: Owner  # any object that the caller keeps for the clip
    start: int  # index in the clip of the first frame here
    frames: torch.Tensor  # [n, H, W, 3] u8

    def __len__(self) -> int:
        return len(self.frames)


def fixed_batches(spans: Iterable[FrameSpan[Owner]], size: int, max_bytes: int) -> Iterator[list[FrameSpan[Owner]]]:
    """Cut and join spans, in order, into lists of ``size`` frames, or of as many as ``max_bytes`` hold (at least one).

    Every frame comes out exactly once and in the order it went in. No frame is copied. Where a batch ends depends on
    the frames alone, not on how they were cut into spans.
    """
    if size < 1:
        raise ValueError(f"batch size must be at least 1, got {size}")
    batch: list[FrameSpan[Owner]] = []
    room, bytes_left = size, max_bytes
    for span in spans:
        offset, frame_bytes = 0, span.frames[0].nbytes
        while offset < len(span):
            if batch and (room == 0 or bytes_left < frame_bytes):
                yield batch
                batch, room, bytes_left = [], size, max_bytes
            frames = span.frames[offset : offset + min(room, max(1, bytes_left // frame_bytes))]
            batch.append(FrameSpan(span.owner, span.start + offset, frames))
            offset += len(frames)
            room -= len(frames)
            bytes_left -= frames.nbytes
        if room == 0:
            yield batch
            batch, room, bytes_left = [], size, max_bytes
    if batch:
        yield batch
