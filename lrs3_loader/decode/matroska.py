"""Finds the damaged parts of Matroska files: those without their checksum, and those whose structure is broken.

An element may begin with the CRC-32 of the rest of it (RFC 8794, 11.3.1; Matroska: RFC 9559). FFmpeg writes one for
each cluster of a Matroska file. WebM files have none: only the lengths of their elements can contradict one another.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_CLUSTER_BYTES = _CLUSTER.to_bytes(4, "big")
#: What a cluster may hold: Timestamp, SimpleBlock, BlockGroup, Position, PrevSize, SilentTracks, EncryptedBlock, Void,
#: CRC-32.
_IN_CLUSTERS = frozenset((0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, 0xEC, 0xBF))
_CHECKSUM = b"\xbf\x84"  # its element has four bytes
_SEARCH_BYTES = 1 << 20
_MAX_CHECKED_BYTES = 1 << 28  # of one element; those of FFmpeg have 5 MB


class _Element(NamedTuple):
    kind: int
    start: int  # of its contents, in bytes
    stop: int | None  # None: not known, as in live streams


def damaged_ranges(path: Path) -> tuple[range, ...]:
    """Return the bytes that are damaged: elements without their checksum, and what follows a break in the structure.

    After a break, reading goes on at the next cluster. Empty for files of other formats.

    Raises:
        OSError: the file cannot be read.
    """
    found: list[range] = []
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        segment = next((one for one in _elements(file, 0, size) if one.kind == _SEGMENT), None)
        if segment is None:
            return ()
        at = segment.start
        while at < size:
            element = next(_elements(file, at, size), None)
            if element is None:  # cut, or with a wrong length
                file.seek(at)
                start = at + _whole_of_cut(file.read(_MAX_CHECKED_BYTES))
                at = max(start, at + 1)  # what begins here is no whole cluster: the next one is
            elif element.stop is None or element.stop - element.start > _MAX_CHECKED_BYTES:
                return ()
            else:
                file.seek(element.start)
                contents = file.read(element.stop - element.start)
                start, at = element.stop, element.stop
                if _has_wrong_checksum(contents):
                    found.append(range(element.start, element.stop))
                elif element.kind == _CLUSTER:
                    start = at = element.start + _whole_bytes(contents)
                if start == element.stop:
                    continue
            at = _next_cluster(file, at, size)
            found.append(range(start, at))
    return tuple(found)


def _has_wrong_checksum(contents: bytes) -> bool:
    if contents[:2] != _CHECKSUM:
        return False
    return zlib.crc32(memoryview(contents)[6:]) != int.from_bytes(contents[2:6], "little")


def _whole_bytes(contents: bytes) -> int:
    """Return up to where the elements of a cluster are whole: all of it, or the last one before a break in them.

    The one before a break counts as broken, as it may be its length that is wrong.
    """
    last = at = 0
    is_known = True
    for element in _elements(io.BytesIO(contents), 0, len(contents)):
        if element.stop is None or element.kind == _CLUSTER:
            break
        is_known = is_known and element.kind in _IN_CLUSTERS
        if is_known:
            last = at
        at = element.stop
    is_cut = contents.startswith(_CLUSTER_BYTES, at)  # the next one begins
    return at if is_cut or at == len(contents) else last


def _whole_of_cut(element: bytes) -> int:
    """Return up to where a cluster without a checksum, which is cut or has a wrong length, is whole; 0 for others."""
    _, size_bytes = _number(element, len(_CLUSTER_BYTES), keeps_marker=False)
    header = len(_CLUSTER_BYTES) + size_bytes
    is_checked = element[header : header + 2] == _CHECKSUM
    if not element.startswith(_CLUSTER_BYTES) or not size_bytes or is_checked:
        return 0
    return header + _whole_bytes(element[header:])


def _next_cluster(file: BinaryIO, start: int, stop: int) -> int:
    """Return where the next cluster begins, or the end of the file."""
    file.seek(start)
    overlap = b""
    while block := file.read(_SEARCH_BYTES):
        at = (overlap + block).find(_CLUSTER_BYTES)
        if at >= 0:
            return start - len(overlap) + at
        start += len(block)
        overlap = block[-3:]
    return stop


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
