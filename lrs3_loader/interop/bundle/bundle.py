"""Packs a run or a binarised folder as an archive in parts, and unpacks such archives.

``pack_archive`` writes a plain tar (features hardly compress), so that ``cat NAME.tar.part_* | tar x`` unpacks it
anywhere, and a manifest with the sha256 of every part. ``unpack_archive`` reads such parts, and the zip parts that
others publish, as one file, without joining them on disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from lrs3_loader.errors import RunError
from lrs3_loader.interop.bundle.archive import Member, archive_errors, list_members
from lrs3_loader.interop.bundle.part_names import order_parts
from lrs3_loader.interop.bundle.parts import (
    MANIFEST_SUFFIX,
    BundleManifest,
    PartsReader,
    PartsWriter,
    check_manifest,
    check_sizes,
)
from lrs3_loader.io.files import HashingFile, atomic_write, clear_unfinished, make_folder
from lrs3_loader.io.storage import SCRATCH
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import REPAIR, tar_name
from lrs3_loader.run.lock import FILE_NAME as LOCK_NAME

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_MIN_PART_BYTES = 1024


class UnpackResult(NamedTuple):
    """Counts of an unpacking."""

    out: Path
    num_written: int
    num_there: int  # files that were there before, whole
    num_bytes: int  # written


def pack_archive(
    source: Path,
    dest: Path,
    part_size: int,
    name: str | None = None,
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> Path:
    """Write ``source`` as ``dest/NAME.tar.part_0000`` ... and at last ``dest/NAME.tar.manifest.json``.

    The same files give the same parts. Left out are shards in flight and temporary files.

    Args:
        source: a run, or any folder of plain files.
        dest: made if needed; not inside ``source``.
        part_size: bytes of each part but the last.
        name: of the archive and the one folder in it; the source's when not given.
        progress: told of bytes as they are written.

    Returns:
        Path of the manifest.

    Raises:
        RunError: nothing to pack, a link or device in ``source``, a damaged shard, or parts of that name already in
            ``dest``.
        ValueError: a part size under 1 KiB.
    """
    if part_size < _MIN_PART_BYTES:
        raise ValueError(f"part_size must be at least {_MIN_PART_BYTES} bytes, got {part_size}")
    source = source.resolve()
    name = name or source.name
    if dest.resolve().is_relative_to(source):
        raise RunError(f"{dest} lies inside {source}; choose another folder for the parts")
    files = _list_files(source)
    archive = f"{name}.tar"
    make_folder(dest)
    clear_unfinished(dest, lambda name: name.startswith(archive))
    there = sorted(dest.glob(f"{archive}*"))
    if there:
        raise RunError(f"{there[0]} is already there; remove it, or choose another folder or --name")
    with (
        PartsWriter(dest, archive, part_size) as writer,
        tarfile.open(fileobj=cast(IO[bytes], writer), mode="w|", bufsize=_BLOCK, format=tarfile.PAX_FORMAT) as tar,
    ):
        hashes = _recorded_hashes(source)
        for path in files:
            info = tarfile.TarInfo(f"{name}/{path}")  # without clock, user and host
            with open(source / path, "rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                hashing = HashingFile(file)
                try:
                    tar.addfile(info, cast(IO[bytes], hashing))
                except OSError as error:
                    raise RunError(f"cannot pack {source / path}: {error}") from error
            if hashes.get(str(path)) not in (None, hashing.sha256):
                raise RunError(f"{source / path} is damaged: its sha256 is not the one in its ledger; {REPAIR}")
            progress(info.size)
    manifest = BundleManifest(archive, name, len(files), tuple(writer.parts))
    manifest_path = dest / f"{archive}{MANIFEST_SUFFIX}"
    with atomic_write(manifest_path) as written:
        written.write(manifest.to_json().encode())
    return manifest_path


def _list_files(source: Path) -> list[PurePosixPath]:
    """The files of a folder that belong into an archive, sorted."""
    left_out = {source / SCRATCH, source / LOCK_NAME} if RunFolder.exists(source) else set()
    found = []
    for folder, names, files in os.walk(source, onerror=_cannot_list):
        here = Path(folder)
        names[:] = [name for name in names if here / name not in left_out]
        for name in names + files:
            mode = (here / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise RunError(f"{here / name} is a link or a device; only plain files can be packed")
            is_temporary = name.startswith(".") and name.endswith(".tmp")
            if stat.S_ISREG(mode) and here / name not in left_out and not is_temporary:
                found.append(PurePosixPath((here / name).relative_to(source)))
    if not found:
        raise RunError(f"{source} holds no files")
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise RunError(f"cannot read {error.filename}: {error.strerror}")


def _recorded_hashes(source: Path) -> dict[str, str]:
    """Return the SHA-256 of each tar of a run, by its name in the run; empty if there is no run."""
    if not RunFolder.exists(source):
        return {}
    ledgers = RunFolder.open(source).ledgers()
    return {tar_name(ledger.shard, ledger.generation): ledger.sha256 for ledger in ledgers}


def unpack_archive(
    paths: Sequence[Path], out: Path, progress: Callable[[int], object] = lambda num_bytes: None
) -> UnpackResult:
    """Unpack the parts of one archive into ``out``; call it again to resume.

    Every part is checked before anything is written: against the manifest where there is one, otherwise by numbering
    and size, and the list of members in any case. Each file appears whole or not at all; files that are there with
    the contents they should have are left. Folders that all files of the archive share are left away, so that ``--out
    data/binary/lrs3`` gives ``data/binary/lrs3/train.data``, however it was packed.

    Args:
        paths: the parts in any order, and the manifest if wanted (one beside the parts is found).
        out: made if needed.
        progress: told of bytes as they are checked and as they are unpacked.

    Raises:
        RunError: a part is missing, short or damaged, the archive is refused (see ``archive``), or does not fit on
            the disk. Nothing has been written then, except where only a member's own check sum is wrong: the files
            before it stay.
    """
    manifest, parts = _find_manifest(paths)
    if manifest is None:
        parts = order_parts(parts)
        check_sizes(parts)
        logger.info("no manifest: parts are checked by their numbering and sizes, members by their check sums")
    else:
        parts = check_manifest(parts, manifest, progress)
    name = manifest.archive if manifest else parts[0].name
    with PartsReader(parts) as reader:
        members = list_members(reader, name)
        shared = PurePosixPath(os.path.commonpath([member.path.parent for member in members]))
        if manifest and shared.parts[:1] != (manifest.top,):
            raise RunError(f"{name} is not the archive that its manifest describes: not all is in {manifest.top}/")
        root = PurePosixPath(manifest.top) if manifest else shared
        targets = [(member, out / member.path.relative_to(root)) for member in members]
        _check_targets(out, targets)
        num_written = num_bytes = 0
        for member, target in targets:
            with archive_errors(f"{member.path} in {name}"):
                if not _is_there(member, target):
                    _write(member, target)
                    num_written += 1
                    num_bytes += member.num_bytes
            progress(member.num_bytes)
    return UnpackResult(out, num_written, len(targets) - num_written, num_bytes)


def _find_manifest(paths: Sequence[Path]) -> tuple[BundleManifest | None, list[Path]]:
    """The manifest, given or beside the parts, and the parts."""
    given = [path for path in paths if path.name.endswith(MANIFEST_SUFFIX)]
    parts = [path for path in paths if path not in given]
    if len(given) > 1:
        raise RunError(f"two manifests given: {given[0]} and {given[1]}")
    if given and not parts:
        manifest = BundleManifest.read(given[0])
        return manifest, [given[0].parent / part.name for part in manifest.parts]
    if not given and parts:
        beside = parts[0].parent.glob(f"*{MANIFEST_SUFFIX}") if parts[0].parent.is_dir() else ()
        given = [path for path in beside if parts[0].name.startswith(path.name.removesuffix(MANIFEST_SUFFIX))]
    return (BundleManifest.read(given[0]) if given else None), parts


def _check_targets(out: Path, targets: Sequence[tuple[Member, Path]]) -> None:
    """Room on the disk, and no link that is already there leading out of ``out``."""
    make_folder(out)
    root = out.resolve()
    names = {target.name for _, target in targets}
    for folder in {target.parent for _, target in targets}:
        if not folder.resolve().is_relative_to(root):
            raise RunError(f"refused: {folder} is a link that leads out of {out}")
        if folder.is_dir():
            clear_unfinished(folder, names.__contains__)
    missing = sum(member.num_bytes for member, target in targets if _size(target) != member.num_bytes)
    free = shutil.disk_usage(out).free
    if missing > free:
        raise RunError(f"{missing} bytes to unpack, {free} free in {out}; nothing was written")


def _size(path: Path) -> int | None:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _is_there(member: Member, target: Path) -> bool:
    """Tell whether the target already has these contents. Reads both: a checksum would prove less."""
    if _size(target) != member.num_bytes:
        return False
    with open(target, "rb") as unpacked:
        return all(block == unpacked.read(len(block)) for block in member.blocks())


def _write(member: Member, target: Path) -> None:
    make_folder(target.parent)
    with atomic_write(target) as file:
        written = sum(map(file.write, member.blocks()))
        if written != member.num_bytes:
            raise RunError(f"{member.path} unpacks to {written} bytes, {member.num_bytes} were announced")
