"""Parts of an archive: checks them, reads them as one file, writes one file as many."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, file_sha256, reading
from lrs3_loader.io.safe_load import check_types, decode_json

MANIFEST_FORMAT = "lrs3_loader bundle 1"
MANIFEST_SUFFIX = ".manifest.json"
_MANIFEST = {
    "format": str,
    "archive": str,
    "top": str,
    "num_files": int,
    "parts": [{"name": str, "num_bytes": int, "sha256": str}],
}
MAX_READ_BYTES = 256 << 20  # the directory of a zip with a million members takes about 100 MB
_BLOCK = 1 << 20

_SIZE = re.compile(r"(\d+)\s*(?:([kKMGT])(i?)B)?")


class Part(NamedTuple):
    """One part as a manifest lists it."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleManifest:
    """The manifest that ``pack_archive`` writes beside the parts."""

    archive: str  # name of the whole, such as lrs3.tar
    top: str  # the one folder in it
    num_files: int
    parts: tuple[Part, ...]

    def to_json(self) -> str:
        plain = {"format": MANIFEST_FORMAT, **vars(self), "parts": [part._asdict() for part in self.parts]}
        return json.dumps(plain, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> BundleManifest:
        """Read a manifest. Raises ``RunError`` for a file that cannot be read, or is none."""
        try:
            plain = decode_json(path.read_bytes())
            check_types(plain, _MANIFEST)
            if plain["format"] != MANIFEST_FORMAT:
                raise ValueError(f"format {plain['format']!r:.100}")
            parts = tuple(Part(part["name"], part["num_bytes"], part["sha256"]) for part in plain["parts"])
            if not all(part.name == Path(part.name).name for part in parts):
                raise ValueError("a part in another folder")
            return cls(plain["archive"], plain["top"], plain["num_files"], parts)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a manifest of parts ({error})") from error


def parse_size(text: str) -> int:
    """``2GiB`` -> 2147483648; plain numbers are bytes. ``ValueError`` for anything else, and for nothing."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"a size reads 500MB, 2GiB or a number of bytes, got {text!r}")
    power = " KMGT".index((match[2] or " ").upper())
    return int(match[1]) * (1024 if match[3] else 1000) ** power


def check_sizes(paths: Sequence[Path]) -> None:
    """Without a manifest: ``RunError`` unless all parts but the last are of one size, and the last no larger."""
    sizes = [_size(path) for path in paths]
    full = max(sizes)
    for path, size in zip(paths[:-1], sizes[:-1], strict=True):
        if size != full:
            raise RunError(f"{path} is short: {size} bytes, others have {full}; fetch it again")
    if sizes[-1] == 0:
        raise RunError(f"{paths[-1]} is empty; fetch it again")


def check_manifest(paths: Sequence[Path], manifest: BundleManifest, progress: Callable[[int], object]) -> list[Path]:
    """With a manifest: return the parts in its order.

    Raises:
        RunError: a part is missing, or not of the size and sha256 that the manifest says; the message names it.
    """
    by_name = {path.name: path for path in paths}
    names = [part.name for part in manifest.parts]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise RunError(f"missing of {len(names)} parts: {', '.join(missing[:10])}{' ...' * (len(missing) > 10)}")
    unknown = sorted(by_name.keys() - {*names})
    if unknown:
        raise RunError(f"not in the manifest of {manifest.archive}: {', '.join(unknown[:10])}")
    ordered = [by_name[name] for name in names]
    for path, part in zip(ordered, manifest.parts, strict=True):
        if _size(path) != part.num_bytes:
            raise RunError(f"{path} has {_size(path)} bytes, its manifest says {part.num_bytes}; fetch it again")
    for path, part in zip(ordered, manifest.parts, strict=True):
        digest = file_sha256(path)
        if digest != part.sha256:
            raise RunError(f"{path} is damaged: sha256 {digest[:12]}... is not its manifest's; fetch it again")
        progress(part.num_bytes)
    return ordered


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise RunError(f"{path} is missing")
        return path.stat().st_size
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


class PartsReader(io.BufferedIOBase):
    """Several files read as the one they were cut from: seekable, nothing copied, one file open at a time."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)
        self._starts = [0, *itertools.accumulate(map(_size, paths))]
        self.num_bytes = self._starts[-1]
        self._position = 0
        self._index = -1  # of the part that is open
        self._file: IO[bytes] = io.BytesIO()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.num_bytes - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > MAX_READ_BYTES:  # no sound archive has headers of this size, and members are read in blocks
            raise RunError(f"refused: a header of {size} bytes at byte {self._position}")
        pieces = []
        while size:
            pieces.append(self._read_some(size))
            size -= len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_some(self, size: int) -> bytes:
        """At least one byte and at most ``size``, from the part at the position."""
        index = bisect.bisect(self._starts, self._position) - 1
        with reading(self._paths[index]):
            if self._index != index:
                self._file.close()
                self._index, self._file = index, open(self._paths[index], "rb")  # noqa: SIM115  (closed with this)
            self._file.seek(self._position - self._starts[index])
            data = self._file.read(min(size, self._starts[index + 1] - self._position))
        if not data:
            raise RunError(f"{self._paths[index]} was cut off while it was read")
        self._position += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class PartsWriter:
    """A file for writing that becomes parts of ``part_size`` bytes, hashed on the way; each appears whole.

    A context manager: on an exception the parts written so far are removed.
    """

    def __init__(self, folder: Path, archive: str, part_size: int):
        self._folder, self._archive, self._part_size = folder, archive, part_size
        self._part: AbstractContextManager[IO[bytes]] | None = None
        self._file: IO[bytes]
        self._hash: Any
        self._left = 0
        self.parts: list[Part] = []

    def __enter__(self) -> PartsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._part is not None:
            self._end_part(*error)
        if error[0] is not None:
            for part in self.parts:
                (self._folder / part.name).unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while len(rest):
            if self._part is None:
                self._part = atomic_write(self._folder / self._next_name)
                self._file, self._hash, self._left = self._part.__enter__(), hashlib.sha256(), self._part_size
            piece = rest[: self._left]
            self._file.write(piece)
            self._hash.update(piece)
            self._left -= len(piece)
            rest = rest[len(piece) :]
            if self._left == 0:
                self._end_part(None, None, None)
        return len(data)

    @property
    def _next_name(self) -> str:
        return f"{self._archive}.part_{len(self.parts):04d}"

    def _end_part(self, *error: Any) -> None:
        assert self._part is not None
        self._part.__exit__(*error)
        self._part = None
        if error[0] is None:
            self.parts.append(Part(self._next_name, self._part_size - self._left, self._hash.hexdigest()))
