"""Mean and standard deviation of every field of a run, for normalisation, from one pass over its samples.

Sums of squares lose precision where the mean is much larger than the deviation. Here each part keeps its own mean and
the squared deviations from it; parts are merged by the formula of Chan, Golub and LeVeque, "Algorithms for computing
the sample variance" (1983).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import write_result
from lrs3_loader.io.storage import Location, local_path
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.shards import check_sample
from lrs3_loader.run.tar import DamagedError
from lrs3_loader.stream import Raw, ShardStream
from lrs3_loader.stream.normalize import LOG_F0, STATS_FILE
from lrs3_loader.stream.row_sample import RowSample
from lrs3_loader.stream.sources import stored_fields
from lrs3_loader.types import MEDIA_FIELDS, field_spec, is_speech

_VERSION = 2  # 2: with percentiles and log_f0
_UNITS = {LOG_F0: "natural logarithm of Hz, voiced rows"}
_LEFT_OUT = {"valid", "face_to_frame", "mouth_to_frame", *MEDIA_FIELDS}
_NO_FACE_NEEDED = ("mel", "f0", "id")  # other fields are interpolated where no face was detected


@dataclass(frozen=True)
class Moments:
    """Number of rows of K numbers, their mean, and the sum of squared deviations from it, in f64."""

    count: int
    mean: np.ndarray  # [K]
    squares: np.ndarray  # [K]

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Compute the moments of rows [N, K], N > 0."""
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        return cls(len(rows), mean, np.square(rows - mean).sum(0))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows together."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + np.square(shift) * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def deviation(self) -> np.ndarray:
        """[K] standard deviation, normalised by N."""
        return np.sqrt(self.squares / self.count)


@dataclass(frozen=True)
class RunStats:
    """The moments of every field over a set of samples.

    Rows are flattened to K numbers: 80 for ``mel``, 204 for ``idexp_lm3d``. Of ``f0``, only voiced rows count, and
    ``log_f0`` is their natural logarithm; of the fields of the face, only frames in which one was detected.
    """

    num_samples: int = 0
    num_frames: int = 0
    fields: Mapping[str, Moments] = field(default_factory=dict)
    rows: Mapping[str, RowSample] = field(default_factory=dict)  # some rows of each field, for percentiles

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> RunStats:
        """Compute the statistics of one sample of the task ``"raw"``."""
        found = {name: _rows(name, sample) for name in sample if field_spec(name) and name not in _LEFT_OUT}
        if "f0" in found:
            found[LOG_F0] = np.log(found["f0"].astype(np.float64))
        found = {name: rows for name, rows in found.items() if len(rows)}
        moments = {name: Moments.of(rows) for name, rows in found.items()}
        drawn = {name: RowSample.of(rows, sample["__key__"], name) for name, rows in found.items()}
        return cls(1, int(sample["json"]["num_frames"]), moments, drawn)

    def merge(self, other: RunStats) -> RunStats:
        """Return the statistics of both sets of samples together.

        Raises:
            ValueError: a field has different widths in the two (another speech encoder or face model).
        """
        merged = dict(self.fields)
        for name, moments in other.fields.items():
            mine = merged.get(name)
            if mine is not None and mine.mean.shape != moments.mean.shape:
                raise ValueError(f"{name} has {len(mine.mean)} numbers per row here and {len(moments.mean)} there")
            merged[name] = moments if mine is None else mine.merge(moments)
        rows = dict(self.rows)
        for name, drawn in other.rows.items():
            rows[name] = drawn if name not in rows else rows[name].merge(drawn)
        return RunStats(self.num_samples + other.num_samples, self.num_frames + other.num_frames, merged, rows)

    def to_json(self) -> str:
        fields = {
            name: {
                "unit": _unit(name),
                "count": moments.count,
                "mean": moments.mean.tolist(),
                "deviation": moments.deviation.tolist(),
                "percentiles": self.rows[name].percentiles() if name in self.rows else {},
            }
            for name, moments in self.fields.items()
        }
        plain = {"version": _VERSION, "num_samples": self.num_samples, "num_frames": self.num_frames, "fields": fields}
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def compute_stats(samples: Iterable[Mapping[str, Any]]) -> RunStats:
    """Compute the statistics of all samples, holding one at a time."""
    total = RunStats()
    for sample in samples:
        total = total.merge(RunStats.of(sample))
    return total


def write_stats(
    run: Location,
    partial: bool = False,
    select: Callable[[str], bool] | None = None,
    out: Path | None = None,
    where: str | None = None,
) -> tuple[Path, RunStats]:
    """Compute the statistics of a run and write them to its folder as ``stats.json``.

    Args:
        run: the run's folder, or its URL.
        partial: use the shards written so far of an unfinished run.
        select: called with a clip's key; only clips for which it returns true count.
        out: another file to write; needed for a run at a URL.
        where: only clips for which this condition over their figures is true count.

    Raises:
        RunError: there is no run, it is not finished (unless ``partial``), no clip is selected, or a tar is damaged.
    """
    stream = ShardStream(
        run, _task(run), shuffle=False, select=select, where=where, partial=partial, rank=0, world_size=1
    )
    try:
        stats = compute_stats(check_sample(str(run), sample) for sample in stream)
    except DamagedError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise RunError(f"{run}: its samples do not match: {error}") from error
    path = out or local_path(run, "writing statistics next to the shards") / STATS_FILE
    with write_result(path) as file:
        file.write(stats.to_json().encode())
    return path, stats


def _task(run: Location) -> Raw:
    """Return the task that reads all arrays of a run, without decoding its pixels and audio."""
    first = next(RunFolder.open(run).ledgers(), None)
    held = None if first is None else stored_fields(first)
    return Raw() if held is None or not held & MEDIA_FIELDS else Raw(fields=tuple(sorted(held - MEDIA_FIELDS)))


def describe_stats(stats: RunStats) -> str:
    """Return a line for each field with its rows and the ranges of its means and deviations."""
    lines = [f"{stats.num_samples} samples, {stats.num_frames} frames"]
    for name, moments in stats.fields.items():
        mean, deviation = moments.mean, moments.deviation
        lines.append(
            f"  {name:<12} {moments.count} rows of {len(mean)}: mean {mean.min():.4g} to {mean.max():.4g}, "
            f"deviation {deviation.min():.4g} to {deviation.max():.4g} ({_unit(name)})"
        )
    return "\n".join(lines)


def _unit(name: str) -> str:
    spec = field_spec(name)
    return spec.unit if spec is not None else _UNITS[name]


def _rows(name: str, sample: Mapping[str, Any]) -> np.ndarray:
    """Return the rows [N, K] of a field that count."""
    array = sample[name]
    if name == "id":
        return array[None]
    if name == "f0":
        return array[array > 0][:, None]
    if name not in _NO_FACE_NEEDED and not is_speech(name) and "valid" in sample:
        array = array[sample["valid"]]
    return array.reshape(len(array), -1)
