"""A table of the figures of many clips, one column per figure, from the ledgers of their shards."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import write_result
from lrs3_loader.quality.figures import FIGURES_VERSION
from lrs3_loader.run.ledger import REPAIR, Ledger, split_figures
from lrs3_loader.types import FRAMES_PER_SECOND

if TYPE_CHECKING:
    import pandas

INSTALL = "pip install 'lrs3_loader[table]'"
#: Columns that every table has, beside ``num_frames`` and ``duration_seconds``.
TEXT_COLUMNS = ("key", "split", "speaker", "utterance", "shard")


@dataclass(frozen=True)
class FigureTable:
    """Columns of equal length: texts as objects, ``num_frames`` as i64, all others as f64, NaN where there is no value.

    ``has_figures`` tells the clips whose ledger has figures; runs of older versions have none.
    """

    columns: Mapping[str, np.ndarray]
    has_figures: np.ndarray  # bool [n]
    name: str = "the run"  # for messages

    def __len__(self) -> int:
        return len(self.has_figures)

    @property
    def seconds(self) -> float:
        """Duration of all clips together."""
        return float(self.columns["duration_seconds"].sum())

    @property
    def missing(self) -> str:
        """Say that clips have no figures and what to do; empty if all have them."""
        lacking = len(self) - int(self.has_figures.sum())
        if not lacking:
            return ""
        return (
            f"{lacking} of {len(self)} clips of {self.name} have no figures in their ledgers, which an older version "
            "wrote; lrs3-loader verify RUN --add-figures copies there those that the shards hold, and another "
            "extraction measures all"
        )

    @classmethod
    def of_ledgers(
        cls, ledgers: Iterable[Ledger], name: str = "the run", only: Collection[str] | None = None
    ) -> FigureTable:
        """Build the table from ledgers, in their order.

        Args:
            name: of the run, for messages.
            only: figures to read (None: all).

        Raises:
            RunError: a ledger holds something else than numbers, or figures of another version's definitions.
        """
        kept = [ledger for ledger in ledgers if ledger.samples]
        for ledger in kept:
            if ledger.figures_version not in (0, FIGURES_VERSION):
                raise RunError(
                    f"{name}: the ledger of {ledger.shard} has figures of version {ledger.figures_version}, not "
                    f"{FIGURES_VERSION}; use the version of lrs3_loader that wrote it"
                )
        keys = [key for ledger in kept for key, _ in ledger.samples]
        frames = np.array([frames for ledger in kept for _, frames in ledger.samples], np.int64)
        parts = "/".join(keys).split("/") if keys else []  # one list: three texts of each key
        shards = [ledger.shard for ledger in kept for _ in ledger.samples]
        texts = [keys, *(parts[i::3] for i in range(3)), shards]
        columns = dict(zip(TEXT_COLUMNS, map(_objects, texts), strict=True))
        columns |= {"num_frames": frames, "duration_seconds": frames / FRAMES_PER_SECOND}
        figures = {figure for ledger in kept for figure in ledger.figures} - columns.keys()
        for figure in sorted(figures if only is None else figures.intersection(only)):
            columns[figure] = _column(kept, figure, name)
        has = [bool(ledger.figures) for ledger in kept for _ in ledger.samples]
        return cls(columns, np.array(has, bool), name)

    def with_offsets(self, offsets: Sequence[Mapping[str, Any]]) -> FigureTable:
        """Add ``sync_offset`` and ``sync_confidence`` of the clips in ``offsets``, the lines of ``sync.jsonl``."""
        by_key = {line["key"]: (line["offset_frames"], line.get("confidence")) for line in offsets}
        rows = [by_key.get(key, (None, None)) for key in self.columns["key"]]
        offset, confidence = (np.array([row[i] for row in rows], np.float64) for i in range(2))
        columns = {**self.columns, "sync_offset": offset, "sync_confidence": confidence}
        return FigureTable(columns, self.has_figures, self.name)

    def rows(self, chosen: np.ndarray) -> FigureTable:
        """Return the table of the rows that a mask or their indices choose."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return FigureTable(columns, self.has_figures[chosen], self.name)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a pandas table; raises ``RunError`` if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise RunError(f"a table needs pandas ({error}); {INSTALL}") from error
        return pandas.DataFrame(dict(self.columns))

    def write_csv(self, path: Path) -> None:
        """Write a line of names and one per clip; a value that is missing is empty."""
        columns = [_as_texts(column) for column in self.columns.values()]
        with write_result(path) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(zip(*columns, strict=True))
            file.flush()
            file.detach()

    def write_parquet(self, path: Path) -> None:
        """Write a parquet file; raises ``RunError`` if pyarrow is not installed."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise RunError(f"parquet needs pyarrow ({error}); {INSTALL}") from error
        columns = {name: pyarrow.array(column, from_pandas=True) for name, column in self.columns.items()}
        with write_result(path) as file:
            parquet.write_table(pyarrow.table(columns), file)


def _objects(texts: list[str]) -> np.ndarray:
    """Return an array of Python texts: numpy's own have all the length of the longest."""
    column = np.empty(len(texts), object)
    column[:] = texts
    return column


def _as_texts(column: np.ndarray) -> list[Any]:
    if column.dtype.kind != "f":
        return column.tolist()
    return ["" if value != value else int(value) if value.is_integer() else value for value in column.tolist()]


def _column(ledgers: Sequence[Ledger], figure: str, run: str) -> np.ndarray:
    """Parse one figure of all samples, as one text: a call for each ledger would take most of the time."""
    texts = [ledger.figures.get(figure) or " ".join(["nan"] * len(ledger.samples)) for ledger in ledgers]
    num_samples = sum(len(ledger.samples) for ledger in ledgers)
    try:
        values = split_figures(" ".join(texts))
        if len(values) == num_samples:
            return values
        problem = f"{len(values)} numbers for {num_samples} samples"
    except ValueError as error:
        problem = str(error)
    bad = next((ledger for ledger, text in zip(ledgers, texts, strict=True) if not _fits(ledger, text)), ledgers[0])
    raise RunError(f"{run}: the ledger of {bad.shard} is damaged ({figure}: {problem:.100}); {REPAIR}")


def _fits(ledger: Ledger, text: str) -> bool:
    try:
        return len(split_figures(text)) == len(ledger.samples)
    except ValueError:
        return False
