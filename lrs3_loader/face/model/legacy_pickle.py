"""Read arrays from pickles of Python 2, without running anything they ask for.

A pickle names the functions that are called while it is read, so an untrusted one can do anything. Only the functions
needed to rebuild numpy arrays are admitted here; sparse matrices, ``chumpy.Ch`` (an array that tracked its derivatives;
the package no longer installs) and torch tensors become placeholders that only hold their contents. Anything else is
refused by name.
"""

from __future__ import annotations

import codecs
import collections
import copyreg
import io
import pickle
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix


class _Held:
    """Placeholder for an object: holds its state and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Chumpy(_Held):
    pass


class _SparseColumns(_Held):
    pass


class _SparseRows(_Held):
    pass


class _Tensor(_Held):
    """Placeholder that is never turned into an array: its contents are a pickle of torch's own."""


_NUMPY = {  # taken from examples, since numpy has moved their modules
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "scalar": np.float64(0).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
_ADMITTED: dict[tuple[str, str], Any] = {
    ("copyreg", "_reconstructor"): copyreg._reconstructor,  # type: ignore[attr-defined]
    ("builtins", "object"): object,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("_codecs", "encode"): codecs.encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch.storage", "_load_from_bytes"): _Tensor,
}
_PYTHON_2 = {"copy_reg": "copyreg", "__builtin__": "builtins"}


def load_arrays(data: bytes) -> Any:
    """Load a pickle: plain Python values, with every kind of array as a numpy array.

    Raises ``pickle.UnpicklingError`` (naming it) for anything that is not admitted, and for damaged data.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load())
    except (AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError, ValueError) as error:
        raise pickle.UnpicklingError(f"damaged pickle: {error}") from error


def load_npy(data: bytes) -> Any:
    """Load an ``.npy`` file: its array, or the single Python object that was saved as one.

    Raises ``pickle.UnpicklingError`` as ``load_arrays`` does.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        _, _, dtype = read(stream)
        if not dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except (EOFError, KeyError, ValueError) as error:
        raise pickle.UnpicklingError(f"no .npy file: {error}") from error
    value = load_arrays(stream.read())
    return _plain(value.item()) if isinstance(value, np.ndarray) and value.ndim == 0 else value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("chumpy.ch", "Ch"):
            return _Chumpy
        if module.startswith("scipy.sparse") and name in ("csc_matrix", "csc_array"):
            return _SparseColumns
        if module.startswith("scipy.sparse") and name in ("csr_matrix", "csr_array"):
            return _SparseRows
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")


def _plain(value: Any) -> Any:
    """Replace the placeholders for arrays in ``value`` by arrays, also inside dicts and lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, _Chumpy):
        return _plain(value.state["x"])
    if isinstance(value, (_SparseColumns, _SparseRows)):
        return _dense(value)
    return value


def _dense(held: _SparseColumns | _SparseRows) -> np.ndarray:
    state = held.state
    kind = csc_matrix if isinstance(held, _SparseColumns) else csr_matrix
    shape = state["_shape"] if "_shape" in state else state["shape"]
    matrix = kind((state["data"], state["indices"], state["indptr"]), shape=shape)
    matrix.check_format(full_check=True)  # otherwise indices out of range would write outside the array
    return matrix.toarray()
