"""Which share of a GPU's memory is a rank's."""

from __future__ import annotations

import pytest
import torch

from lrs3_loader.runtime.device import free_gpu_bytes


@pytest.mark.smoke
@pytest.mark.parametrize(("num_ranks", "index", "sharing"), [(None, 0, 1), (1, 1, 1), (2, 1, 1), (4, 0, 2), (3, 1, 1)])
def test_ranks_on_one_gpu_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, num_ranks: int | None, index: int, sharing: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1200, 2400))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if num_ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_ranks))
    assert free_gpu_bytes(torch.device("cuda", index)) == 1200 // sharing
    assert free_gpu_bytes(torch.device("cpu")) == 0
