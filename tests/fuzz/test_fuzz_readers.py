"""Damaged files of every kind: each reader ends in a value or in its own kind of error. And what was found once."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz.readers import ReaderFuzz
from benchmarks.fuzz.supervise import Lost
from lrs3_loader.io import mat_files
from lrs3_loader.io.safe_load import decode_npy
from support.fault_tools import IS_THOROUGH
from support.run_factory import make_run

pytestmark = pytest.mark.faults

NUM_CASES = 100_000 if IS_THOROUGH else 1_500


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ReaderFuzz]:
    with ReaderFuzz(None) as one:
        yield one


def test_intact_files_are_read(fuzz: ReaderFuzz) -> None:
    for name, target in fuzz.targets.items():
        for whole in target.files:
            verdict = fuzz.read(name, whole)
            assert verdict.is_read, (name, verdict)


def test_damaged_files_are_read_or_refused(fuzz: ReaderFuzz) -> None:
    num_read = 0
    for number, found in fuzz.run(NUM_CASES, 0, 2):
        assert not isinstance(found, Lost), (number, found)
        assert not found.problem, (number, fuzz.target_of(number), found)
        num_read += found.is_read
    assert 0.1 * NUM_CASES < num_read < 0.7 * NUM_CASES


@pytest.mark.parametrize("name", ["npy", "ledger"])
def test_it_finds_errors_that_nobody_expects(fuzz: ReaderFuzz, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz.targets, name, fuzz.targets[name]._replace(errors=()))
    numbers = range(list(fuzz.targets).index(name), 200 * len(fuzz.targets), len(fuzz.targets))
    assert any("Error: " in fuzz.judge(number).problem for number in numbers)


def test_texts_of_characters_that_do_not_exist(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(["abc", "de"]))
    whole = bytearray(buffer.getvalue())
    assert decode_npy(whole).tolist() == ["abc", "de"]
    whole[-1] = 0xFF
    with pytest.raises(ValueError, match="characters that do not exist"):
        decode_npy(whole)


def test_a_small_mat_file_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(b"IM" * 100)
    sizes: list[int] = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size or 0)
            return super().read(size)

        def fileno(self) -> int:
            return descriptor.fileno()

    with open(path, "rb") as descriptor:
        monkeypatch.setattr(mat_files, "open", lambda *_: File(path.read_bytes()), raising=False)
        assert mat_files.read_mat(path, ()) == {}
    assert sizes == [-1]


def test_a_ledger_of_another_run_is_named_by_its_path(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run", [[2], [3]]), make_run(tmp_path / "other", [[2]])
    name = "ledger/pretrain-000000.json"
    (run.path / name).write_bytes((other.path / name).read_bytes())
    [(_, problems), _] = run.check()
    assert f"{run.path}/{name} belongs to another run" in problems
