"""Untrusted zip archives: what they would unpack to is checked before anything is read."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

#: What zipfile raises for a damaged archive (``RuntimeError`` for an encrypted one), beside ``OSError``.
ZIP_DAMAGE = (EOFError, NotImplementedError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
_MAX_BYTES = 256 << 20
_LOCAL_HEADER_BYTES = 30


def read_zip(path: Path, names: Collection[str] | None = None, max_bytes: int = _MAX_BYTES) -> dict[str, bytes]:
    """Read the files with these names (default: all) out of a zip archive that passes ``check_zip``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, lacks a file, or is refused.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # opening a pipe would wait for ever
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, max_bytes)
            return {name: archive.read(name) for name in (archive.namelist() if names is None else names)}
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    except ZIP_DAMAGE as error:
        raise ValueError(" ".join(str(error)[:300].split()) or type(error).__name__) from error


def check_zip(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Raise ``ValueError`` if an archive would unpack to more than ``max_bytes``, or if two of its files overlap.

    Overlapping files let a small archive unpack to any size. Only stored and deflated files are let through: those of
    LZMA may ask for gigabytes of memory.
    """
    end = total = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        total += member.file_size
        if member.header_offset < end:
            raise ValueError(f"{member.filename[:100]} overlaps another file in the archive")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename[:100]} is compressed in a way that is not supported")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size
    if total > max_bytes:
        raise ValueError(f"it would unpack to {total} bytes, over the limit of {max_bytes}")
