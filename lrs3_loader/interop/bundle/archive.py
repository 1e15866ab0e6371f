"""Checks what an untrusted archive would unpack to before a byte of it is written.

Zip (stored or deflated) and plain tar. Only files and folders are admitted, only below the folder they are unpacked
to, each name once, and together no larger than a sound set of features can be.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from lrs3_loader.errors import RunError
from lrs3_loader.interop.bundle.parts import PartsReader
from lrs3_loader.run.tar import DamagedError, TarMember, tar_members

MAX_MEMBERS = 1_000_000
MAX_RATIO = 100  # unpacked to packed: features shrink to half at best, but a set may hold 16 MiB of zeros
_MIN_ALLOWED = 1 << 30  # small archives may unpack to this whatever the ratio
_MAX_DEPTH, _MAX_NAME, _MAX_PART = 32, 1024, 255
_BLOCK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, IndexError)


@dataclass(frozen=True)
class Member:
    """One file in an archive."""

    path: PurePosixPath  # relative, without ``..``
    num_bytes: int  # unpacked
    blocks: Callable[[], Iterator[bytes]]  # its contents


@contextmanager
def archive_errors(what: str) -> Iterator[None]:
    """Turn what zipfile raises over damaged data into a RunError."""
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
            yield Member(path, info.file_size, partial(_zip_blocks, file, info))


def _zip_blocks(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with file.open(info) as packed:
        yield from iter(partial(packed.read, _BLOCK), b"")


def _tar_members(reader: PartsReader, name: str) -> Iterator[Member]:
    try:
        for number, member in enumerate(tar_members(partial(_read_at, reader), reader.num_bytes)):
            if number >= MAX_MEMBERS:
                raise RunError(f"refused: {name} has over {MAX_MEMBERS} members")
            path = _safe_path(member.name, name)
            if member.kind == "other":
                raise RunError(f"refused: {member.name!r:.200} in {name} is a link, a device or a sparse file")
            if member.kind == "file":
                yield Member(path, member.size, partial(_tar_blocks, reader, member))
    except DamagedError as error:
        raise RunError(f"{name} is damaged, or its last part is missing or short: {error}") from error


def _read_at(reader: PartsReader, offset: int, size: int) -> bytes:
    reader.seek(offset)
    return reader.read(size)


def _tar_blocks(reader: PartsReader, member: TarMember) -> Iterator[bytes]:
    for start in range(0, member.size, _BLOCK):
        yield _read_at(reader, member.offset + start, min(_BLOCK, member.size - start))


def _safe_path(text: str, name: str) -> PurePosixPath:
    """The path of a member, if it stays below the destination and means the same on any system."""
    parts = text.rstrip("/").split("/")
    parts = parts[1:] if parts[0] == "." and len(parts) > 1 else parts
    is_wrong = len(text) > _MAX_NAME or len(parts) > _MAX_DEPTH or "\\" in text or not text.isprintable()
    if is_wrong or any(part in ("", "..") or len(part.encode()) > _MAX_PART for part in parts):
        raise RunError(f"refused: the path {text!r:.200} in {name} leads elsewhere or is no plain path")
    return PurePosixPath(*parts)
