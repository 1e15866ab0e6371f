"""Batches of a fixed number of frames, cut from the frames of many clips.

All batches have one shape, so kernels are chosen once and numbers do not depend on how clips are cut. Batches never
cross a shard, so the bytes of a shard do not depend on other shards.
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


def fixed_batches(spans: Iterable[FrameSpan[Owner]], size: int) -> Iterator[list[FrameSpan[Owner]]]:
    """Cut and join spans, in order, into lists that hold exactly ``size`` frames (the last one: at most).

    Every frame comes out exactly once and in the order it went in. No frame is copied.
    """
    if size < 1:
        raise ValueError(f"batch size must be at least 1, got {size}")
    batch: list[FrameSpan[Owner]] = []
    room = size
    for span in spans:
        offset = 0
        while offset < len(span):
            frames = span.frames[offset : offset + room]
            batch.append(FrameSpan(span.owner, span.start + offset, frames))
            offset += len(frames)
            room -= len(frames)
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch
