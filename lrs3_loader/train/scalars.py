"""Writes the metrics of a training as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lrs3_loader.io.files import write_result
from lrs3_loader.runtime.boards import Boards

SCALARS_FILE = "scalars.jsonl"
EVALUATION_FILE = "evaluation.json"  # all that is known of the last evaluation


class Scalars:
    """Appends lines ``{"step": n, name: value, ...}`` to FOLDER/scalars.jsonl, and sends them to ``boards``."""

    def __init__(self, folder: Path, first_step: int, boards: Boards | None = None):
        """``first_step`` is where the training begins or resumes; existing lines of later steps are removed."""
        path = folder / SCALARS_FILE
        kept = [line for line in read_scalars(folder) if line["step"] <= first_step]
        with write_result(path) as file:
            file.writelines(_line(values) for values in kept)
        self._file = path.open("ab")
        self._boards = boards

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step."""
        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        if self._boards is not None:
            self._boards.write(step, values)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """Read all lines, but not one that a killed process has left incomplete."""
    path = folder / SCALARS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _line(values: Mapping[str, float]) -> bytes:
    return (json.dumps(values) + "\n").encode()
