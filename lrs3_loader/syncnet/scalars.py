"""Figures of a training on disk: always as lines of JSON, and for TensorBoard where that is installed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lrs3_loader.io.files import atomic_write

logger = logging.getLogger(__name__)

SCALARS_FILE, TENSORBOARD_FOLDER = "scalars.jsonl", "tensorboard"
EVALUATION_FILE = "evaluation.json"  # the last evaluation, offset by offset


class Scalars:
    """FOLDER/scalars.jsonl, one line ``{"step": n, name: value, ...}`` each time; FOLDER/tensorboard/ the same.

    Args:
        folder: of the training.
        first_step: lines of later steps are of a training that was killed and begins again before them: they go.
        tensorboard: write for it, too. Where it is not installed, a log line says how to get it.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool):
        path = folder / SCALARS_FILE
        kept = [line for line in read_scalars(folder) if line["step"] <= first_step]
        with atomic_write(path) as file:
            file.writelines(_line(values) for values in kept)
        self._file = path.open("ab")
        self._board = _open_board(folder / TENSORBOARD_FOLDER, first_step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """All lines there are; one that a killed process left half written is passed over."""
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
            "TensorBoard is not installed (pip install 'lrs3_loader[train]'): figures go to %s alone", SCALARS_FILE
        )
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
