"""Progress of long jobs: lines in a log, with the time that is left."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lrs3_loader.runtime import progress
from lrs3_loader.runtime.progress import with_progress

pytestmark = pytest.mark.smoke


def test_lines_tell_what_is_done_and_what_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)

    def slow() -> Iterator[int]:
        nonlocal now
        for item in range(12):
            yield item
            now += 4.0

    logger = logging.getLogger("test.progress")
    caplog.set_level(logging.INFO, logger.name)
    assert list(with_progress(slow(), 12, "clips rendered", logger)) == list(range(12))
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 12 clips rendered, about 00:44 left",
        "4 of 12 clips rendered, about 00:32 left",
        "7 of 12 clips rendered, about 00:20 left",
        "10 of 12 clips rendered, about 00:08 left",
    ]


def test_a_quick_job_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.progress")
    caplog.set_level(logging.INFO, logger.name)
    assert list(with_progress(range(1000), 1000, "items", logger)) == list(range(1000))
    assert caplog.records == []


def test_an_error_of_the_job_is_let_through() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(with_progress(failing(), 2, "items", logging.getLogger("test.progress")))
