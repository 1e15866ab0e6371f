"""Reads numeric arrays out of untrusted MATLAB files of version 5 to 7.

scipy's reader takes what such a file says about its sizes at its word, and crashes on damaged ones. The format is
published as "MAT-File Format" by MathWorks: behind a header of 128 bytes come elements, each with its type and size; an
array is an element of elements (flags, dimensions, name, numbers), which may be compressed as a whole.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double to uint64; others are cells, structures, texts, sparse
_COMPLEX = 0x0800
_MAX_DIMENSIONS = 8
_HEAD_BYTES = 1024  # of an array: flags, dimensions and name take less
_MAX_BYTES = 1 << 30  # of a file, and of its arrays unpacked; the largest here, the original BFM, has 0.3 GB


def read_mat(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read the real numeric arrays of these names, in the types in which they are stored; missing ones are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or of another kind, or one of the names is no array of numbers.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise ValueError(f"it has over {_MAX_BYTES} bytes")
        data = file.read()
    if data[:10] == b"MATLAB 7.3" or data[:4] == b"\x89HDF":
        raise ValueError("it is in MATLAB's format 7.3; save it again with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("it does not begin as a MATLAB file")
    arrays: dict[str, np.ndarray] = {}
    left = _MAX_BYTES
    for kind, content in _elements(memoryview(data)[_HEADER_BYTES:], order):
        packed, head = None, content
        if kind == _COMPRESSED:
            packed, head = content, _inflate(content, _HEAD_BYTES)
            if len(head) < 8:
                raise ValueError("an empty element")
            kind, size = struct.unpack_from(f"{order}II", head)
            head = head[8:]
        if kind != _MATRIX:
            continue
        flags, shape, name = _read_head(head, order)
        if name not in names:
            continue
        if flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX:
            raise ValueError(f"{name} is no array of real numbers")
        if packed is not None:
            left -= size
            if left < 0:
                raise ValueError(f"it unpacks to over {_MAX_BYTES} bytes")
            content = _inflate(packed, size + 8)[8:]
        arrays[name] = _read_numbers(content, order, shape, name)
    return arrays


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and contents of each element."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # up to four bytes, in the place of the size
            yield kind & 0xFFFF, data[at + 4 : at + 4 + min(kind >> 16, 4)]
            at += 8
            continue
        if at + 8 + size > len(data):
            raise ValueError(f"it ends inside an element of {size} bytes")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)


def _read_head(matrix: memoryview, order: str) -> tuple[int, tuple[int, ...], str]:
    """Return flags, shape and name of an array."""
    parts = list(islice(_elements(matrix, order), 3))
    if len(parts) < 3 or len(parts[0][1]) < 4 or not 2 <= len(parts[1][1]) // 4 <= _MAX_DIMENSIONS:
        raise ValueError("an array without flags, dimensions or a name")
    shape = struct.unpack_from(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    return struct.unpack_from(f"{order}I", parts[0][1])[0], shape, bytes(parts[2][1]).decode("latin1")


def _read_numbers(matrix: memoryview, order: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    kind, numbers = next(islice(_elements(matrix, order), 3, None), (0, memoryview(b"")))
    if kind not in _NUMBERS:
        raise ValueError(f"{name} holds no numbers")
    dtype = np.dtype(order + _NUMBERS[kind])
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"{name} of {' x '.join(map(str, shape))} {dtype} has {len(numbers)} bytes")
    return np.frombuffer(numbers, dtype).reshape(shape, order="F")


def _inflate(data: memoryview, num_bytes: int) -> memoryview:
    """Return the first bytes of what zlib compressed."""
    try:
        return memoryview(zlib.decompressobj().decompress(data, num_bytes))
    except zlib.error as error:
        raise ValueError(f"its compressed data are damaged ({error})") from error
