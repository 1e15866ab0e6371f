"""The memory that is free, read from the files of Linux without any package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """The memory that this process can still take: what the machine has free, or what its control groups leave.

    Args:
        root: folder that has ``proc`` and ``sys``.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([free, *_left_by_groups(root)]))


def _left_by_groups(root: Path) -> Iterator[int]:
    """The bytes that each limited control group of this process leaves; cached files count as free."""
    names = (  # of version 2, then of version 1
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        base = root / "sys/fs/cgroup" / ("memory" if "memory" in kinds.split(",") else "")
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(base):
                break
            for limit, used, cached in names:
                with contextlib.suppress(OSError, ValueError):  # other version, no limit ("max"), or not visible here
                    stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                    spent = int((group / used).read_text()) - int(stat.get(cached, 0))
                    yield int((group / limit).read_text()) - spent
