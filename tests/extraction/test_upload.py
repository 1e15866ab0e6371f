from __future__ import annotations

import pytest
import torch

from lrs3_loader.extraction.upload import CHUNKS_AHEAD, upload
from lrs3_loader.runtime.transfer import HostCopy, to_device
from lrs3_loader.types import DecodedChunk, Reject
from support.factory import make_chunk, make_clip, make_reject

CPU = torch.device("cpu")


def make_items(count: int) -> list[tuple[int, DecodedChunk | Reject]]:
    """Every third one is a reject."""
    chunks = [make_chunk(make_clip(f"test/speaker/{number:05d}"), 3 + number) for number in range(count)]
    return [(n, make_reject(chunk.clip) if n % 3 == 2 else chunk) for n, chunk in enumerate(chunks)]


def test_on_a_cpu_items_are_passed_on_one_at_a_time() -> None:
    items = make_items(4)
    drawn: list[int] = []

    def source():  # type: ignore[no-untyped-def]
        for item in items:
            drawn.append(item[0])
            yield item

    uploaded = upload(source(), CPU)
    assert next(uploaded) is items[0]
    assert drawn == [0]
    assert list(uploaded) == items[1:]


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(4)
    assert to_device(tensor, CPU) is tensor
    assert HostCopy(tensor).wait() is tensor


@pytest.mark.gpu
def test_frames_arrive_whole_and_in_order_on_a_gpu() -> None:
    device = torch.device("cuda")
    count = 4 * CHUNKS_AHEAD
    items = make_items(count)
    uploaded = list(upload(iter(items), device))
    assert [tag for tag, _ in uploaded] == list(range(count))
    for (_, item), (_, original) in zip(uploaded, items, strict=True):
        assert type(item) is type(original)
        if isinstance(item, DecodedChunk) and isinstance(original, DecodedChunk):
            assert item.frames.device.type == "cuda"
            assert torch.equal(item.frames.cpu(), original.frames)


@pytest.mark.gpu
def test_downloads_see_what_was_queued_before_them() -> None:
    device = torch.device("cuda")
    big = torch.ones(2048, 2048, device=device)
    for _ in range(8):
        big = (big @ big) / 2048
    download = HostCopy(big + to_device(torch.tensor([3.0]), device))
    assert bool((download.wait() == 4).all())
