"""Atomic writes, hashes, and disk errors turned into one line with the path, the reason and the remedy."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, cast

from lrs3_loader.errors import RunError

_PIECE = 1 << 20  # bytes read at a time
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")  # of atomic_write


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents as hexadecimal digits; ``RunError`` if it cannot be read."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


class HashingFile:
    """Hashes and counts the bytes that are read from a file or written to it."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        return self._count(self._file.read(size))

    def write(self, data: bytes) -> int:
        return self._file.write(self._count(data))

    def _count(self, data: bytes) -> bytes:
        self._hash.update(data)
        self.num_bytes += len(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601, to the millisecond: ``2026-01-31T12:00:00.000+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def first_existing(path: Path) -> Path:
    """Return ``path`` as an absolute path, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename survives a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they do not exist, durably; ``RunError`` if the disk refuses."""
    with writing(path):
        make_durable_folder(path)


def make_durable_folder(path: Path) -> None:
    """Make a folder and its parents where they do not exist, and sync the folders that hold the new names.

    Raises:
        OSError: the disk refuses.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        with suppress(PermissionError):  # a folder may be written to, but not be read
            sync_folder(folder.parent)


def clear_unfinished(folder: Path, is_own: Callable[[str], object]) -> None:
    """Remove the temporary files that killed processes left of files in ``folder``.

    A process that is still writing one holds a lock on it, so its file stays, and so does everything where the file
    system has no locks.

    Args:
        is_own: tells by a file's final name whether it is the caller's.
    """
    with writing(folder), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if (match := _TEMPORARY.fullmatch(entry.name)) and is_own(match[1])]
    for path in left:
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


@contextmanager
def atomic_write(
    path: Path, scratch: Path | None = None, check: Callable[[], None] | None = None
) -> Iterator[IO[bytes]]:
    """Open a file that appears under ``path`` only if the block ends without an exception.

    The file is written under a temporary name, flushed to disk, and renamed: readers see the old file or the new one,
    never a part. A killed process leaves at most a temporary file behind.

    Args:
        scratch: folder for the temporary file, on the same file system as ``path`` (default: the folder of ``path``).
        check: called when the file is on disk, right before it appears; an exception of it leaves the old file.

    Raises:
        RunError: the disk refuses; the message names ``path`` and the remedy.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=scratch or path.parent)
    temporary = Path(name)
    with suppress(OSError):  # some file systems have no locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see clear_unfinished
    try:
        with output_file(handle, path) as file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            os.chmod(temporary, 0o666 & ~_umask())
        if check is not None:
            check()
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the disk may refuse this as well
            temporary.unlink(missing_ok=True)
        raise
    with writing(path):
        sync_folder(path.parent)


@contextmanager
def write_result(path: Path) -> Iterator[IO[bytes]]:
    """As ``atomic_write``, and first remove what killed processes left of this file; for one writer at a time."""
    clear_unfinished(path.parent, path.name.__eq__)
    with atomic_write(path) as file:
        yield file


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "raise the quota or remove files that count towards it",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make that file system writable",
    errno.EACCES: "give this user permission to write there",
    errno.EPERM: "give this user permission to write there",
    errno.ENOENT: "a folder that was there is gone: restore it",
    errno.ESTALE: "a folder that was there is gone: restore it",
    errno.ENOTDIR: "a file stands where a folder should be: move it away",
    errno.EIO: "check that disk or the connection to it",
}


def cannot_write(path: Path, error: OSError) -> RunError:
    """Make the error to raise when ``path`` could not be written."""
    remedy = _REMEDIES.get(error.errno or 0, "fix this")
    return RunError(f"cannot write {path}: {error.strerror or error}; {remedy}, then run the same command again")


#: Errors that a disk or its owner is to blame for, wherever they come up.
_DISK_ERRNOS = {
    *(errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
}


def disk_failure(error: OSError) -> RunError | None:
    """Make the error to raise for an ``OSError`` that no caller expected; None if it is not the disk's."""
    if error.errno not in _DISK_ERRNOS:
        return None
    what = error.filename if isinstance(error.filename, (str, Path)) else "a file"
    remedy = "give this user permission" if error.errno in (errno.EACCES, errno.EPERM) else _REMEDIES[error.errno]
    return RunError(f"cannot read or write {what}: {error.strerror}; {remedy}, then run the same command again")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a ``RunError`` that says what to do about ``path``."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a ``RunError``, unless ``path`` is missing (``FileNotFoundError``)."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def output_file(handle: int, path: Path) -> IO[bytes]:
    """Make a buffered file over an open descriptor. Failing to write or close it is a ``RunError`` that names ``path``.

    Errors of the code that fills the file are thereby not mistaken for a full disk.
    """
    return cast(IO[bytes], io.BufferedWriter(_Output(handle, path)))


class _Output(io.FileIO):
    def __init__(self, handle: int, path: Path) -> None:
        super().__init__(handle, "wb")
        self._path = path

    def write(self, data: Any, /) -> int:
        with writing(self._path):
            return super().write(data)

    def truncate(self, size: int | None = None, /) -> int:
        with writing(self._path):
            return super().truncate(size)

    def close(self) -> None:
        with writing(self._path):  # network file systems may report a full quota only here
            super().close()
