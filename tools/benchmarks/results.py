"""Results of a benchmark: figures and remarks, as they come, and the record they end up in."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lrs3_loader.io.files import atomic_write


@dataclass(frozen=True)
class Bound:
    """A bound that a figure has to reach."""

    value: float
    at_most: bool = False  # else at least

    def is_met(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


@dataclass(frozen=True)
class Figure:
    """One number that was measured."""

    group: str  # what was measured: a stage, a run
    name: str  # in which way: a precision, a package, a number of ranks
    value: float  # the median where it was measured several times
    unit: str
    low: float | None = None  # over the repeats
    high: float | None = None
    share: float | None = None  # of what this machine can do at most, 0..1
    error: float | None = None  # against what ``error_unit`` names
    error_unit: str = ""
    bound: Bound | None = None
    note: str = ""

    @classmethod
    def rate(cls, group: str, name: str, amount: float, seconds: Sequence[float], unit: str, **more: Any) -> Figure:
        """``amount`` per second, from the seconds of several repeats."""
        rates = [amount / each for each in seconds]
        return cls(group, name, statistics.median(rates), unit, min(rates), max(rates), **more)

    @classmethod
    def ratio(cls, group: str, name: str, slow: Sequence[float], fast: Sequence[float], bound: Bound | None) -> Figure:
        """How many times ``fast`` is as fast as ``slow``: seconds of repeats that were taken in turn, pair by pair."""
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        return cls(group, name, statistics.median(ratios), "x", min(ratios), max(ratios), bound=bound)

    def with_error(self, error: float, unit: str) -> Figure:
        return replace(self, error=error, error_unit=unit)


@dataclass(frozen=True)
class Remark:
    """A line for the reader: what the figures rest on, or what could not be measured and why."""

    text: str


@dataclass
class Record:
    """A whole measurement."""

    machine: dict[str, Any]
    command: str = field(default_factory=lambda: shlex.join(["python", *sys.argv]))
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="minutes"))
    figures: list[Figure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, item: Figure | Remark) -> None:
        if isinstance(item, Figure):
            self.figures.append(item)
        else:
            self.remarks.append(item.text)

    def to_json(self) -> str:
        plain = {
            "command": self.command,
            "date": self.date,
            "machine": self.machine,
            "figures": [_plain(figure) for figure in self.figures],
            "remarks": self.remarks,
        }
        return json.dumps(plain, indent=1) + "\n"

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(self.to_json().encode())

    def missed(self) -> list[Figure]:
        """Figures that do not reach their bound."""
        return [figure for figure in self.figures if figure.bound and not figure.bound.is_met(figure.value)]


def _plain(figure: Figure) -> dict[str, Any]:
    values = {name: value for name, value in asdict(figure).items() if value not in (None, "")}
    if figure.bound is not None:
        values["bound"] = {**asdict(figure.bound), "met": figure.bound.is_met(figure.value)}
    return values


def figure_line(figure: Figure) -> str:
    """One row of the table."""
    spread = "" if figure.low is None or figure.high is None else f"({brief(figure.low)} - {brief(figure.high)})"
    share = "" if figure.share is None else f"{100 * figure.share:.0f} %"
    error = "" if figure.error is None else f"{figure.error:.2g} {figure.error_unit}"
    verdict = ""
    if figure.bound is not None:
        verdict = f"{'reached' if figure.bound.is_met(figure.value) else 'MISSED'} ({figure.bound})"
    columns = (
        f"{figure.group:<18}{figure.name:<26}{brief(figure.value):>9} {figure.unit:<13}{spread:>19}{share:>7}",
        error,
        verdict,
        figure.note,
    )
    return "  ".join(column for column in columns if column).rstrip()


def item_line(item: Figure | Remark) -> str:
    """A figure's row, or a remark, indented."""
    return figure_line(item) if isinstance(item, Figure) else f"    {item.text}"


TABLE_HEAD = f"{'':<18}{'':<26}{'median':>9} {'':<13}{'lowest - highest':>19}{'share':>7}  error; bound; note"


def machine_lines(machine: dict[str, Any]) -> Iterable[str]:
    """The machine as one line of text for each thing known of it."""
    return (f"{name}: {value}" for name, value in machine.items())


def brief(value: float) -> str:
    """About three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
