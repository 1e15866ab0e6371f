"""Reads samples of WebDataset tars: ``TarIndex`` gives any sample of a local tar, ``decode_sample`` its arrays.

Opening a ``TarIndex`` reads only headers (512 bytes per member). Plain ustar members, which is what this package
writes, are parsed here in a few microseconds each; from the first member of another kind on, ``tarfile`` reads the tar.
With a ledger, the bytes of each member that is read are compared with its checksum. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrs3_loader.io.safe_load import decode_npy
from lrs3_loader.run.ledger import REPAIR, Ledger

_BLOCK = 512
_REGULAR = (b"0", b"\0")

Sample = dict[str, Any]  # {"__key__": str, "json": dict, "<field>": ndarray, ...}


class DamagedError(Exception):
    """A tar or one of its samples is damaged or missing; the message names the tar and the damage."""

    remedy = REPAIR


class ReplacedError(DamagedError):
    """The tar was replaced by one without this sample."""

    remedy = "open the stream again"


@dataclass(frozen=True)
class SampleLocation:
    """The key of one sample of a tar, and the positions of its members in the file."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> (offset, size) in bytes


class TarIndex:
    """Random access to the samples of a local tar; a context manager that closes it.

    Args:
        path: the tar.
        ledger: its ledger, if it has one.

    Attributes:
        samples: the samples in the order of the tar.
        ignored: names of the members that belong to no sample: folders, links, sparse files, names without an
            extension.

    Raises:
        DamagedError: the file cannot be opened, is not a tar, is cut off, or holds other samples than its ledger names.
    """

    def __init__(self, path: Path, ledger: Ledger | None = None):
        self.path = path
        self.ledger = ledger
        self.samples: list[SampleLocation] = []
        self.ignored: list[str] = []
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise DamagedError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            for name, offset, size in _members(self._file):
                self._add(name, offset, size)
            if ledger is not None and [sample.key for sample in self.samples] != list(ledger.places):
                raise DamagedError("holds other samples than its ledger names")
        except (DamagedError, tarfile.TarError, OSError, ValueError) as error:
            self._file.close()
            raise DamagedError(f"{path}: {error}") from error

    def _add(self, name: str, offset: int, size: int) -> None:
        """Group consecutive members of one key; the key ends at the first dot of the last path component."""
        folder, slash, last = name.rpartition("/")
        stem, dot, extension = last.partition(".")
        key = folder + slash + stem
        if not dot or not stem or size < 0:  # webdataset ignores these as well
            self.ignored.append(name)
            return
        if not self.samples or self.samples[-1].key != key:
            self.samples.append(SampleLocation(key))
        self.samples[-1].members[extension.lower()] = (offset, size)

    def __enter__(self) -> TarIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, index: int, fields: tuple[str, ...] | None) -> Sample:
        """Read sample number ``index``: its json and the arrays named in ``fields`` (None: all), as writable arrays.

        Raises:
            DamagedError: a member cannot be read or decoded, does not have its checksum, or a field is missing.
        """
        sample = self.samples[index]
        try:
            data = {name: self._bytes(*span) for name, span in sample.members.items() if is_selected(name, fields)}
        except OSError as error:
            raise DamagedError(f"{self.path}: {sample.key}: {error}") from error
        if self.ledger is not None:
            check_members(str(self.path), sample.key, data, self.ledger)
        return decode_sample(str(self.path), sample.key, data, fields)

    def num_frames(self, index: int) -> int:
        """The number of 25 fps frames that a sample's json gives, or 0 if it gives none."""
        meta = self.read(index, ()).get("json")
        frames = meta.get("num_frames", 0) if isinstance(meta, dict) else 0
        return frames if isinstance(frames, int) else 0

    def _bytes(self, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        got = os.preadv(self._file.fileno(), [data], offset)
        if got != size:
            raise OSError(f"ends {size - got} bytes early")
        return data


def is_selected(extension: str, fields: tuple[str, ...] | None) -> bool:
    """Return whether a member is read: the json always, an array if ``fields`` names it (None: all)."""
    return fields is None or extension == "json" or extension.removesuffix(".npy") in fields


def checksum(data: bytes | bytearray) -> str:
    """Return the CRC-32 of the bytes of a member as 8 hexadecimal digits, as ledgers record it."""
    return f"{zlib.crc32(data):08x}"


def check_members(where: str, key: str, members: Mapping[str, bytearray], ledger: Ledger) -> None:
    """Compare members of a sample, given by extension, with their checksums.

    Raises:
        DamagedError: the bytes of a member, which is named with the tar ``where``, are not those that were written.
    """
    for extension, digits in ledger.checksums_of(key).items():
        if extension in members and checksum(members[extension]) != digits:
            raise DamagedError(f"{where}: {key}.{extension} is damaged: its checksum is not the one in the ledger")


def decode_sample(where: str, key: str, data: Mapping[str, Any], fields: tuple[str, ...] | None) -> Sample:
    """Decode the members of one sample, the json into a dict and ``.npy`` files into arrays.

    Args:
        where: path or URL of the tar, for messages.
        key: key of the sample.
        data: bytes of each member by its extension; members of other kinds are ignored. Arrays share this memory.
        fields: arrays that must be there; None: any.

    Raises:
        DamagedError: a member cannot be decoded, or a field is missing.
    """
    sample: Sample = {"__key__": key}
    for extension, raw in data.items():
        try:
            if extension == "json":
                sample["json"] = json.loads(raw)
            elif extension.endswith(".npy"):
                sample[extension.removesuffix(".npy")] = decode_npy(raw)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{where}: {key}.{extension} is damaged: {error}") from error
    missing = [name for name in fields or () if name not in sample]
    if missing:
        raise DamagedError(f"{where}: {key} has no {', '.join(missing)}")
    return sample


def _members(file: io.FileIO) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset of the data, size) of every member; size -1 for one that is not a regular file.

    Raises:
        DamagedError: a header does not parse, data is cut off, or the end mark is missing.
    """
    handle = file.fileno()
    length = os.fstat(handle).st_size
    offset = 0
    while True:
        block = os.pread(handle, _BLOCK, offset)
        if len(block) < _BLOCK:
            raise DamagedError("cut off: no end of the archive")
        if not block.strip(b"\0"):
            return
        if block[156:157] not in _REGULAR or block[257:262] != b"ustar":
            yield from _other_members(file, offset)
            return
        if int(block[148:156].strip(b"\0 ") or b"-1", 8) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise DamagedError(f"bad header at byte {offset}")
        size = int(block[124:136].strip(b"\0 ") or b"0", 8)
        if size < 0:
            raise DamagedError(f"bad header at byte {offset}")
        if offset + _BLOCK + size > length:
            raise DamagedError("cut off inside a member")
        name, prefix = (_text(block[start:stop]) for start, stop in ((0, 100), (345, 500)))
        yield (f"{prefix}/{name}" if prefix else name), offset + _BLOCK, size
        offset += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _other_members(file: io.FileIO, offset: int) -> Iterator[tuple[str, int, int]]:
    """Yield the members from ``offset`` on as ``tarfile`` reads them: long names, pax headers, folders, links."""
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0 or member.offset_data <= offset:  # tarfile itself would go round in circles
                raise DamagedError(f"bad header at byte {member.offset}")
            offset = member.offset_data
            is_plain = member.isreg() and not member.issparse()
            yield member.name, member.offset_data, member.size if is_plain else -1


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
