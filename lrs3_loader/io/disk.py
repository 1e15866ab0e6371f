"""What a disk that refuses says to the user: one line with the path, the reason and the remedy."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lrs3_loader.errors import RunError

_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "raise the quota or remove files that count towards it",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make that file system writable",
    errno.EACCES: "give this user permission to write there",
    errno.EPERM: "give this user permission to write there",
    errno.ENOENT: "a folder that was there is gone: put it back",
    errno.ESTALE: "a folder that was there is gone: put it back",
    errno.ENOTDIR: "a file stands where a folder should be: move it away",
    errno.EIO: "check that disk or the connection to it",
}


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error to raise where ``path`` could not be written."""
    remedy = _REMEDIES.get(error.errno or 0, "put that right")
    return RunError(f"cannot write {path}: {error.strerror or error}; {remedy}, then run the same command again")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within: an ``OSError`` becomes a ``RunError`` that says what to do about ``path``."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """The same for reading; a file that is not there stays a ``FileNotFoundError`` or ``NotADirectoryError``."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def output_file(handle: int, path: Path) -> IO[bytes]:
    """A buffered file over an open descriptor whose failing writes name ``path``, under which it is to appear.

    So whoever fills the file may fail for reasons of his own, and is not told that the disk is full.
    """
    return cast(IO[bytes], io.BufferedWriter(_Output(handle, path)))


class _Output(io.FileIO):
    def __init__(self, handle: int, path: Path) -> None:
        super().__init__(handle, "wb")
        self._path = path

    def write(self, data: Any, /) -> int:
        with writing(self._path):
            return super().write(data)
