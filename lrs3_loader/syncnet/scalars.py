"""Writes the metrics of a training as lines of JSON, and for TensorBoard if it is installed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrs3_loader.io.files import write_result

logger = logging.getLogger(__name__)

SCALARS_FILE, TENSORBOARD_FOLDER = "scalars.jsonl", "tensorboard"
EVALUATION_FILE = "evaluation.json"  # the last evaluation, offset by offset


class Scalars:
    """Appends lines ``{"step": n, name: value, ...}`` to FOLDER/scalars.jsonl, and writes FOLDER/tensorboard/."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool):
        """``first_step`` is where the training begins or resumes; existing lines of later steps are removed."""
        path = folder / SCALARS_FILE
        kept = [line for line in read_scalars(folder) if line["step"] <= first_step]
        with write_result(path) as file:
            file.writelines(_line(values) for values in kept)
        self._file = path.open("ab")
        self._board = _open_board(folder / TENSORBOARD_FOLDER, first_step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step."""
        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """Read all lines, but not one that a killed process has left incomplete."""
    path = folder / SCALARS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _line(values: Mapping[str, float]) -> bytes:
    return (json.dumps(values) + "\n").encode()


def _open_board(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "TensorBoard is not installed (pip install 'lrs3_loader[train]'): metrics go to %s only", SCALARS_FILE
        )
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
