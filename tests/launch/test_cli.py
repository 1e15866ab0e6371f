"""What a person sees of every tool: help, and arguments that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import REPO

EXTRACT = [sys.executable, str(REPO / "tools" / "extract.py")]


def test_help_that_is_not_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*EXTRACT, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "x", "--corpus", "nowhere"], "nowhere"),
        (["--out", "x", "--shard-clips", "some"], "--shard-clips"),
        (["--out", "x", "--corpus", ".", "--hubert-layers", "3"], "--hubert-layers"),
        (["--out", "x", "--demo", "--max-reject-fraction", "2"], "max_reject_fraction must lie in 0..1, got 2.0"),
        (["--out", "x", "--demo", "--retry-rejects", "nonsense"], "unknown reject reason nonsense"),
        ([], "--out"),
    ],
)
def test_wrong_arguments_are_named_without_a_traceback(words: list[str], told: str, tmp_path: Path) -> None:
    done = subprocess.run([*EXTRACT, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert told in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
