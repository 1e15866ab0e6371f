"""What tests that inject faults share: which of them run, small disks, and how hard fuzzers try."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

IS_THOROUGH = os.environ.get("LRS3_LOADER_FAULTS") == "1"

#: Whole runs with faults take minutes in all.
long = pytest.mark.skipif(not IS_THOROUGH, reason="long: LRS3_LOADER_FAULTS=1 runs it")

#: The same examples every time; more of them where time does not matter.
small_fuzz = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=2000 if IS_THOROUGH else 100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own in ``folder``; the test is skipped where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here (root is needed)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
