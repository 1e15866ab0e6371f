"""Readers for untrusted ``.npy`` and ``torch.save`` files: nothing in them is executed.

numpy's own reader allocates an array as large as the header says before it checks that so much data follows.
"""

from __future__ import annotations

import ast
import math
import pickle
import pickletools
import struct
import tokenize
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from lrs3_loader.io.zip_files import check_zip, read_zip

_MAGIC = b"\x93NUMPY"
_MAX_DIMS = 32
_MAX_OPCODES = 300_000  # of a torch.save file; one of a thousand tensors has 40,000
_MAX_HEADER_BYTES = 10_000  # numpy's own bound: longer ones can crash Python's parser
#: Errors that parsing a damaged header or reading an array may raise.
DAMAGE = (
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)


def decode_npy(raw: bytes | bytearray) -> np.ndarray:
    """Decode the bytes of a ``.npy`` file, four times as fast as numpy's reader.

    Returns:
        The array. It shares the memory of ``raw``, so it is writable if ``raw`` is.

    Raises:
        ValueError: the bytes are damaged, hold Python objects, or hold less data than their header says.
    """
    try:
        header, start = npy_offsets(raw)
        dtype, fortran, shape = _header(bytes(raw[header:start]))
        array = np.frombuffer(raw, dtype, count=math.prod(shape), offset=start)
        return array.reshape(shape, order="F" if fortran else "C")
    except DAMAGE as error:
        raise ValueError(f"not a sound .npy file: {str(error)[:200] or type(error).__name__}") from error


def read_npz(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file, which may unpack to ``max_bytes``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, too large, or holds Python objects.
    """
    return {name.removesuffix(".npy"): decode_npy(data) for name, data in read_zip(path, max_bytes=max_bytes).items()}


def npy_offsets(raw: bytes | bytearray) -> tuple[int, int]:
    """Return where the header and the data of a ``.npy`` file begin; raises ``ValueError`` for other bytes."""
    if raw[:6] != _MAGIC:
        raise ValueError("no .npy file")
    header = 10 if raw[6:7] == b"\x01" else 12  # the size of the header takes 2 bytes in version 1, else 4
    return header, header + int.from_bytes(raw[8:header], "little")


@lru_cache(maxsize=4096)  # clips of one length share their headers
def _header(text: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes")
    values = ast.literal_eval(text.decode("latin1").strip())
    dtype, shape = np.dtype(values["descr"]), values["shape"]
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMS:
        raise ValueError(f"its shape is not a tuple of at most {_MAX_DIMS} sizes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its shape is not made of non-negative integers")
    return dtype, bool(values["fortran_order"]), shape


def _check_pickles(path: Path) -> None:
    """Raise ``ValueError`` if a ``torch.save`` file is compressed, or has pickles that take long or much to load."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # the format before torch 1.6 begins with five pickles
            file.seek(0)
            for _ in range(5):
                _check_opcodes(file)
            return
    with zipfile.ZipFile(path) as archive:
        check_zip(archive, path.stat().st_size)  # torch compresses nothing
        for member in archive.infolist():
            if member.filename.endswith("/data.pkl"):
                _check_opcodes(archive.open(member))


def _check_opcodes(stream: IO[bytes]) -> None:
    for number, _ in enumerate(pickletools.genops(stream)):
        if number > _MAX_OPCODES:
            raise ValueError(f"a pickle of more than {_MAX_OPCODES} opcodes")


#: torch's restricted unpickler lets through whatever error the instructions of a damaged file cause.
_DAMAGE = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def load_plain(path: Path) -> Any:
    """Load plain values and tensors from a ``torch.save`` file onto the CPU, without executing anything in it.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or was not written by ``torch.save``; the message is one line.
    """
    try:
        _check_pickles(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        lines = str(error).strip().splitlines()
        raise ValueError(lines[0] if lines else type(error).__name__) from error
