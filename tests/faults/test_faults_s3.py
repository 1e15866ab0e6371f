"""A run on S3 whose requests fail one at a time, or whose service goes away at any of them and comes back later."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from benchmarks.faults.requests import FAILURES, REMOTE, RequestSweep, quick_service
from benchmarks.faults.scenarios import SCENARIOS, Laboratory
from lrs3_loader.io.storage import RemoteStore
from support.fault_tools import IS_THOROUGH

pytestmark = pytest.mark.faults

NUM_POINTS = 1_000 if IS_THOROUGH else 1  # of each scenario and failure


@pytest.fixture(scope="module")
def sweep() -> Iterator[RequestSweep]:
    pytest.importorskip("moto.server", reason="needs the extra 'test' (moto, s3fs)")
    with quick_service() as proxy, Laboratory() as laboratory:
        yield RequestSweep(laboratory, proxy)


@pytest.mark.parametrize("name", REMOTE)
def test_a_request_that_fails(sweep: RequestSweep, name: str) -> None:
    number = REMOTE.index(name)
    some = [FAILURES[2 * (number % 3)], FAILURES[1 + 2 * (number % 3)]]  # once, and for good
    result = sweep.run(SCENARIOS[name], NUM_POINTS, 0, FAILURES if IS_THOROUGH else some)
    assert result.num_points >= 2
    assert result.endings["refused"] > 0
    assert not result.defects, "\n".join(map(str, result.defects))


@contextmanager
def forget(self: RemoteStore, name: str) -> Iterator[IO[bytes]]:
    """An upload that is lost, and taken for done."""
    yield io.BytesIO()


def test_a_lost_upload_would_be_found(sweep: RequestSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS["retry-rejects"]
    sweep.run(scenario, 0, seed=0)  # what it should be
    monkeypatch.setattr(RemoteStore, "write", forget)
    assert sweep.run(scenario, 1, seed=0, failures=["busy"]).defects
