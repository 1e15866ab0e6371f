"""Log lines of every rank as JSON, and the progress of a launch as a text file for Prometheus."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, make_folder

METRICS_FILE = "lrs3_loader.prom"
#: Metrics by name, with their meaning. Their values are those of this launch, and of clips also of those before.
METRICS = {
    "clips": "clips of the run",
    "clips_done": "clips that are extracted or rejected, of earlier launches too",
    "clips_rejected": "clips that this launch rejected",
    "frames": "25 fps frames that this launch extracted",
    "frames_per_second": "frames over seconds of this launch",
}


class _JsonLines(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "rank": self._rank,
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "values", {}),
        }
        return json.dumps(line)


@contextmanager
def log_to(folder: Path | None, rank: int) -> Iterator[None]:
    """Append what this rank logs to ``rank-N.jsonl`` in a folder while the block runs; None: nowhere.

    Each line has ``time``, ``rank``, ``level`` and ``message``, and the values of ``extra={"values": {...}}``.

    Raises:
        RunError: the folder cannot be made, or the file cannot be opened.
    """
    if folder is None:
        yield
        return
    make_folder(folder)
    path = folder / f"rank-{rank}.jsonl"
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    handler.setFormatter(_JsonLines(rank))
    package = logging.getLogger("lrs3_loader")
    package.addHandler(handler)
    level = package.level
    package.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def write_metrics(folder: Path, values: Mapping[str, float]) -> None:
    """Write ``METRICS`` for the text file collector of Prometheus; a full disk costs only them."""
    lines = []
    for name, meaning in METRICS.items():
        kind = "gauge" if name in ("clips", "frames_per_second") else "counter"
        lines += [
            f"# HELP lrs3_loader_{name} {meaning}",
            f"# TYPE lrs3_loader_{name} {kind}",
            f"lrs3_loader_{name} {values[name]:g}",
        ]
    with suppress(RunError, OSError), atomic_write(folder / METRICS_FILE) as file:
        file.write(("\n".join(lines) + "\n").encode())
