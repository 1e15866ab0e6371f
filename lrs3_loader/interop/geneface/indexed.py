"""GeneFace's binary container: one file of pickled items with an index of byte offsets at its head.

    bytes 0..31                 length L of the index, little-endian
    bytes 32..32 + L            pickle of {"offsets": [...], "id2pos": {}, "meta": {"chunk_begin": [0], "gzip": False}}
    bytes 16 MiB..              the items, one pickle after the other

``offsets`` has one entry more than there are items: item i is bytes ``offsets[i]..offsets[i + 1]``. Older sets keep the
offsets in ``<prefix>.idx`` (a saved array) and begin at byte 0. Some builders go on in ``<prefix>.1.data`` ... past 16
or 64 GiB, and some gzip each item: such sets are read here but never written, since not every reader follows.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.interop.geneface.pickle_writer import pickle_pieces
from lrs3_loader.io.files import reading
from lrs3_loader.io.safe_load import OBJECT_HEADER, decode_npy, npy_offsets
from lrs3_loader.io.unpickle import loads

HEADER_BYTES = 32
INDEX_BYTES = 16 * 1024 * 1024  # room for the length and the index; items begin here
MAX_ITEM_BYTES = 2 << 30  # unpacked: two hours of a 1024-wide speech encoder are 1.5 GB
_MAX_INDEX_BYTES = 4 * INDEX_BYTES
_MAX_GZIP_RATIO = 100
_MAX_FILES = 1000
_GZIP_MAGIC, _PICKLE_MAGIC = b"\x1f\x8b", b"\x80"


class IndexedWriter:
    """Writes items to a seekable file, one at a time; ``finish`` writes the index. Memory: one offset an item."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._offsets = [INDEX_BYTES]
        file.seek(INDEX_BYTES)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def num_bytes(self) -> int:
        """Size of the file so far."""
        return self._offsets[-1]

    def add(self, item: Mapping[str, Any]) -> None:
        """Append one item: plain values and numeric arrays."""
        size = 0
        for piece in pickle_pieces(dict(item)):
            size += len(piece)
            self._file.write(piece)
        self._offsets.append(self._offsets[-1] + size)

    def finish(self) -> None:
        """Write the index.

        Raises:
            RunError: so many items that the index does not fit into its 16 MiB (beyond about 2.4 million).
        """
        meta = {"chunk_begin": [0], "gzip": False}
        index = b"".join(pickle_pieces({"offsets": self._offsets, "id2pos": {}, "meta": meta}))
        if len(index) > INDEX_BYTES - HEADER_BYTES:
            raise RunError(f"the index of {len(self)} items does not fit into {INDEX_BYTES} bytes; export fewer splits")
        self._file.truncate(self._offsets[-1])  # a set without items still has its 16 MiB
        self._file.seek(0)
        self._file.write(len(index).to_bytes(HEADER_BYTES, "little") + index)


class IndexedReader:
    """Items of ``<prefix>.data``, by number. A context manager; trusts nothing that the file says.

    Raises:
        RunError: on opening, where the index is damaged or points outside the file; on reading, where an item is
            damaged or holds anything but arrays and plain values. The message names file, item and reason.
    """

    def __init__(self, prefix: Path):
        self.path = prefix.with_name(f"{prefix.name}.data")
        index_path = prefix.with_name(f"{prefix.name}.idx")
        try:
            try:
                index, self.index_sha256 = _read_index(self.path)
            except RunError:
                if not index_path.exists():
                    raise
                index, self.index_sha256 = _read_old_index(index_path)
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from error
        index = index if isinstance(index, dict) else {}
        meta = index["meta"] if isinstance(index.get("meta"), dict) else {}
        self._gzip, self._begins = bool(meta.get("gzip")), meta.get("chunk_begin", [0])
        if not _is_ascending(self._begins) or self._begins[0] != 0 or len(self._begins) > _MAX_FILES:
            raise RunError(f"index of {self.path}: damaged list of files (chunk_begin)")
        self.offsets: list[int] = index.get("offsets", [])
        if not _is_ascending(self.offsets):
            raise RunError(f"index of {self.path}: its offsets are not whole numbers from 0 up, in order")
        others = (prefix.with_name(f"{prefix.name}.{number}.data") for number in range(1, len(self._begins)))
        self._paths = [self.path, *others]
        self._files: dict[Path, IO[bytes]] = {}
        self._check_bounds()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __enter__(self) -> IndexedReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def num_bytes(self, index: int) -> int:
        """Stored size of one item."""
        return self.offsets[index + 1] - self.offsets[index]

    def item(self, index: int) -> dict[str, Any]:
        """One item: plain values and read-only arrays."""
        try:
            item = loads(self._read(index))
        except RunError as error:
            raise RunError(f"{self.path}, item {index}: {error}") from error
        if not isinstance(item, dict):
            raise RunError(f"{self.path}, item {index}: a {type(item).__name__} where a dict is expected")
        return item

    def _place(self, index: int) -> tuple[Path, int]:
        """File that holds an item, and where in it the item begins."""
        offset = self.offsets[index]
        chunk = bisect.bisect(self._begins, offset) - 1
        return self._paths[chunk], offset - self._begins[chunk]

    def _check_bounds(self) -> None:
        sizes = {path: os.stat(path).st_size if path.is_file() else -1 for path in self._paths}
        for index in range(len(self)):
            path, start = self._place(index)
            if sizes[path] < 0:
                raise RunError(f"{path} is missing: item {index} of {len(self)} and those after it are in it")
            if start < 0 or start + self.num_bytes(index) > sizes[path]:
                raise RunError(f"{path} is cut off or damaged: item {index} ends past its {sizes[path]} bytes")

    def _read(self, index: int) -> bytes:
        size = self.num_bytes(index)
        if not 0 < size <= MAX_ITEM_BYTES:
            raise RunError(f"an item of {size} bytes")
        path, start = self._place(index)
        with reading(path):
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = open(path, "rb")  # noqa: SIM115  (closed with the reader)
            file.seek(start)
            data = file.read(size)
        if self._gzip or data[:2] == _GZIP_MAGIC:
            return _gunzip(data)
        if data[:1] != _PICKLE_MAGIC:
            raise RunError(f"begins with {data[:2]!r}: not a pickle")
        return data


def _gunzip(data: bytes) -> bytes:
    limit = min(MAX_ITEM_BYTES, _MAX_GZIP_RATIO * len(data) + (1 << 20))
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(data, limit)
    except zlib.error as error:
        raise RunError(f"not whole gzip data ({error})") from error
    if not stream.eof:
        raise RunError(f"gzip data that is cut off, or unpacks to over {limit} bytes")
    return plain


def _read_index(path: Path) -> tuple[Any, str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(HEADER_BYTES), "little")
        if not 0 < length <= min(_MAX_INDEX_BYTES, os.stat(path).st_size - HEADER_BYTES):
            raise RunError(f"{path} does not begin with an index: not a binarised set, or its .idx file is missing")
        data = file.read(length)
    return _load_index(path, data)


def _read_old_index(path: Path) -> tuple[Any, str]:
    """``.idx``: an array saved with ``np.save`` that holds a dict with the offsets, or the offsets themselves."""
    if os.stat(path).st_size > _MAX_INDEX_BYTES:
        raise RunError(f"{path} has {os.stat(path).st_size} bytes; an index has fewer than {_MAX_INDEX_BYTES}")
    raw = path.read_bytes()
    try:
        header, start = npy_offsets(raw)
        if OBJECT_HEADER not in raw[header:start]:
            offsets = decode_npy(raw)
            return {"offsets": offsets.ravel().tolist()}, hashlib.sha256(raw[start:]).hexdigest()
    except ValueError as error:
        raise RunError(f"{path} is not a saved array ({error})") from error
    array, digest = _load_index(path, raw[start:])
    if isinstance(array, np.ndarray) and array.shape != ():
        raise RunError(f"{path} holds an array of shape {array.shape}, not an index")
    return array.item() if isinstance(array, np.ndarray) else array, digest


def _load_index(path: Path, data: bytes) -> tuple[Any, str]:
    try:
        return loads(data, max_opcodes=len(data)), hashlib.sha256(data).hexdigest()
    except RunError as error:
        raise RunError(f"index of {path}: {error}") from error


def _is_ascending(values: Any) -> bool:
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        return False
    return values[0] >= 0 and all(first <= second for first, second in pairwise(values))
