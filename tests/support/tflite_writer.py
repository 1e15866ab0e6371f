"""Writes small TensorFlow Lite files, for tests of the reader: the schema's field numbers again, on their own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lrs3_loader.face.landmarks.tflite import TFLiteModule

CODES = {
    "ADD": 0, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "DEQUANTIZE": 6, "LOGISTIC": 14,
    "MAX_POOL_2D": 17, "MUL": 18, "RELU": 19, "RESHAPE": 22, "SOFTMAX": 25, "PAD": 34, "TRANSPOSE": 39, "MEAN": 40,
    "SUB": 41, "DIV": 42, "STRIDED_SLICE": 45, "PRELU": 54, "NEG": 59, "SUM": 74, "SQRT": 75, "RSQRT": 76,
    "SQUARED_DIFFERENCE": 99, "BROADCAST_TO": 130,
}  # fmt: skip
TYPES = {"float32": 0, "float16": 1, "int32": 2, "int8": 9}


@dataclass
class Writer:
    """One network with one input, built operator by operator; ``finish`` gives the file's bytes."""

    input_shape: tuple[int, ...]
    tensors: list[dict[int, Any]] = field(default_factory=list)
    buffers: list[dict[int, Any]] = field(default_factory=lambda: [{}])
    operators: list[tuple[str, list[int], int, dict[int, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensor(self.input_shape)  # number 0

    def tensor(self, shape: Sequence[int], dtype: str = "float32", buffer: int = 0) -> int:
        code = ("b", TYPES[dtype])
        self.tensors.append({0: np.array(shape, "<i4"), 1: code, 2: ("I", buffer)})
        return len(self.tensors) - 1

    def constant(self, values: np.ndarray) -> int:
        self.buffers.append({0: np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)})
        return self.tensor(values.shape, values.dtype.name, len(self.buffers) - 1)

    def op(self, name: str, inputs: Sequence[int], shape: Sequence[int], options: dict[int, Any] | None = None) -> int:
        """Add an operator whose output has that shape; the number of its output."""
        dtype = "float32"
        self.operators.append((name, list(inputs), self.tensor(shape, dtype), options or {}))
        return self.operators[-1][2]

    def finish(self, outputs: Sequence[int]) -> bytes:
        names = sorted({name for name, *_ in self.operators})
        # Codes that fit go into both fields, others only into the newer one.
        codes: list[dict[int, Any]] = [{0: ("b", min(CODES[n], 127)), 3: ("i", CODES[n])} for n in names]
        operators = [
            {0: ("I", names.index(name)), 1: np.array(ins, "<i4"), 2: np.array([out], "<i4"), 4: options}
            for name, ins, out, options in self.operators
        ]
        graph = {0: self.tensors, 1: np.array([0], "<i4"), 2: np.array(outputs, "<i4"), 3: operators}
        model = {0: ("I", 3), 1: codes, 2: [graph], 4: self.buffers}
        data = bytearray(b"\0\0\0\0TFL3")
        struct.pack_into("<I", data, 0, _emit(data, model))
        return bytes(data)


def _emit(data: bytearray, node: Any) -> int:
    """Append a table (dict), a vector of tables (list) or a vector of numbers (array); returns where it begins."""
    data += bytes(-len(data) % 4)
    if isinstance(node, np.ndarray):
        start = len(data)
        data += struct.pack("<I", len(node)) + node.tobytes()
    elif isinstance(node, list):
        start = len(data)
        data += struct.pack("<I", len(node)) + bytes(4 * len(node))
        for i, child in enumerate(node):
            _link(data, start + 4 + 4 * i, child)
    else:
        start = _emit_table(data, node)
    return start


def _emit_table(data: bytearray, fields: dict[int, Any]) -> int:
    num_slots = max(fields, default=-1) + 1
    places = {number: 4 + 4 * i for i, number in enumerate(fields)}  # four bytes for each, whatever its kind
    vtable = struct.pack("<HH", 4 + 2 * num_slots, 4 + 4 * len(fields))
    vtable += b"".join(struct.pack("<H", places.get(number, 0)) for number in range(num_slots))
    vtable += bytes(-len(vtable) % 4)
    data += vtable
    start = len(data)
    data += struct.pack("<i", len(vtable)) + bytes(4 * len(fields))
    for number, value in fields.items():
        if isinstance(value, tuple):
            struct.pack_into("<" + value[0], data, start + places[number], value[1])
        else:
            _link(data, start + places[number], value)
    return start


def _link(data: bytearray, slot: int, child: Any) -> None:
    struct.pack_into("<I", data, slot, _emit(data, child) - slot)


SAME, VALID = ("b", 0), ("b", 1)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_network() -> bytes:
    """An input of 6 x 6 x 3 through most kinds of table in a file."""
    net = Writer((1, 6, 6, 3))
    weights = [net.constant(random(4, 3, 3, 3).astype(np.float16)), net.constant(random(4))]
    kernel = net.op("DEQUANTIZE", [weights[0]], (4, 3, 3, 3))
    options = {0: SAME, 1: ("i", 2), 2: ("i", 2), 3: ("b", 1)}
    y = net.op("CONV_2D", [0, kernel, weights[1]], (1, 3, 3, 4), options)
    y = net.op("PRELU", [y, net.constant(random(1, 1, 4))], (1, 3, 3, 4))
    y = net.op("PAD", [y, net.constant(np.int32([[0, 0], [0, 1], [1, 0], [0, 0]]))], (1, 4, 4, 4))
    y = net.op("MAX_POOL_2D", [y], (1, 2, 2, 4), {0: VALID, 1: ("i", 2), 2: ("i", 2), 3: ("i", 2), 4: ("i", 2)})
    y = net.op("MEAN", [y, net.constant(np.int32([1, 2]))], (1, 4))
    return net.finish([net.op("LOGISTIC", [net.op("RESHAPE", [y], (1, 2, 2))], (1, 2, 2))])


def runs_or_is_refused(data: bytes) -> bool:
    """True where a damaged file is refused. Damage that only changes weights cannot be seen: then it must run."""
    try:
        network = TFLiteModule(data)
    except ValueError:
        return True
    with torch.inference_mode():
        network(torch.zeros(1, *network.input_shape))
    return False
