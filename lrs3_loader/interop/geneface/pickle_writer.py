"""Pickles of plain values and arrays, the same bytes whatever numpy runs here.

``pickle.dumps`` names the module that the running numpy keeps its arrays in: ``numpy._core`` from 2.0 on, which readers
with numpy 1 do not have. Numpy 2 still answers to the old name, so this writes that one: protocol 4, no memo, no
frames, arrays in C order and little-endian, their bytes passed on without a copy.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

_RECONSTRUCT = pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n"
_NDARRAY = pickle.GLOBAL + b"numpy\nndarray\n"
_DTYPE = pickle.GLOBAL + b"numpy\ndtype\n"
_NO_SHAPE = pickle.BININT1 + b"\0" + pickle.TUPLE1
_NO_DATA = pickle.SHORT_BINBYTES + b"\1b"


def pickle_pieces(value: Any) -> Iterator[bytes | memoryview]:
    """The pickle of ``value``, piece by piece: dicts, lists, str, int, bool, None and numeric arrays.

    Raises:
        ValueError: a value of another type.
    """
    yield pickle.PROTO + b"\4"
    yield from _value(value)
    yield pickle.STOP


def write_dict_npy(file: IO[bytes], value: dict[str, Any]) -> None:
    """Write the bytes of ``np.save(file, value, allow_pickle=True)`` under numpy 1: an object array of one dict."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(pickle.PROTO + b"\4")
    file.writelines(_array_head((), "O8", "|", flags=63))
    file.write(pickle.EMPTY_LIST)
    file.writelines(_value(value))
    file.write(pickle.APPEND + pickle.TUPLE + pickle.BUILD + pickle.STOP)


def _value(value: Any) -> Iterator[bytes | memoryview]:
    if value is None:
        yield pickle.NONE
    elif isinstance(value, bool):
        yield pickle.NEWTRUE if value else pickle.NEWFALSE
    elif isinstance(value, int):
        yield _int(value)
    elif isinstance(value, str):
        yield _text(value)
    elif isinstance(value, np.ndarray):
        yield from _array(value)
    elif isinstance(value, list):
        yield pickle.EMPTY_LIST + pickle.MARK
        for entry in value:
            yield from _value(entry)
        yield pickle.APPENDS
    elif isinstance(value, dict):
        yield pickle.EMPTY_DICT + pickle.MARK
        for name, entry in value.items():
            yield from _value(name)
            yield from _value(entry)
        yield pickle.SETITEMS
    else:
        raise ValueError(f"cannot write a {type(value).__name__}: plain values and arrays only")


def _int(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return pickle.BININT1 + struct.pack("<B", value)
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    digits = pickle.encode_long(value)
    return pickle.LONG1 + struct.pack("<B", len(digits)) + digits


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _array(array: np.ndarray) -> Iterator[bytes | memoryview]:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"cannot write an array of {array.dtype}: numbers only")
    order = "|" if array.dtype.itemsize == 1 else "<"
    flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    yield from _array_head(array.shape, array.dtype.str[1:], order, flags=0)
    yield pickle.BINBYTES8 + struct.pack("<Q", flat.nbytes)
    yield flat.view(np.uint8).data
    yield pickle.TUPLE + pickle.BUILD


def _array_head(shape: tuple[int, ...], kind: str, order: str, flags: int) -> Iterator[bytes]:
    """An empty array, and the state that fills it as far as the data: (1, shape, dtype, is_fortran, ... ."""
    yield _RECONSTRUCT + _NDARRAY + _NO_SHAPE + _NO_DATA + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.MARK + _int(1)
    yield pickle.MARK + b"".join(_int(size) for size in shape) + pickle.TUPLE
    yield _DTYPE + _text(kind) + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
    nothing = pickle.NONE * 3 + _int(-1) * 2
    yield pickle.MARK + _int(3) + _text(order) + nothing + _int(flags) + pickle.TUPLE + pickle.BUILD
    yield pickle.NEWFALSE
