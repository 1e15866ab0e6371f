"""The power is cut at any moment: what was not synced may be lost. ``tools/bench.py faults`` tries every state."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from benchmarks.faults.calls import FileCalls, watched
from benchmarks.faults.known import KNOWN
from benchmarks.faults.power import Disk, PowerCuts, Recorder
from benchmarks.faults.scenarios import SCENARIOS, Laboratory, Tree, read_tree
from support.fault_tools import IS_THOROUGH

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="file calls cannot be replaced before Python 3.11"),
]

NUM_STATES = 100_000 if IS_THOROUGH else 40  # of each scenario
WRITING = [name for name in SCENARIOS if name != "verify"]


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as one:
        yield one


@pytest.mark.parametrize("name", WRITING)
def test_after_a_power_cut_what_was_announced_is_there_and_the_rest_resumes(laboratory: Laboratory, name: str) -> None:
    result = PowerCuts(laboratory, KNOWN).run(SCENARIOS[name], NUM_STATES, seed=0)
    assert result.num_points > 5
    assert not result.defects, "\n".join(map(str, result.defects[:20]))


# That the cuts find what they are for ----------------------------------------------------------------------------


def found(laboratory: Laboratory, name: str = "resumed") -> str:
    return "\n".join(map(str, PowerCuts(laboratory).run(SCENARIOS[name], 100, seed=0).defects))


def test_they_find_folders_that_are_not_synced(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.io.files.sync_folder", lambda folder: None)
    assert ".tar was announced and is missing" in found(laboratory)


@contextmanager
def unsynced(path: Path, scratch: Path | None = None, *_: object) -> Iterator[IO[bytes]]:
    """Write a file and rename it, but sync only the folder."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=scratch or path.parent)
    with open(handle, "wb") as file:
        yield file
    os.replace(name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def test_they_find_data_that_is_not_synced(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.io.storage.atomic_write", unsynced)
    assert ".tar was announced and is damaged" in found(laboratory)


# The model of the disk -------------------------------------------------------------------------------------------


def states(folder: Path, work: object, before: Tree | None = None) -> list[Tree]:
    """All states that ``work(folder)`` may leave if the power is cut right after it."""
    recorder = Recorder(read_tree(folder) if before is None else before)
    with watched(FileCalls(folder, after=recorder.call)):
        work(folder)  # type: ignore[operator]
    disk = Disk(dict(recorder.names), dict(recorder.contents))
    for event in recorder.events:
        disk.apply(event)
    return list(disk.states(random.Random(0), 8))


def write(folder: Path, is_synced: bool, name: str = "a", data: bytes = b"12345678") -> None:
    with open(folder / name, "wb", buffering=0) as file:
        file.write(data)
        if is_synced:
            os.fsync(file.fileno())


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_a_file_is_certain_when_it_and_its_folder_are_synced(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        write(folder, is_synced=True)
        sync(folder)

    assert all(state == {"a": b"12345678"} for state in states(tmp_path, work))


def test_a_name_that_is_not_synced_may_be_missing(tmp_path: Path) -> None:
    found = states(tmp_path, lambda folder: write(folder, is_synced=True))
    assert {} in found
    assert {"a": b"12345678"} in found
    assert len({str(state) for state in found}) == 2


def test_data_that_is_not_synced_may_be_lost_cut_or_zeros(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        write(folder, is_synced=False)
        sync(folder)

    found = [state["a"] for state in states(tmp_path, work)]
    assert {b"", b"1234", bytes(8), b"12345678"} <= set(found)


def test_the_halves_of_a_rename_may_come_apart(tmp_path: Path) -> None:
    write(tmp_path, is_synced=True)
    before = read_tree(tmp_path)
    found = states(tmp_path, lambda folder: os.replace(folder / "a", folder / "b"), before)
    assert {frozenset(state) for state in found} == {
        frozenset("a"),
        frozenset("b"),
        frozenset("ab"),
        frozenset(),
    }


def test_nothing_is_left_below_a_folder_whose_name_is_lost(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        (folder / "new").mkdir()
        write(folder / "new", is_synced=True)
        sync(folder / "new")

    found = states(tmp_path, work)
    assert {} in found
    assert {"new/": b"", "new/a": b"12345678"} in found
