"""Decoded frames on their way to the GPU, ahead of the models and beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from typing import TypeVar

import torch

from lrs3_loader.runtime.pipelining import read_ahead
from lrs3_loader.runtime.transfer import to_device
from lrs3_loader.types import DecodedChunk, Reject

Tag = TypeVar("Tag")

CHUNKS_AHEAD = 4  # waiting on the GPU: at most a GiB, and usually a tenth of that


def upload(
    items: Iterable[tuple[Tag, DecodedChunk | Reject]], device: torch.device
) -> Generator[tuple[Tag, DecodedChunk | Reject], None, None]:
    """The same chunks in the same order, their frames on the device.

    On a GPU a thread draws the items and copies their frames through pinned memory on a stream of its own, while the
    caller's stream works on those before. On a CPU they are passed on as they are.
    """
    if device.type != "cuda":
        yield from items
        return
    stream = torch.cuda.Stream(device)

    def start(pair: tuple[Tag, DecodedChunk | Reject]) -> tuple[Tag, DecodedChunk | Reject, torch.cuda.Event | None]:
        tag, item = pair
        if isinstance(item, Reject):
            return tag, item, None
        with torch.cuda.stream(stream):
            item = dataclasses.replace(item, frames=to_device(item.frames, device))
        return tag, item, stream.record_event()

    for tag, item, there in read_ahead(map(start, items), CHUNKS_AHEAD):
        if isinstance(item, DecodedChunk):
            assert there is not None
            here = torch.cuda.current_stream(device)
            here.wait_event(there)
            item.frames.record_stream(here)
        yield tag, item
