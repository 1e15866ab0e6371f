"""The operators of TensorFlow Lite's floating-point face networks, as PyTorch modules built from a file's graph.

Every layer maps f32 [N, ...] to f32 [N, ...] for a batch of any size N; images are N H W C. Definitions follow the
TensorFlow Lite operator reference. ``build_layer`` raises ``ValueError`` for unsupported operators: integer
quantisation, and operators that change axis 0 (the file's batch of 1).

Letters: N batch, H W height and width, C channels, O output channels, K kernel size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrs3_loader.face.landmarks.convolve import Pair, Sides, convolve
from lrs3_loader.face.landmarks.tflite_graph import Graph, Operator

Constants = Mapping[int, np.ndarray]
Function = Callable[..., Tensor]

#: Activations by their code in the file; they may overwrite the new tensors that they are applied to.
_ACTIVATIONS: dict[int, Function | None] = {0: None, 1: torch.relu_, 3: partial(F.relu6, inplace=True)}


class Layer(nn.Module):
    """A function of tensors and stored constants, and an activation of its result.

    Args:
        function: takes tensors and constants in the operator's order.
        constants: None at the positions of tensors.
        activation: may overwrite the tensor it is applied to.
    """

    def __init__(
        self,
        function: Function,
        constants: Sequence[Tensor | None] = (None,),
        activation: Function | None = None,
    ) -> None:
        super().__init__()
        self.function, self.activation = function, activation
        self.is_sum = function is torch.add and all(constant is None for constant in constants)  # of tensors only
        self._names = [f"constant{i}" for i in range(len(constants))]
        for name, constant in zip(self._names, constants, strict=True):
            self.register_buffer(name, constant)
        self.name = ""  # of the operator in the file

    @property
    def constants(self) -> list[Any]:
        """The stored constants, as given."""
        return [getattr(self, name) for name in self._names]

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride, padding and the like of the function, by its names."""
        return getattr(self.function, "keywords", {})

    def forward(self, *tensors: Tensor) -> Tensor:
        remaining = iter(tensors)
        stored = (getattr(self, name) for name in self._names)
        y = self.function(*(next(remaining) if constant is None else constant for constant in stored))
        return y if self.activation is None else self.activation(y)


def build_layer(op: Operator, graph: Graph, constants: Constants) -> Layer:
    """Build the module of an operator, whose forward takes the inputs of ``op`` that are not in ``constants``."""
    if op.name not in _BUILDERS:
        raise ValueError(f"operator {op.name} is not supported; supported are {', '.join(sorted(_BUILDERS))}")
    builder, arities = _BUILDERS[op.name]
    if len(op.inputs) not in arities or len(op.outputs) != 1:
        raise ValueError(f"{op.name} with {len(op.inputs)} inputs and {len(op.outputs)} outputs is not supported")
    layer = builder(_Reader(op, graph, constants))
    layer.name = op.name
    return layer


def drops_batch(op: Operator) -> bool:
    """Return whether the file's operator removes the batch axis, which is kept here."""
    return op.name == "STRIDED_SLICE" and bool(op.option(4, "i"))


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return the padding (before, after) that gives ceil(size / stride) outputs; an odd pixel goes last."""
    num_outputs = -(-size // stride)
    total = max((num_outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class _Reader:
    """Checked access to the inputs and options of one operator."""

    op: Operator
    graph: Graph
    constants: Constants

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.graph.tensors[self.op.inputs[0]].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.graph.tensors[self.op.outputs[0]].shape

    def image_shape(self) -> tuple[int, ...]:
        if len(self.input_shape) != 4:
            raise ValueError(f"{self.op.name} of a tensor of shape {self.input_shape} is not supported")
        return self.input_shape

    def floats(self, position: int) -> Tensor:
        values = self._constant(position)
        if values.dtype.kind != "f":
            raise ValueError(f"{self.op.name} with {values.dtype} weights: integer quantisation is not supported")
        return torch.from_numpy(values.astype(np.float32))  # astype copies: views of the file are read-only

    def stored(self) -> list[Tensor | None]:
        return [self.floats(i) if t in self.constants else None for i, t in enumerate(self.op.inputs)]

    def integers(self, position: int) -> list[int]:
        values = self._constant(position)
        if values.dtype.kind != "i" or values.size > 16:
            raise ValueError(
                f"{self.op.name} needs a few integers as input {position}, got {values.size} {values.dtype}"
            )
        return values.ravel().tolist()

    def _constant(self, position: int) -> np.ndarray:
        if self.op.inputs[position] not in self.constants:
            raise ValueError(f"{self.op.name} is supported only where input {position} is a constant")
        return self.constants[self.op.inputs[position]]

    def positive(self, number: int, default: int = 0) -> int:
        value = int(self.op.option(number, "i", default))
        if not 1 <= value <= 64:
            raise ValueError(f"damaged model file: {self.op.name} with a size, stride or dilation of {value}")
        return value

    def activation(self, number: int) -> Function | None:
        code = self.op.option(number, "b")
        if code not in _ACTIVATIONS:
            raise ValueError(f"{self.op.name} with fused activation {code} is not supported")
        return _ACTIVATIONS[code]

    def padding(self, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Sides:
        """Return the padding of option 0: SAME or VALID."""
        code = self.op.option(0, "b")
        if code not in (0, 1):
            raise ValueError(f"damaged model file: {self.op.name} with padding {code}")
        _, height, width, _ = self.image_shape()
        if code == 1:
            return 0, 0, 0, 0
        top, bottom = same_padding(height, kernel[0], stride[0], dilation[0])
        left, right = same_padding(width, kernel[1], stride[1], dilation[1])
        return left, right, top, bottom


def _convolution(read: _Reader) -> Layer:
    """Build CONV_2D or DEPTHWISE_CONV_2D: [N, H, W, C] -> [N, H', W', O]."""
    depthwise = read.op.name == "DEPTHWISE_CONV_2D"
    weight = read.floats(1)
    bias = read.floats(2) if len(read.op.inputs) == 3 and read.op.inputs[2] >= 0 else None
    num_channels = read.image_shape()[3]
    if weight.ndim != 4:
        raise ValueError(f"{read.op.name} needs weights of rank 4, got shape {tuple(weight.shape)}")
    # Stored as O K K C, or as 1 K K O if each channel has its own filters.
    weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
    first = 4 if depthwise else 3  # option numbers: a depth multiplier comes before these
    dilation = (read.positive(first + 2, 1), read.positive(first + 1, 1))
    stride = (read.positive(2), read.positive(1))
    padding = read.padding((weight.shape[2], weight.shape[3]), stride, dilation)
    function = partial(
        convolve, stride=stride, padding=padding, dilation=dilation, groups=num_channels if depthwise else 1
    )
    weight = weight.contiguous(memory_format=torch.channels_last)
    stored = [None, weight] if bias is None else [None, weight, bias]
    return Layer(function, stored, read.activation(first))


def _max_pool(read: _Reader) -> Layer:
    kernel, stride = (read.positive(4), read.positive(3)), (read.positive(2), read.positive(1))
    if read.activation(5) is not None:
        raise ValueError("MAX_POOL_2D with an activation is not supported")
    return Layer(partial(_pool, kernel=kernel, stride=stride, padding=read.padding(kernel, stride)))


def _pool(x: Tensor, kernel: Pair, stride: Pair, padding: Sides) -> Tensor:
    if any(padding):
        x = F.pad(x, (0, 0, *padding), value=float("-inf"))
    num_items, height, width, channels = x.shape
    if kernel == stride == (2, 2) and height % 2 == width % 2 == 0:
        # Comparing along memory takes less than half of max_pool2d's time on a CPU.
        rows = x.reshape(-1, 2, width * channels)
        columns = torch.maximum(rows[:, 0], rows[:, 1]).view(num_items, height // 2, width // 2, 2, channels)
        return torch.maximum(columns[:, :, :, 0], columns[:, :, :, 1])
    return F.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride).permute(0, 2, 3, 1)


def _prelu(read: _Reader) -> Layer:
    slope = read.floats(1)
    _, _, width, channels = read.image_shape()
    if slope.ndim == 0 or slope.numel() != slope.shape[-1] or slope.numel() not in (1, channels):
        raise ValueError(f"PRELU with slopes of shape {tuple(slope.shape)} is not supported")
    # Few channels would be processed one by one. Taking whole rows as channels is five times as fast.
    slopes = slope.reshape(-1).repeat(width)
    return Layer(lambda x, slopes: F.prelu(x.reshape(-1, len(slopes)), slopes).view(x.shape), [None, slopes])


def _elementwise(function: Function, fused: bool = False) -> Builder:
    return lambda read: Layer(function, read.stored(), read.activation(0) if fused else None)


def _concatenation(read: _Reader) -> Layer:
    rank = len(read.output_shape)
    axis = read.op.option(0, "i")
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank or read.activation(1) is not None:
        raise ValueError(f"CONCATENATION along axis {axis} of {rank}, or with an activation, is not supported")
    stored = read.stored()
    tensor = next((i for i, constant in enumerate(stored) if constant is None), None)
    if tensor is None:
        raise ValueError("CONCATENATION of constants only is not supported")

    def concatenate(*parts: Tensor) -> Tensor:  # constants are repeated over the batch
        return torch.cat([part.expand(len(parts[tensor]), *part.shape[1:]) for part in parts], axis)

    return Layer(concatenate, stored)


def _pad(read: _Reader) -> Layer:
    amounts = read.integers(1)
    if len(amounts) < 2 or any(amounts[:2]) or min(amounts) < 0:
        raise ValueError(f"PAD by {amounts} is not supported")
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    return Layer(partial(F.pad, pad=[amount for pair in reversed(pairs[1:]) for amount in pair]))


def _reshape(read: _Reader) -> Layer:
    before, after = read.input_shape, read.output_shape
    if after[:1] != (1,) or before[:1] != (1,) or math.prod(after) != math.prod(before):
        raise ValueError(f"RESHAPE from {before} to {after} does not keep the batch axis")
    return Layer(lambda x: x.reshape(len(x), *after[1:]))


def _transpose(read: _Reader) -> Layer:
    order = read.integers(1)
    if not order or order[0] != 0:
        raise ValueError(f"TRANSPOSE to {order} moves the batch axis")
    return Layer(partial(torch.permute, dims=order))


def _reduction(function: Function) -> Builder:
    def build(read: _Reader) -> Layer:
        rank = len(read.input_shape)
        axes = [axis + rank if axis < 0 else axis for axis in read.integers(1)]
        if not axes or not all(1 <= axis < rank for axis in axes):
            raise ValueError(f"{read.op.name} over axes {axes} of {rank} is not supported")
        return Layer(partial(function, dim=axes, keepdim=bool(read.op.option(0, "b"))))

    return build


def _strided_slice(read: _Reader) -> Layer:
    starts, stops, steps = (read.integers(i) for i in (1, 2, 3))
    no_start, no_stop, ellipsis, new_axis, shrink = (read.op.option(i, "i") for i in range(5))
    if not len(starts) == len(stops) == len(steps) or min(steps, default=0) < 1:
        raise ValueError(f"STRIDED_SLICE {starts}:{stops}:{steps} is not supported")
    if ellipsis or new_axis or shrink not in (0, 1):
        raise ValueError("STRIDED_SLICE that adds axes, or removes any but the first, is not supported")
    slices = [
        slice(None if no_start >> i & 1 else start, None if no_stop >> i & 1 else stop, step)
        for i, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True))
    ]
    if len(range(*slices[0].indices(1))) != 1:
        raise ValueError("STRIDED_SLICE cuts the batch axis")
    kept = (slice(None), *slices[1:])
    return Layer(lambda x: x[kept])


Builder = Callable[[_Reader], Layer]

#: Operator -> how to build it, and how many inputs it may have.
_BUILDERS: dict[str, tuple[Builder, Sequence[int]]] = {
    "ADD": (_elementwise(torch.add, fused=True), (2,)),
    "CONCATENATION": (_concatenation, range(1, 33)),
    "CONV_2D": (_convolution, (2, 3)),
    "DEPTHWISE_CONV_2D": (_convolution, (2, 3)),
    "DIV": (_elementwise(torch.div, fused=True), (2,)),
    "LOGISTIC": (_elementwise(torch.sigmoid), (1,)),
    "MAX_POOL_2D": (_max_pool, (1,)),
    "MEAN": (_reduction(torch.mean), (2,)),
    "MUL": (_elementwise(torch.mul, fused=True), (2,)),
    "NEG": (_elementwise(torch.neg), (1,)),
    "PAD": (_pad, (2,)),
    "PRELU": (_prelu, (2,)),
    "RELU": (_elementwise(torch.relu), (1,)),
    "RESHAPE": (_reshape, (1, 2)),
    "RSQRT": (_elementwise(torch.rsqrt), (1,)),
    "SQRT": (_elementwise(torch.sqrt), (1,)),
    "SQUARED_DIFFERENCE": (_elementwise(lambda a, b: (a - b).square()), (2,)),
    "STRIDED_SLICE": (_strided_slice, (4,)),
    "SUB": (_elementwise(torch.sub, fused=True), (2,)),
    "SUM": (_reduction(torch.sum), (2,)),
    "TRANSPOSE": (_transpose, (2,)),
}
