"""Parts of an archive: checks them, reads them as one file, writes one file as many."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, file_sha256, reading

MANIFEST_FORMAT = "lrs3_loader bundle 1"
MANIFEST_SUFFIX = ".manifest.json"
MAX_READ_BYTES = 256 << 20  # the directory of a zip with a million members takes about 100 MB
_BLOCK = 1 << 20

_SIZE = re.compile(r"(\d+)\s*(?:([kKMGT])(i?)B)?")


@dataclass(frozen=True)
class Part:
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
        return json.dumps({"format": MANIFEST_FORMAT, **dataclasses.asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> BundleManifest:
        """Read a manifest.

        Raises:
            RunError: the file cannot be read, or is no manifest.
        """
        try:
            plain = json.loads(path.read_bytes())
            if plain["format"] != MANIFEST_FORMAT:
                raise ValueError(f"format {plain['format']!r}")
            parts = tuple(Part(str(p["name"]), int(p["num_bytes"]), str(p["sha256"])) for p in plain["parts"])
            return cls(str(plain["archive"]), str(plain["top"]), int(plain["num_files"]), parts)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path} is not a manifest of parts ({error})") from error


def parse_size(text: str) -> int:
    """``2GiB`` -> 2147483648; plain numbers are bytes. ``ValueError`` for anything else, and for nothing."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"a size reads 500MB, 2GiB or a number of bytes, got {text!r}")
    power = " KMGT".index((match[2] or " ").upper())
    return int(match[1]) * (1024 if match[3] else 1000) ** power


def check_sizes(paths: Sequence[Path]) -> None:
    """Without a manifest: all parts but the last must be of one size, and the last no larger.

    Raises:
        RunError: a part is missing, short or empty; the message names it.
    """
    sizes = [_size(path) for path in paths]
    full = max(sizes)
    for path, size in zip(paths[:-1], sizes[:-1], strict=True):
        if size != full:
            raise RunError(f"{path} is short: {size} bytes, others have {full}; fetch it again")
    if sizes[-1] == 0:
        raise RunError(f"{paths[-1]} is empty; fetch it again")


def check_manifest(paths: Sequence[Path], manifest: BundleManifest, progress: Callable[[int], object]) -> list[Path]:
    """With a manifest: every part there, of the size and sha256 it lists. Returns them in the manifest's order.

    Raises:
        RunError: the message names the parts that are missing, and the first that is short or damaged.
    """
    by_name = {path.name: path for path in paths}
    missing = [part.name for part in manifest.parts if part.name not in by_name]
    if missing:
        raise RunError(
            f"missing of {len(manifest.parts)} parts: {', '.join(missing[:10])}{' ...' * (len(missing) > 10)}"
        )
    unknown = sorted(by_name.keys() - {part.name for part in manifest.parts})
    if unknown:
        raise RunError(f"not in the manifest of {manifest.archive}: {', '.join(unknown[:10])}")
    for part in manifest.parts:
        size = _size(by_name[part.name])
        if size != part.num_bytes:
            raise RunError(f"{by_name[part.name]} has {size} bytes, its manifest says {part.num_bytes}; fetch it again")
    for part in manifest.parts:
        digest = file_sha256(by_name[part.name])
        if digest != part.sha256:
            raise RunError(
                f"{by_name[part.name]} is damaged: sha256 {digest[:12]}... is not its manifest's; fetch it again"
            )
        progress(part.num_bytes)
    return [by_name[part.name] for part in manifest.parts]


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
        self._starts = [0]
        for path in self._paths:
            self._starts.append(self._starts[-1] + _size(path))
        self._position = 0
        self._open: tuple[int, IO[bytes]] | None = None

    @property
    def num_bytes(self) -> int:
        return self._starts[-1]

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
        index = self._part_at(self._position)
        if self._open is None or self._open[0] != index:
            self._close_part()
            with reading(self._paths[index]):
                self._open = (index, open(self._paths[index], "rb"))  # noqa: SIM115  (closed by _close_part)
        file = self._open[1]
        with reading(self._paths[index]):
            file.seek(self._position - self._starts[index])
            data = file.read(min(size, self._starts[index + 1] - self._position))
        if not data:
            raise RunError(f"{self._paths[index]} was cut off while it was read")
        self._position += len(data)
        return data

    def _part_at(self, position: int) -> int:
        return bisect.bisect(self._starts, position) - 1

    def _close_part(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        self._close_part()
        super().close()


class PartsWriter:
    """A file for writing that becomes parts of ``part_size`` bytes, hashed on the way; each appears whole.

    A context manager: on an exception the parts written so far are removed.
    """

    def __init__(self, folder: Path, archive: str, part_size: int):
        self._folder = folder
        self._archive = archive
        self._part_size = part_size
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
                self._begin_part()
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

    def _begin_part(self) -> None:
        self._part = atomic_write(self._folder / self._next_name)
        self._file = self._part.__enter__()
        self._hash = hashlib.sha256()
        self._left = self._part_size

    def _end_part(self, *error: Any) -> None:
        assert self._part is not None
        self._part.__exit__(*error)
        self._part = None
        if error[0] is None:
            self.parts.append(Part(self._next_name, self._part_size - self._left, self._hash.hexdigest()))
