"""Copies decoded frames to the GPU ahead of the models, and in parallel with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from typing import TypeVar

import torch

from lrs3_loader.runtime.pipelining import read_ahead
from lrs3_loader.runtime.transfer import to_device
from lrs3_loader.types import DecodedChunk, Reject

Tag = TypeVar("Tag")

CHUNKS_AHEAD = 4  # waiting on the GPU: at most a GiB (``--chunk-mebibytes``), and usually a tenth of that


def upload(
    items: Iterable[tuple[Tag, DecodedChunk | Reject]], device: torch.device
) -> Generator[tuple[Tag, DecodedChunk | Reject], None, None]:
    """Yield the same items in the same order, with their frames on ``device``.

    On a GPU a thread reads the items and copies their frames through pinned memory on its own stream, while the
    caller's stream works on earlier items. On a CPU they are passed on as they are.
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
