"""The manifest, a plan on disk: one line of JSON per clip, sorted by key, with the shard it belongs to.

A run is planned once, and all launches read its manifest. With 100,000 shards it has millions of lines: a launch checks
its hash and finds where each shard begins, but parses the lines of a shard only when they are needed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.types import Clip, Shard

_TYPES = {
    "shard": str,
    "key": str,
    "video_path": str,
    "num_bytes": int,
    "sound_path?": str,
    "transcript_path?": str,
    "text?": str,
    "start_seconds?": float,
    "end_seconds?": float,
    "audio_offset_frames?": int,
}
_CLIP_FIELDS = [name.rstrip("?") for name in _TYPES]
_SHARD_NAME = re.compile(r"[^/\0]+-\d{6,}")
_START = b'{"shard":"'  # start of every line


def manifest_lines(shards: Iterable[Shard]) -> Iterator[str]:
    """Yield one line of ASCII JSON per clip, with its newline and without empty fields."""
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    for shard in shards:
        for clip in shard.clips:
            values = {name: getattr(clip, name) for name in _CLIP_FIELDS if name != "shard"}
            known = {name: value for name, value in values.items() if value is not None}
            yield encode({"shard": shard.name, **known}) + "\n"


def plan_sha256(shards: Iterable[Shard]) -> str:
    """Return the hash of a plan, which is the SHA-256 of its manifest."""
    digest = hashlib.sha256()
    for line in manifest_lines(shards):
        digest.update(line.encode("ascii"))
    return digest.hexdigest()


class Manifest(Sequence[Shard]):
    """The shards of a plan in order; a shard is parsed when it is accessed.

    Args:
        data: contents of a manifest file, or a memory map of it, whose hash has been checked.
        where: what messages call it.

    Raises:
        RunError: a line is not one of a manifest; the same on access.
    """

    def __init__(self, data: bytes | mmap.mmap, where: str = "the manifest"):
        self._data, self._where = data, where
        names: list[str] = []
        starts: list[int] = []
        counts: list[int] = []
        start, prefix, size = 0, b"", len(data)
        while start < size:
            end = data.find(b"\n", start) + 1 or size
            if not prefix or data[start : start + len(prefix)] != prefix:
                try:
                    name, prefix = _shard_of(data[start:end])
                except ValueError as error:
                    raise RunError(f"{where}, byte {start}: {error}") from error
                names.append(name)
                starts.append(start)
                counts.append(0)
            counts[-1] += 1
            start = end
        self.names = tuple(names)
        if len(set(names)) < len(names):
            raise RunError(f"{where}: the lines of one shard are not together")
        self.counts = tuple(counts)  # clips of each shard
        self._bounds = tuple(pairwise([*starts, size]))
        self._last: tuple[int, Shard] | None = None  # the shard accessed last, often the next one as well

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Manifest:
        """Make the manifest of a plan."""
        return cls("".join(manifest_lines(shards)).encode("ascii"))

    def __reduce__(self) -> tuple[type[Manifest], tuple[bytes, str]]:
        return Manifest, (bytes(self._data), self._where)

    @property
    def num_clips(self) -> int:
        """Number of clips of all shards together."""
        return sum(self.counts)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Shard, ...]: ...
    def __getitem__(self, index: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        if self._last is None or self._last[0] != index:
            start, stop = self._bounds[index]
            name = self.names[index]
            try:
                lines = self._data[start:stop].decode("ascii").splitlines(keepends=True)
                self._last = index, Shard(name, tuple(_parse_line(line)[1] for line in lines))
            except ValueError as error:
                raise RunError(f"{self._where}, {name}: not a manifest line: {error}") from error
        return self._last[1]


def open_manifest(path: Path, digest: str, where: str) -> Manifest:
    """Open a manifest file, which messages call ``where``, as a memory map.

    Raises:
        RunError: it cannot be read, or its hash is not ``digest``; the message names the first invalid line, if any
            (unknown, missing or mistyped fields, cut off, keys not in order or not unique).
    """
    try:
        with open(path, "rb") as file:
            empty = not file.seek(0, 2)
            data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise RunError(f"cannot read the manifest {where}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() == digest:
        return Manifest(data, where)
    last = ""
    for number, line in enumerate(bytes(data).splitlines(keepends=True), 1):
        try:
            key = _parse_line(line.decode("ascii"))[1].key
            if key <= last:
                raise ValueError(f"key {key} does not sort after {last}")
        except ValueError as error:
            raise RunError(f"{where}, line {number}: not a manifest line: {error}") from error
        last = key
    raise RunError(f"{where} was changed since the run began; begin another run")


def _shard_of(line: bytes) -> tuple[str, bytes]:
    """Return the name of a line's shard, and the bytes that all lines of this shard begin with."""
    end = line.find(b'",', len(_START))
    if not line.startswith(_START) or end < 0:
        raise ValueError(f"not a manifest line: {line[:80]!r}")
    name = decode_json(line[len(_START) - 1 : end + 1], surrogates=True)
    if not _SHARD_NAME.fullmatch(name):  # it becomes the name of a file
        raise ValueError(f"{name!r:.200} is not the name of a shard")
    return name, line[: end + 2]


def _parse_line(line: str) -> tuple[str, Clip]:
    if not line.endswith("\n"):
        raise ValueError("cut off before its end")
    values: Any = decode_json(line.encode("ascii"), surrogates=True)
    check_types(values, _TYPES)
    unknown = sorted(values.keys() - _CLIP_FIELDS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r:.100}")
    if not _SHARD_NAME.fullmatch(values["shard"]):
        raise ValueError(f"{values['shard']!r:.200} is not the name of a shard")
    return values.pop("shard"), Clip(**values)
