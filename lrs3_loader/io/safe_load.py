"""Arrays out of the bytes of ``.npy`` files from anywhere: nothing is unpickled, and no header is believed.

numpy's own reader makes an array as large as the header says before it looks whether that much data follows.

Reading what ``torch.save`` wrote: plain values and tensors only, whatever the file holds.
"""

from __future__ import annotations

import ast
import io
import math
import pickle
import struct
import tokenize
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MAGIC = b"\x93NUMPY"
_MAX_DIMS = 32
_MAX_HEADER_BYTES = 10_000  # numpy's own bound: longer ones can crash Python's parser
#: What parsing a header made by chance or with intent may raise.
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
    """The array in a ``.npy`` file's bytes, sharing their memory (so writable where they are).

    Version 1 files in C order are read here, four times as fast as numpy's reader; any other goes to numpy.

    Raises:
        ValueError: damaged, of Python objects, or not as much data as its header says.
    """
    try:
        if raw[:8] == _MAGIC + b"\x01\x00":
            start = 10 + int.from_bytes(raw[8:10], "little")
            dtype, fortran, shape = _header(bytes(raw[10:start]))
            if not fortran:
                return np.frombuffer(raw, dtype, count=math.prod(shape), offset=start).reshape(shape)
        return _by_numpy(raw)
    except DAMAGE as error:
        raise ValueError(f"not a sound .npy file: {str(error)[:200] or type(error).__name__}") from error


@lru_cache(maxsize=4096)  # clips of one length share their headers
def _header(text: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes")
    values = ast.literal_eval(text.decode("latin1").strip())
    dtype, shape = np.dtype(values["descr"]), values["shape"]
    _check(dtype, shape)
    return dtype, bool(values["fortran_order"]), shape


def _by_numpy(raw: bytes | bytearray) -> np.ndarray:
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    _check(dtype, shape)
    if math.prod(shape) * dtype.itemsize > len(raw) - file.tell():
        raise ValueError(f"{len(raw) - file.tell()} bytes for {dtype} {shape}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _check(dtype: np.dtype[Any], shape: Any) -> None:
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMS:
        raise ValueError("its shape is no tuple, or a long one")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its shape is not made of whole numbers from 0 up")


#: torch's restricted unpickler raises whatever the instructions of a damaged file run into.
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
    """The contents of a file, tensors on the CPU. Nothing in it is executed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no such file; the message is one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        lines = str(error).strip().splitlines()
        raise ValueError(lines[0] if lines else type(error).__name__) from error
