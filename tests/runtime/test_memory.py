from __future__ import annotations

import logging
import select
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from lrs3_loader.decode.shared_memory import empty_shared, from_shared_memory, to_shared_memory
from lrs3_loader.runtime.memory import disable_malloc_trim, limit_malloc_cache, split_on_oom


def test_a_batch_that_does_not_fit_is_split(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def double(items: torch.Tensor) -> torch.Tensor:
        seen.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("too much")
        return 2 * items

    with caplog.at_level(logging.WARNING, logger="lrs3_loader"):
        assert torch.cat(split_on_oom(double, torch.arange(10))).tolist() == list(range(0, 20, 2))
    assert seen == [10, 5, 2, 3, 5, 2, 3]
    assert "out of memory: splitting the batch of 10" in caplog.text
    assert split_on_oom(len, [1, 2]) == [2]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    def fail(items: list[int]) -> None:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        split_on_oom(fail, [1, 2, 3])


def test_memory_settings_are_taken() -> None:
    disable_malloc_trim()
    limit_malloc_cache()
    assert float(torch.ones(1000, 1000).sum()) == 1e6


def test_what_is_packed_comes_out_and_fits_one_write() -> None:
    frames = empty_shared((3, 2), torch.uint8).fill_(7)
    packed = to_shared_memory({"text": "x" * 10**6, "frames": frames})
    assert packed.is_shared()
    assert len(ForkingPickler.dumps((12345, (12345, packed)))) < select.PIPE_BUF // 2
    item = from_shared_memory(packed)
    assert item["text"] == "x" * 10**6
    frames[0, 0] = 8
    assert item["frames"].tolist() == [[8, 7], [7, 7], [7, 7]]  # the same memory
