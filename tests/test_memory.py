from __future__ import annotations

import logging

import pytest
import torch

from lrs3_loader.memory import hand_back_freed_memory, keep_freed_memory, piecewise


def test_what_does_not_fit_goes_in_halves(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def double(items: torch.Tensor) -> torch.Tensor:
        seen.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("too much")
        return 2 * items

    with caplog.at_level(logging.WARNING, logger="lrs3_loader"):
        assert torch.cat(piecewise(double, torch.arange(10))).tolist() == list(range(0, 20, 2))
    assert seen == [10, 5, 2, 3, 5, 2, 3]
    assert "a batch of 10 does not fit" in caplog.text
    assert piecewise(len, [1, 2]) == [2]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    def fail(items: list[int]) -> None:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        piecewise(fail, [1, 2, 3])


def test_memory_settings_are_taken() -> None:
    keep_freed_memory()
    hand_back_freed_memory()
    assert float(torch.ones(1000, 1000).sum()) == 1e6
