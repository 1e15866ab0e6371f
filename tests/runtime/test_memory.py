from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from lrs3_loader.runtime.free_memory import available_bytes
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


def machine(folder: Path, groups: str, files: dict[str, str]) -> Path:
    """A folder with the files of a machine that has 4 GiB free."""
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   4194304 kB\n", "proc/self/cgroup": groups, **files}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_available_memory_is_what_machine_and_groups_leave(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path / "a", "0::/\n", {})) == 4 << 30
    two = "sys/fs/cgroup/job/"
    files = {two + "memory.max": "3000", two + "memory.current": "1500", two + "memory.stat": "inactive_file 500\n"}
    inner = {two + "step/memory.max": "max", two + "step/memory.current": "9", two + "step/memory.stat": ""}
    assert available_bytes(machine(tmp_path / "b", "0::/job/step\n", files | inner)) == 2000
    one = "sys/fs/cgroup/memory/box/"
    files = {one + "memory.limit_in_bytes": "3000", one + "memory.usage_in_bytes": "4000"}
    files[one + "memory.stat"] = "total_inactive_file 500\n"
    assert available_bytes(machine(tmp_path / "c", "5:cpu:/x\n4:memory:/box\n", files)) == 0
    assert available_bytes() > 1 << 20
