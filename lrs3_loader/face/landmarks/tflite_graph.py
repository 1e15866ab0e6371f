"""Read a TensorFlow Lite file into a plain description of its graph: tensors, operators, constants.

The file is a FlatBuffer: tables whose fields are found through a table of 16-bit offsets, and vectors that start with
their length. Field numbers are those of TensorFlow Lite's published ``schema.fbs``. The file is not trusted: every
offset and length is checked against the end of the file, and every count against a bound, so that a damaged file raises
``ValueError`` instead of a crash, a hang or a huge allocation.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

FILE_IDENTIFIER = b"TFL3"
_MAX_ITEMS = 20_000  # tensors, operators or buffers; the largest model here holds 725
_MAX_RANK = 6
_MAX_ARITY = 32
_MAX_ELEMENTS = 1 << 24

#: Names of operators by their code in the file, including unsupported ones, which error messages name.
OPERATOR_NAMES: dict[int, str] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 21: "RELU6", 22: "RESHAPE",
    23: "RESIZE_BILINEAR", 25: "SOFTMAX", 32: "CUSTOM", 34: "PAD", 36: "GATHER", 39: "TRANSPOSE", 40: "MEAN",
    41: "SUB", 42: "DIV", 43: "SQUEEZE", 45: "STRIDED_SLICE", 54: "PRELU", 59: "NEG", 74: "SUM", 75: "SQRT",
    76: "RSQRT", 92: "SQUARE", 99: "SQUARED_DIFFERENCE",
}  # fmt: skip

_DTYPES: dict[int, type[np.generic]] = {
    0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 6: np.bool_, 7: np.int16, 9: np.int8,
}  # fmt: skip


class Table:
    """A FlatBuffer table: typed access to its fields by number."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        self._vtable = position - self._read("<i", position)
        self._vtable_size = self._read("<H", self._vtable)

    def scalar(self, number: int, code: str, default: Any = 0) -> Any:
        """Return field ``number`` as the ``struct`` type ``code``, or ``default`` if the file omits it."""
        at = self._field(number)
        return default if at is None else self._read("<" + code, at)

    def table(self, number: int) -> Table | None:
        at = self._field(number)
        return None if at is None else Table(self._data, at + self._read("<I", at))

    def array(self, number: int, dtype: str, bound: int) -> np.ndarray | None:
        """Return a vector of at most ``bound`` numbers as a read-only view of the file, or None if it is omitted."""
        found = self._vector(number, np.dtype(dtype).itemsize, bound)
        if found is None:
            return None
        start, count = found
        return np.frombuffer(self._data, dtype=dtype, count=count, offset=start)

    def tables(self, number: int, bound: int = _MAX_ITEMS) -> list[Table]:
        """Return a vector of at most ``bound`` tables, empty if it is omitted."""
        found = self._vector(number, 4, bound)
        if found is None:
            return []
        start, count = found
        return [Table(self._data, at + self._read("<I", at)) for at in range(start, start + 4 * count, 4)]

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self._vtable_size:
            return None
        offset = self._read("<H", self._vtable + slot)
        return self._position + offset if offset else None

    def _vector(self, number: int, item_size: int, bound: int) -> tuple[int, int] | None:
        at = self._field(number)
        if at is None:
            return None
        start = at + self._read("<I", at)
        count = self._read("<I", start)
        if count > bound or start + 4 + count * item_size > len(self._data):
            raise ValueError(f"damaged model file: a vector of {count} items at byte {start} does not fit")
        return start + 4, count

    def _read(self, code: str, position: int) -> Any:
        if not 0 <= position <= len(self._data) - struct.calcsize(code):
            raise ValueError(f"damaged model file: byte {position} lies outside its {len(self._data)} bytes")
        return struct.unpack_from(code, self._data, position)[0]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the graph. ``shape`` is as in the file, with a batch of 1."""

    shape: tuple[int, ...]
    dtype: np.dtype
    data: np.ndarray | None  # the values of a constant; None: computed at run time


@dataclass(frozen=True)
class Operator:
    """An operator: its name, the tensors it reads (-1: omitted) and writes, its options (None: all defaults)."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None

    def option(self, number: int, code: str, default: Any = 0) -> Any:
        return default if self.options is None else self.options.scalar(number, code, default)


@dataclass(frozen=True)
class Graph:
    """A model's only subgraph, operators in an order in which they can run."""

    tensors: tuple[TensorSpec, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(data: bytes) -> Graph:
    """Read the graph from the bytes of a ``.tflite`` file; raises ``ValueError`` if it is damaged or another file."""
    if data[4:8] != FILE_IDENTIFIER:
        raise ValueError(f"not a TensorFlow Lite file: bytes 4-7 are {data[4:8]!r}, not {FILE_IDENTIFIER!r}")
    model = Table(data, struct.unpack_from("<I", data)[0])
    # Codes above 127 were added later, in another field; older files have only the first one.
    codes = [max(code.scalar(0, "b"), code.scalar(3, "i")) for code in model.tables(1)]
    names = [OPERATOR_NAMES.get(code, f"operator {code}") for code in codes]
    subgraphs = model.tables(2)
    if len(subgraphs) != 1:
        raise ValueError(f"a model with one subgraph is expected, this one has {len(subgraphs)}")
    buffers = [buffer.array(0, "u1", len(data)) for buffer in model.tables(4)]
    graph = subgraphs[0]
    tensors = tuple(_tensor(table, buffers) for table in graph.tables(0))
    operators = tuple(_operator(table, names, len(tensors)) for table in graph.tables(3))
    inputs = _indices(graph, 1, len(tensors))
    outputs = _indices(graph, 2, len(tensors))
    if not inputs or not outputs:
        raise ValueError("damaged model file: no inputs or no outputs")
    return Graph(tensors, operators, inputs, outputs)


def _tensor(table: Table, buffers: list[np.ndarray | None]) -> TensorSpec:
    dims = table.array(0, "<i4", _MAX_RANK)
    shape = () if dims is None else tuple(dims.tolist())
    code = table.scalar(1, "b")
    if code not in _DTYPES:
        raise ValueError(f"tensor type {code} is not supported")
    count = math.prod(shape)
    if min(shape, default=1) < 1 or count > _MAX_ELEMENTS:
        raise ValueError(f"damaged model file: a tensor of shape {shape}")
    index = table.scalar(2, "I")
    if index >= len(buffers):
        raise ValueError(f"damaged model file: buffer {index} of {len(buffers)}")
    dtype = np.dtype(_DTYPES[code])
    raw = buffers[index]
    if raw is None or raw.size == 0:
        return TensorSpec(shape, dtype, None)
    if raw.size != count * dtype.itemsize:
        raise ValueError(f"damaged model file: {raw.size} bytes for a {dtype} tensor of shape {shape}")
    return TensorSpec(shape, dtype, raw.view(dtype).reshape(shape))


def _operator(table: Table, names: list[str], num_tensors: int) -> Operator:
    index = table.scalar(0, "I")
    if index >= len(names):
        raise ValueError(f"damaged model file: operator code {index} of {len(names)}")
    inputs = _indices(table, 1, num_tensors, optional=True)
    return Operator(names[index], inputs, _indices(table, 2, num_tensors), table.table(4))


def _indices(table: Table, number: int, num_tensors: int, optional: bool = False) -> tuple[int, ...]:
    found = table.array(number, "<i4", _MAX_ARITY)
    indices = () if found is None else tuple(found.tolist())
    if any(not (-1 if optional else 0) <= i < num_tensors for i in indices):
        raise ValueError(f"damaged model file: tensors {indices} of {num_tensors}")
    return indices
