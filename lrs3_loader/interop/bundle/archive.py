"""Checks what an untrusted archive would unpack to before a byte of it is written.

Zip (stored or deflated) and plain tar. Only files and folders are admitted, only below the folder they are unpacked
to, each name once, and together no larger than a sound set of features can be.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO

from lrs3_loader.errors import RunError
from lrs3_loader.interop.bundle.parts import PartsReader

MAX_MEMBERS = 1_000_000
MAX_RATIO = 100  # unpacked to packed: features shrink to half at best, but a set may hold 16 MiB of zeros
_MIN_ALLOWED = 1 << 30  # small archives may unpack to this whatever the ratio
_MAX_DEPTH, _MAX_NAME = 32, 1024
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, ValueError, EOFError, RecursionError, IndexError)


@dataclass(frozen=True)
class Member:
    """One file in an archive; ``open()`` gives its contents, to be read forwards."""

    path: PurePosixPath  # relative, without ``..``
    num_bytes: int  # unpacked
    open: Callable[[], IO[bytes]]


@contextmanager
def archive_errors(what: str) -> Iterator[None]:
    """Turn what zipfile and tarfile raise over damaged data into a RunError."""
    try:
        yield
    except NotImplementedError as error:  # some form of zip that zipfile does not know
        raise RunError(f"{what} cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the archive's
            raise RunError(f"{error.filename or what}: {error.strerror}") from error
        raise RunError(f"{what} is damaged: {error}") from error
    except _DAMAGE as error:
        raise RunError(f"{what} is damaged: {error or type(error).__name__}") from error


def list_members(reader: PartsReader, name: str) -> list[Member]:
    """Open a zip or tar and check all of its members; they can be read as long as ``reader`` is open.

    Raises:
        RunError: no archive, damaged, cut off, or one that is refused (links, devices, paths that leave the
            destination, a name twice, absurd sizes); the message names the member.
    """
    head = reader.read(512)
    with archive_errors(name):
        if head[:4] == b"PK\x03\x04":
            members = list(_zip_members(reader, name))
        elif head[257:262] == b"ustar":
            members = list(_tar_members(reader, name))
        else:
            raise RunError(f"{name} does not begin as a zip or tar does: the first part is missing, or it is neither")
    if len(members) > MAX_MEMBERS:
        raise RunError(f"refused: {name} has over {MAX_MEMBERS} members")
    if not members:
        raise RunError(f"{name} holds no files")
    files = {member.path for member in members}
    if len(files) < len(members):
        raise RunError(f"refused: {name} holds one file twice")
    for folder in {parent for path in files for parent in path.parents} & files:
        raise RunError(f"refused: {folder} in {name} is both a file and a folder")
    total = sum(member.num_bytes for member in members)
    if total > max(MAX_RATIO * reader.num_bytes, _MIN_ALLOWED):
        raise RunError(f"refused: {name} of {reader.num_bytes} bytes would unpack to {total}")
    return members


def _zip_members(reader: PartsReader, name: str) -> Iterator[Member]:
    try:
        file = zipfile.ZipFile(reader)
    except zipfile.BadZipFile as error:
        raise RunError(f"{name} has no directory at its end: the last part is missing or short ({error})") from error
    if sum(info.compress_size for info in file.infolist()) > reader.num_bytes:
        raise RunError(f"refused: members of {name} overlap")
    for info in file.infolist():
        where = f"{info.orig_filename!r:.200} in {name}"
        if info.create_system == 3 and stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RunError(f"refused: {where} is a link or a device")
        path = _safe_path(info.orig_filename, name)
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise RunError(f"{where} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RunError(f"{where} is neither stored nor deflated")
        with file.open(info):  # reads its local header, so that a missing middle shows now
            yield Member(path, info.file_size, partial(file.open, info))


def _tar_members(reader: PartsReader, name: str) -> Iterator[Member]:
    reader.seek(0)
    file = tarfile.open(fileobj=reader, mode="r:", errorlevel=2)  # noqa: SIM115  (read later)
    end = num_members = 0
    while (info := file.next()) is not None:
        num_members += 1
        if info.offset < end or info.size < 0 or num_members > MAX_MEMBERS:
            raise RunError(f"refused: {name} has headers that lead backwards, or over {MAX_MEMBERS} members")
        path = _safe_path(info.name, name)
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise RunError(f"refused: {info.name!r:.200} in {name} is a link, a device or a sparse file")
        end = info.offset_data + (-(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if info.isreg() else 0)
        if end > reader.num_bytes:
            raise RunError(f"{name} ends inside {info.name!r:.200}: the last part is missing or short")
        if info.isreg():
            yield Member(path, info.size, partial(tarfile.ExFileObject, file, info))
    reader.seek(end)
    if reader.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise RunError(f"{name} is damaged after byte {end}, or its last part is missing or short")


def _safe_path(text: str, name: str) -> PurePosixPath:
    """The path of a member, if it stays below the destination and means the same on any system."""
    parts = text.rstrip("/").split("/")
    parts = parts[1:] if parts[0] == "." and len(parts) > 1 else parts
    is_wrong = len(text) > _MAX_NAME or len(parts) > _MAX_DEPTH or "\\" in text or not text.isprintable()
    if is_wrong or any(part in ("", "..") for part in parts):
        raise RunError(f"refused: the path {text!r:.200} in {name} leads elsewhere or is no plain path")
    return PurePosixPath(*parts)
