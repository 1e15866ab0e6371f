"""What a program asks of a device: kernels, waits of the host, copies; each with the line that asked for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Literal, NamedTuple

REPO = Path(__file__).resolve().parents[3]
_PACKAGE = f"{REPO / 'lrs3_loader'}/"
_HERE = f"{Path(__file__).resolve().parent}/"

Arithmetic = Literal["half", "tf32", "float32", "float64", "integer"]


class Kernel(NamedTuple):
    """One kernel on the device."""

    op: str  # name of the PyTorch operation, without its overload
    place: str  # "FILE:LINE FUNCTION" of the code that asked for it
    arithmetic: Arithmetic
    is_product: bool  # a matrix product or a convolution, which has units of its own
    num_bytes: int  # that must be read and written in the device's memory
    num_flops: int


class Wait(NamedTuple):
    """One moment at which the host waits until the device has caught up."""

    kind: str
    place: str


class Copy(NamedTuple):
    """One copy between the memories of host and device."""

    place: str
    num_bytes: int
    to_device: bool


@dataclass
class Record:
    """Everything asked of the device, in order. Several threads may add to it."""

    kernels: list[Kernel] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    unordered: Counter[str] = field(default_factory=Counter)  # sums whose order differs from run to run, by place

    def clear(self) -> None:
        """Forget everything."""
        for part in (self.kernels, self.waits, self.copies, self.unordered):
            part.clear()

    def bytes_copied(self, to_device: bool) -> int:
        return sum(copy.num_bytes for copy in self.copies if copy.to_device == to_device)


def most_common(places: Iterable[str], number: int = 20) -> str:
    """The places that occur most often, one a line, for messages of tests."""
    return "\n".join(f"{count:7d}  {place}" for place, count in Counter(places).most_common(number))


def place_of_caller() -> str:
    """The innermost line of the package on this thread's stack; else the innermost outside of this folder and torch."""
    outside: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return _describe(frame.f_code, frame.f_lineno)
        if outside is None and not name.startswith(_HERE) and "/site-packages/" not in name:
            outside = frame
        frame = frame.f_back
    return "elsewhere" if outside is None else _describe(outside.f_code, outside.f_lineno)


_descriptions: dict[tuple[CodeType, int], str] = {}


def _describe(code: CodeType, line: int) -> str:
    key = (code, line)
    if key not in _descriptions:
        path = Path(code.co_filename)
        name = path.relative_to(REPO) if path.is_relative_to(REPO) else path.name
        _descriptions[key] = f"{name}:{line} {code.co_name}"
    return _descriptions[key]


Place = Callable[[], str]
