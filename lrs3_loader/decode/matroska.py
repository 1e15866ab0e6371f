"""Finds the damaged parts of Matroska files that hold checksums, as those that FFmpeg writes do (WebM files do not).

An element may begin with the CRC-32 of the rest of it (RFC 8794, 11.3.1; Matroska: RFC 9559).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_SEGMENT = 0x18538067
_MAX_CHECKED_BYTES = 1 << 28  # of one element; those of FFmpeg have 5 MB


class _Element(NamedTuple):
    kind: int
    start: int  # of its contents, in bytes
    stop: int | None  # None: not known, as in live streams


def damaged_ranges(path: Path) -> tuple[range, ...]:
    """Return the bytes that are damaged: elements without their checksum, and what follows a break in the structure.

    Empty for files of other formats, and for those without checksums.

    Raises:
        OSError: the file cannot be read.
    """
    found: list[range] = []
    num_checked = 0
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        segment = next((one for one in _elements(file, 0, size) if one.kind == _SEGMENT), None)
        if segment is None:
            return ()
        at = segment.start
        for element in _elements(file, segment.start, size):
            at = element.start
            if element.stop is None or element.stop - element.start > _MAX_CHECKED_BYTES:
                return ()
            at = element.stop
            file.seek(element.start)
            contents = file.read(element.stop - element.start)
            if contents[:1] == b"\xbf" and contents[1:2] == b"\x84":
                num_checked += 1
                if zlib.crc32(memoryview(contents)[6:]) != int.from_bytes(contents[2:6], "little"):
                    found.append(range(element.start, element.stop))
    if num_checked and at < size:
        found.append(range(at, size))
    return tuple(found) if num_checked else ()


def _elements(file: BinaryIO, start: int, stop: int) -> Iterator[_Element]:
    """Yield the elements from a byte on, until one does not fit into the file."""
    while start < stop:
        file.seek(start)
        header = file.read(12)
        kind, kind_bytes = _number(header, 0, keeps_marker=True)
        size, size_bytes = _number(header, kind_bytes, keeps_marker=False)
        if not kind_bytes or kind_bytes > 4 or not size_bytes:
            return
        start += kind_bytes + size_bytes
        if size == (1 << 7 * size_bytes) - 1:
            yield _Element(kind, start, None)
            return
        if start + size > stop and kind != _SEGMENT:
            return
        yield _Element(kind, start, start + size)
        start += size


def _number(data: bytes, at: int, keeps_marker: bool) -> tuple[int, int]:
    """Return a number of variable length and how many bytes it takes: 0 if there is none."""
    if at >= len(data) or not data[at]:
        return 0, 0
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return 0, 0
    number = int.from_bytes(data[at : at + length], "big")
    return number if keeps_marker else number & ~(1 << 7 * length), length
