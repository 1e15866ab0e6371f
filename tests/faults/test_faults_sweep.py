"""Every file call of a command fails once, or its process is killed there; ``tools/bench.py faults`` tries them all."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import pytest

from benchmarks.faults.calls import Call, FileCalls, Killed, watched
from benchmarks.faults.known import KNOWN
from benchmarks.faults.power import CUT
from benchmarks.faults.scenarios import SCENARIOS, Laboratory
from benchmarks.faults.sweep import KILL, Sweep, SweepResult, choose
from support.fault_tools import IS_THOROUGH, long

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="file calls cannot be replaced before Python 3.11"),
]

NUM_POINTS = 10_000 if IS_THOROUGH else 24  # of each scenario


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as one:
        yield one


def sweep(laboratory: Laboratory, name: str, count: int, known: bool = True) -> SweepResult:
    tried = Sweep(laboratory, KNOWN if known else ())
    return tried.run(choose(tried.points(SCENARIOS[name]), count, seed=0))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_costs_one_line_and_the_same_command_again(laboratory: Laboratory, name: str) -> None:
    result = sweep(laboratory, name, NUM_POINTS)
    assert result.num_points >= 24
    assert result.endings["refused"] > 0
    assert not result.defects, "\n".join(map(str, result.defects[:20]))


@long
def test_every_mark_of_a_known_defect_still_covers_one(laboratory: Laboratory) -> None:
    covered = {id(mark) for name in SCENARIOS for _, mark in sweep(laboratory, name, 10_000).known}
    assert [mark for mark in KNOWN if id(mark) not in covered and mark.fault != CUT] == []


# That the sweep finds what it is for -----------------------------------------------------------------------------


def found(laboratory: Laboratory, name: str = "resumed") -> str:
    """All that a sweep says, on one line for each problem."""
    return "\n".join(map(str, sweep(laboratory, name, 80, known=False).defects))


@contextmanager
def in_place(path: Path, *_: object) -> Iterator[IO[bytes]]:
    """Write a file under its own name."""
    with open(path, "wb") as file:
        yield file


@contextmanager
def untidy(path: Path, scratch: Path | None = None, *_: object) -> Iterator[IO[bytes]]:
    """Leave the temporary file when writing fails."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=scratch or path.parent)
    with open(handle, "wb") as file:
        yield file
    os.replace(name, path)


def test_it_finds_files_that_are_not_replaced_at_once(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.io.storage.atomic_write", in_place)
    assert "shards/pretrain-000001.tar is neither what it was nor what it is to be" in found(laboratory)


def test_it_finds_what_is_left_over(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.io.storage.atomic_write", untidy)
    assert "run/tmp/.pretrain-000001.tar.*.tmp is left over after an error" in found(laboratory)


def test_it_finds_tracebacks(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.launch.cli.disk_failure", lambda error: None)
    monkeypatch.setattr("lrs3_loader.io.files.writing", lambda path: nullcontext())
    assert "traceback: lrs3_loader/io/files.py" in found(laboratory)


def test_it_finds_a_scratch_folder_that_is_not_cleared(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.result(SCENARIOS["resumed"])
    monkeypatch.setattr("lrs3_loader.run.folder.RunFolder.clear_scratch", lambda self: None)
    assert "run/tmp/.pretrain-000002.tar.*.tmp is left over after resuming" in found(laboratory)


def test_it_finds_ledgers_of_other_tars(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new tar in the place of the old one, whose ledger is still there."""
    monkeypatch.setattr("lrs3_loader.run.shards.is_sound", lambda store, ledger: False)
    monkeypatch.setattr("lrs3_loader.io.storage.LocalStore.delete", lambda self, name: None)
    assert "shards/pretrain-000002.tar has " in found(laboratory, "retry-rejects")


# The calls that are replaced -------------------------------------------------------------------------------------


def test_each_way_to_a_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    seen: list[str] = []
    with watched(FileCalls(tmp_path / "in", before=lambda call: seen.append(call.name))):
        (tmp_path / "in" / "a").write_text("hello")
        (tmp_path / "out").write_text("unseen")
        os.replace(tmp_path / "in" / "a", tmp_path / "in" / "b")
        assert (tmp_path / "in" / "b").read_bytes() == b"hello"
        descriptor = os.open(tmp_path / "in" / "b", os.O_RDWR)
        os.pwrite(descriptor, b"j", 0)
        os.fsync(descriptor)
        os.close(descriptor)
        (tmp_path / "in" / "b").unlink()
    assert seen == [
        *("create a", "write a", "close a", "rename a -> b", "open b", "read b", "close b"),
        *("open b", "write b", "fsync b", "close b", "unlink b"),
    ]


def test_half_of_a_failing_write_is_there(tmp_path: Path) -> None:
    def full(call: Call) -> None:
        if call.kind == "write":
            raise OSError(errno.ENOSPC, "full")

    path, calls = tmp_path / "a", FileCalls(tmp_path, before=full)
    with watched(calls), open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="full"):
        file.write(b"12345678")
    assert (tmp_path / "a").read_bytes() == b"1234"


def test_after_a_kill_nothing_has_an_effect(tmp_path: Path) -> None:
    def kill(call: Call) -> None:
        if call.kind == "rename":
            raise Killed

    def work() -> None:
        try:
            (tmp_path / "a").write_bytes(b"whole")
            os.replace(tmp_path / "a", tmp_path / "b")
        finally:
            (tmp_path / "a").unlink()

    with watched(FileCalls(tmp_path, before=kill)), pytest.raises(Killed):
        work()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_points_are_chosen_by_their_seed(laboratory: Laboratory) -> None:
    points = Sweep(laboratory).points(SCENARIOS["fresh"])
    assert choose(points, 30, 1) == choose(points, 30, 1) != choose(points, 30, 2)
    assert {point.fault for point in choose(points, 30, 1)} > {KILL}
