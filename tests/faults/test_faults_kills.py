"""Real ranks killed at random instants, and readers of shards that are published again; ``tools/bench.py faults``."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from benchmarks.faults import republishing
from benchmarks.faults.kills import Killer
from benchmarks.faults.scenarios import Laboratory
from lrs3_loader.run import shards
from support.fault_tools import IS_THOROUGH

pytestmark = pytest.mark.faults

NUM_KILLS = 100 if IS_THOROUGH else 6


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as one:
        yield one


def test_killed_ranks_leave_a_run_that_the_same_command_completes(laboratory: Laboratory) -> None:
    result = Killer(laboratory, seed=0).run(NUM_KILLS)
    assert result.problems == []
    assert result.num_kills == NUM_KILLS
    assert result.num_runs > 0


def test_shards_that_are_written_in_place_would_be_found(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrs3_loader.io.storage.atomic_write", in_pieces)
    result = Killer(laboratory, seed=0).run(4)
    assert any("neither what it was nor what it is to be" in problem for problem in result.problems)


@contextmanager
def in_pieces(path: Path, *_: object) -> Iterator[IO[bytes]]:
    """Write a file under its own name, tars slowly."""
    buffer = io.BytesIO()
    yield buffer
    data = buffer.getvalue()
    with open(path, "wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        if path.suffix == ".tar":
            time.sleep(0.1)
        file.write(data[len(data) // 2 :])


def test_readers_go_on_while_shards_are_published_again(tmp_path: Path) -> None:
    lines = list(republishing.run_benchmark(tmp_path, 2.0, 2, seed=0))
    assert sum(count for _, count in lines) == 0, lines
    assert " had changed" in lines[1][0]


def test_a_tar_that_is_replaced_in_its_place_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "tar_name", lambda name, generation=0: f"shards/{name}.tar")
    lines = list(republishing.run_benchmark(tmp_path, 2.0, 2, seed=0))
    assert sum(count for _, count in lines) > 0
