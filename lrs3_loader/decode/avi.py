"""Checks that the chunks of an AVI file follow one another without a break.

AVI has no timestamps: where bytes are lost or come in, FFmpeg looks for the next chunk, and all later frames are early
or late. Chunks: Microsoft, "AVI RIFF File Reference".
"""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import BinaryIO

from lrs3_loader.errors import UnreadableError

_NAME = frozenset((string.ascii_letters + string.digits + " ._").encode())
_UNFINISHED = (0, 0xFFFFFFFF)  # length of a file whose writer was stopped


def check_avi(path: Path, name: str) -> None:
    """Check the chain of chunks. Files of other formats pass, and so do those of a writer that was stopped.

    Args:
        name: the name of the file in error messages.

    Raises:
        UnreadableError: the file is cut short, or its chunks do not follow one another.
        OSError: the file cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = 0
        while start + 12 <= size:  # files over 1 GB have several RIFF chunks
            file.seek(start)
            head = file.read(12)
            length = int.from_bytes(head[4:8], "little")
            if head[:4] != b"RIFF" or head[8:11] != b"AVI" or length in _UNFINISHED:
                return
            stop = start + 8 + length
            if stop > size:
                raise UnreadableError(f"{name}: cut short: it should have {stop} bytes, and has {size}")
            if not _check_chunks(file, start + 12, stop, name):
                return
            start = stop + length % 2


def _check_chunks(file: BinaryIO, start: int, stop: int, name: str) -> bool:
    """Check chunks that lie between two bytes, and those inside them; returns False if one is unfinished."""
    while start + 8 <= stop:
        file.seek(start)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] == b"LIST" and length in _UNFINISHED:
            return False
        if not _NAME.issuperset(head[:4]) or start + 8 + length > stop:
            raise UnreadableError(f"{name}: damaged: no chunk at byte {start}, where one should begin")
        if (
            head[:4] == b"LIST"
            and head[8:12] in (b"movi", b"rec ")
            and not _check_chunks(file, start + 12, start + 8 + length, name)
        ):
            return False
        start += 8 + length
        if length % 2 and start < stop:  # most writers fill up to even lengths
            file.seek(start)
            start += not _NAME.issuperset(file.read(4))
    return True
