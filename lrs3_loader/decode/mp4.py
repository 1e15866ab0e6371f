"""Checks the boxes of an mp4 or mov file against the size of the file, before a decoder trusts them.

Demuxers allocate an index from the counts in the file's header, so a few damaged bytes can ask for gigabytes. Every
video or audio packet takes at least one byte of the file, which bounds what a header may claim. They also play the
first of several files that were joined, and pass over the others.
Boxes: ISO/IEC 14496-12, 4.2 (box), 8.7.3 (``stsz``), 8.7.4 (``stsc``), 8.6.1 (``stts``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lrs3_loader.errors import UnreadableError

FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"moof", b"styp"}
TOP_BOXES = FIRST_BOXES | {b"mfra", b"sidx", b"meta", b"ssix", b"prft", b"emsg", b"udta"}
PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}
MAX_DEPTH = 5


def check_mp4(path: Path, name: str) -> None:
    """Check that the boxes of an mp4 lie inside the file, are of one file, and claim no more packets than it has bytes.

    Files of other formats pass.

    Args:
        name: the name of the file in error messages.

    Raises:
        UnreadableError: the file is cut short or joined from several, or its header is damaged.
        OSError: the file cannot be opened.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        if stream.read(8)[4:8] in FIRST_BOXES:
            _check_boxes(stream, 0, size, size, name, depth=0)


def _check_boxes(stream: BinaryIO, start: int, stop: int, size: int, name: str, depth: int) -> None:
    headers, is_fragmented = [], False
    for kind, body, end in _boxes(stream, start, stop):
        if depth == 0:
            headers += [body - 8] if kind == b"moov" else []
            is_fragmented |= kind == b"moof"
        if end > stop:
            # Some writers leave a few stray bytes after the last box, which do not name a known box.
            if depth == 0 and kind in TOP_BOXES:
                raise UnreadableError(
                    f"{name}: cut short: its {kind.decode()} box should end at byte {end}, the file has {size}"
                )
            return
        if kind in PARENTS and depth < MAX_DEPTH:
            _check_boxes(stream, body, end, size, name, depth + 1)
        elif kind == b"stsz":
            _check_count(name, "packets", _u32(stream, body + 8), size)
        elif kind in (b"stts", b"stsc", b"ctts", b"stco", b"co64"):
            _check_count(name, f"{kind.decode()} entries", _u32(stream, body + 4), (end - body) // 4)
    if len(headers) > 1 and not is_fragmented:  # fragments of a live stream may follow repeated headers
        raise joined(name, headers[1])


def joined(name: str, position: int) -> UnreadableError:
    """Make the error for a file in which the header of another begins at a byte."""
    return UnreadableError(f"{name}: the header of another file is at byte {position}: recordings joined as with cat")


def _boxes(stream: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, first byte of the body, first byte after the box) for the boxes from ``start`` on."""
    while start + 8 <= stop:
        stream.seek(start)
        header = stream.read(16)
        if len(header) < 8:
            return
        length, kind, body = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if length == 1 and len(header) == 16:
            length, body = int.from_bytes(header[8:], "big"), start + 16
        elif length == 0:  # to the end of the file
            length = stop - start
        if length < body - start:
            return
        yield kind, body, start + length
        start += length


def _u32(stream: BinaryIO, at: int) -> int:
    stream.seek(at)
    data = stream.read(4)
    return int(struct.unpack(">I", data)[0]) if len(data) == 4 else 0


def _check_count(name: str, what: str, claimed: int, bound: int) -> None:
    if claimed > bound:
        raise UnreadableError(f"{name}: damaged header: it claims {claimed} {what}, where {bound} could fit")
