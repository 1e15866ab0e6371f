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
from hypothesis import strategies as st

IS_THOROUGH = os.environ.get("LRS3_LOADER_FAULTS") == "1"

#: Whole runs with faults take minutes in all.
long = pytest.mark.skipif(not IS_THOROUGH, reason="long: LRS3_LOADER_FAULTS=1 runs it")

#: The same examples every time; more of them where time does not matter.
small_fuzz = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=400 if IS_THOROUGH else 100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def damaged(whole: bytes, within: tuple[int, int] | None = None) -> st.SearchStrategy[bytes]:
    """``whole`` with a few bytes changed, inserted or taken away, perhaps cut off; changes lie in the range given."""
    first, last = within or (0, len(whole) - 1)
    change = st.tuples(st.integers(first, last), st.integers(0, 3), st.binary(min_size=1, max_size=8))

    def apply(changes: list[tuple[int, int, bytes]], keep: int) -> bytes:
        data = bytearray(whole)
        for at, num_removed, put in changes:
            data[at : at + num_removed] = put if num_removed != 3 else b""
            if num_removed == 2 and len(put) > 2:  # in place, so that all that follows stays where it was
                data[at : at + len(put)] = put
        return bytes(data[:keep])

    cut = st.just(2 * len(whole)) | st.integers(0, len(whole))
    return st.builds(apply, st.lists(change, max_size=6), cut)


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
