"""Where each sample of a tar lies, so that any of them can be read without reading the others.

Only headers are touched (512 bytes a member). Plain ustar members, which is what this package writes, are parsed here
in a few microseconds each; at the first member of another kind the whole tar is left to ``tarfile``.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrs3_loader.io.safe_load import decode_npy

_BLOCK = 512
_REGULAR = (b"0", b"\0")

Sample = dict[str, Any]  # {"__key__": str, "json": dict, "<field>": ndarray, ...}


class DamagedError(Exception):
    """A tar, or a sample in it, is not what it should be; the message says where and how."""


@dataclass(frozen=True)
class Located:
    """One sample of a tar: its key and where its members' bytes lie."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> (offset, size) in bytes


class TarIndex:
    """An open local tar and the places of its samples, in order."""

    def __init__(self, path: Path):
        """Read all headers.

        Raises:
            DamagedError: not a tar, or cut off.
        """
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise DamagedError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self.samples = _group(_members(self._file))
        except (DamagedError, tarfile.TarError, OSError, ValueError) as error:
            self._file.close()
            raise DamagedError(f"{path}: {error}") from error

    def close(self) -> None:
        self._file.close()

    def read(self, index: int, fields: tuple[str, ...] | None) -> Sample:
        """Sample number ``index``: its json and the arrays named (all of them for None). Arrays are writable.

        Raises:
            DamagedError: the bytes there are not that sample, or it lacks a field.
        """
        located = self.samples[index]
        try:
            data = {ext: self._bytes(*place) for ext, place in located.members.items() if is_wanted(ext, fields)}
        except OSError as error:
            raise DamagedError(f"{self.path}: {located.key}: {error}") from error
        return decode_sample(str(self.path), located.key, data, fields)

    def num_frames(self, index: int) -> int:
        """T of a sample, as its json says; 0 where it has none."""
        meta = self.read(index, ()).get("json")
        frames = meta.get("num_frames", 0) if isinstance(meta, dict) else 0
        return frames if isinstance(frames, int) else 0

    def _bytes(self, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        got = os.preadv(self._file.fileno(), [data], offset)
        if got != size:
            raise OSError(f"ends {size - got} bytes early")
        return data


def is_wanted(extension: str, fields: tuple[str, ...] | None) -> bool:
    """Whether a member is read at all: the json always, arrays if named."""
    return fields is None or extension == "json" or extension.removesuffix(".npy") in fields


def decode_sample(where: str, key: str, data: Mapping[str, Any], fields: tuple[str, ...] | None) -> Sample:
    """Raw members -> arrays, and the json as a dict. Nothing is ever unpickled.

    Raises:
        DamagedError: a member cannot be decoded, or a field asked for is not there.
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


def _group(members: Iterator[tuple[str, int, int]]) -> list[Located]:
    """Consecutive members of one key -> samples; the key ends at the first dot of the last path component."""
    samples: list[Located] = []
    for name, offset, size in members:
        folder, slash, last = name.rpartition("/")
        stem, dot, extension = last.partition(".")
        key = folder + slash + stem
        if not dot or not stem:
            continue  # as webdataset does
        if not samples or samples[-1].key != key:
            samples.append(Located(key))
        samples[-1].members[extension.lower()] = (offset, size)
    return samples


def _members(file: io.FileIO) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size) of every regular member.

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
    """The rest of the tar from ``offset`` on, through ``tarfile``: long names, pax headers, folders, links."""
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0 or member.offset_data <= offset:  # tarfile itself would go round in circles
                raise DamagedError(f"bad header at byte {member.offset}")
            offset = member.offset_data
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
