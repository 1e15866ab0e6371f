"""The operators of TensorFlow Lite's floating-point face networks, as PyTorch modules built from a file's graph.

Every module maps f32 [N, ...] to f32 [N, ...] for a batch of any size N; images are N H W C. Definitions follow the
TensorFlow Lite operator reference. ``build_layer`` raises ``ValueError`` for unsupported operators: integer
quantisation, and operators that change axis 0 (the file's batch of 1).

Letters: N batch, H W height and width, C channels, O output channels, K kernel size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrs3_loader.face.landmarks.tflite_graph import Graph, Operator

Constants = Mapping[int, np.ndarray]
Function = Callable[..., Tensor]
Builder = Callable[[Operator, Graph, Constants], nn.Module]

#: Activations by their code in the file; they may overwrite the new tensors that they are applied to.
_ACTIVATIONS: dict[int, Function | None] = {0: None, 1: torch.relu_, 3: partial(F.relu6, inplace=True)}


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return the padding (before, after) that gives ceil(size / stride) outputs; an odd pixel goes last."""
    num_outputs = -(-size // stride)
    total = max((num_outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class Convolution(nn.Module):
    """CONV_2D and DEPTHWISE_CONV_2D: [N, H, W, C] -> [N, H', W', O].

    weight: [O, C / groups, K, K]; bias: [O] or None; padding: (left, right, top, bottom) zeros.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        groups: int,
        activation: Function | None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        left, right, top, bottom = padding
        even = left == right and top == bottom
        self.pad = (0, 0, 0, 0) if even else padding
        self.settings = (stride, (top, left) if even else (0, 0), dilation, groups)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.settings
        if any(self.pad):
            x = F.pad(x, (0, 0, *self.pad))
        x = x.permute(0, 3, 1, 2)
        if x.device.type == "cpu" and len(x) and torch.backends.mkldnn.is_available():
            # conv2d avoids oneDNN for 1x1 kernels in small batches on one thread, and is then half as fast.
            y = torch.mkldnn_convolution(x, self.weight, self.bias, padding, stride, dilation, groups)
        else:
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        y = y.permute(0, 2, 3, 1)
        return y if self.activation is None else self.activation(y)


class MaxPool(nn.Module):
    """MAX_POOL_2D: [N, H, W, C] -> [N, H', W', C]; padding as in ``Convolution``, with -inf."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.is_2x2 = kernel == stride == (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, (0, 0, *self.padding), value=float("-inf"))
        if self.is_2x2 and x.shape[1] % 2 == x.shape[2] % 2 == 0:
            return _max_pool_2x2(x)
        return F.max_pool2d(x.permute(0, 3, 1, 2), self.kernel, self.stride).permute(0, 2, 3, 1)


def _max_pool_2x2(x: Tensor) -> Tensor:
    """Pool [N, 2H, 2W, C] to [N, H, W, C] in less than half of max_pool2d's time on a CPU, comparing along memory."""
    num_items, height, width, channels = x.shape
    rows = x.reshape(-1, 2, width * channels)
    columns = torch.maximum(rows[:, 0], rows[:, 1]).view(num_items, height // 2, width // 2, 2, channels)
    return torch.maximum(columns[:, :, :, 0], columns[:, :, :, 1])


class PRelu(nn.Module):
    """PRELU with one slope per channel: x where x > 0, else slope * x; x: [N, H, W, C], slope: [C]."""

    slope: Tensor

    def __init__(self, slope: Tensor, width: int) -> None:
        super().__init__()
        # Few channels would be processed one by one. Taking whole rows as channels is five times as fast.
        self.register_buffer("slope", slope.repeat(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x.reshape(-1, len(self.slope)), self.slope).view(x.shape)


class Elementwise(nn.Module):
    """A function of broadcast tensors and constants; ``constants`` is None at the positions of tensors.

    A sum may overwrite one of its terms that nothing else needs (``add_into``), whose memory is in the cache.
    """

    def __init__(
        self, function: Function, constants: Sequence[Tensor | None], activation: Function | None = None
    ) -> None:
        super().__init__()
        self.function, self.activation = function, activation
        self.over: int | None = None
        self.names = [f"constant{i}" for i in range(len(constants))]
        for name, constant in zip(self.names, constants, strict=True):
            self.register_buffer(name, constant)

    @property
    def is_sum(self) -> bool:
        """Return whether this is a sum of two tensors, neither of them constant."""
        return self.function is torch.add and all(getattr(self, name) is None for name in self.names)

    def add_into(self, position: int) -> None:
        """Let the sum overwrite the tensor at ``position``, which must have the sum's shape."""
        self.over = position

    def arguments(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        remaining = iter(tensors)
        stored = (getattr(self, name) for name in self.names)
        return [next(remaining) if constant is None else constant for constant in stored]

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.over is None:
            y = self.function(*self.arguments(tensors))
        else:
            y = tensors[self.over].add_(tensors[1 - self.over])
        return y if self.activation is None else self.activation(y)


class Concatenation(Elementwise):
    """CONCATENATION along ``axis`` >= 1; constants are repeated over the batch."""

    def __init__(self, axis: int, constants: Sequence[Tensor | None]) -> None:
        super().__init__(torch.cat, constants)
        self.axis = axis

    def forward(self, *tensors: Tensor) -> Tensor:
        parts = self.arguments(tensors)
        return torch.cat([p.expand(tensors[0].shape[0], *p.shape[1:]) for p in parts], self.axis)


class ShapeOperation(nn.Module):
    """RESHAPE, TRANSPOSE, PAD, MEAN, SUM, STRIDED_SLICE: a function of one tensor with fixed settings."""

    def __init__(self, function: Function, *settings: object) -> None:
        super().__init__()
        self.function, self.settings = function, settings

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.settings)


def build_layer(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    """Build the module of an operator, whose forward takes the inputs of ``op`` that are not in ``constants``."""
    if op.name not in _BUILDERS:
        raise ValueError(f"operator {op.name} is not supported; supported are {', '.join(sorted(_BUILDERS))}")
    builder, arities = _BUILDERS[op.name]
    if len(op.inputs) not in arities or len(op.outputs) != 1:
        raise ValueError(f"{op.name} with {len(op.inputs)} inputs and {len(op.outputs)} outputs is not supported")
    return builder(op, graph, constants)


def drops_batch(op: Operator) -> bool:
    """Return whether the file's operator removes the batch axis, which is kept here."""
    return op.name == "STRIDED_SLICE" and bool(op.option(4, "i"))


def _convolution(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    depthwise = op.name == "DEPTHWISE_CONV_2D"
    weight = _floats(op, 1, constants)
    has_bias = len(op.inputs) == 3 and op.inputs[2] >= 0
    bias = _floats(op, 2, constants) if has_bias else None
    x = _image_shape(op, graph)
    if weight.ndim != 4:
        raise ValueError(f"{op.name} needs weights of rank 4, got shape {tuple(weight.shape)}")
    # Stored as O K K C, or as 1 K K O if each channel has its own filters.
    weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
    first = 4 if depthwise else 3  # option numbers: a depth multiplier comes before these
    dilation = (_positive(op, first + 2, 1), _positive(op, first + 1, 1))
    kernel = (weight.shape[2], weight.shape[3])
    stride = (_positive(op, 2), _positive(op, 1))
    padding = _padding(op, x, kernel, stride, dilation)
    groups = x[3] if depthwise else 1
    return Convolution(weight, bias, stride, padding, dilation, groups, _activation(op, first))


def _max_pool(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    kernel, stride = (_positive(op, 4), _positive(op, 3)), (_positive(op, 2), _positive(op, 1))
    if _activation(op, 5) is not None:
        raise ValueError("MAX_POOL_2D with an activation is not supported")
    return MaxPool(kernel, stride, _padding(op, _image_shape(op, graph), kernel, stride, (1, 1)))


def _prelu(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    slope = _floats(op, 1, constants)
    shape = _image_shape(op, graph)
    if slope.ndim == 0 or slope.numel() != slope.shape[-1] or len(slope.reshape(-1)) not in (1, shape[3]):
        raise ValueError(f"PRELU with slopes of shape {tuple(slope.shape)} is not supported")
    return PRelu(slope.reshape(-1), width=shape[2])


def _elementwise(function: Function, fused: bool = False) -> Builder:
    def build(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
        stored = [_floats(op, i, constants) if t in constants else None for i, t in enumerate(op.inputs)]
        return Elementwise(function, stored, _activation(op, 0) if fused else None)

    return build


def _concatenation(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    rank = len(graph.tensors[op.outputs[0]].shape)
    axis = op.option(0, "i")
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank or _activation(op, 1) is not None:
        raise ValueError(f"CONCATENATION along axis {axis} of {rank}, or with an activation, is not supported")
    stored = [_floats(op, i, constants) if t in constants else None for i, t in enumerate(op.inputs)]
    if all(constant is not None for constant in stored):
        raise ValueError("CONCATENATION of constants only is not supported")
    return Concatenation(axis, stored)


def _pad(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    amounts = _integers(op, 1, constants)
    if len(amounts) < 2 or any(amounts[:2]) or min(amounts) < 0:
        raise ValueError(f"PAD by {amounts} is not supported")
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    return ShapeOperation(F.pad, [amount for pair in reversed(pairs[1:]) for amount in pair])


def _reshape(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    shape = graph.tensors[op.outputs[0]].shape
    before = graph.tensors[op.inputs[0]].shape
    if shape[:1] != (1,) or before[:1] != (1,) or math.prod(shape) != math.prod(before):
        raise ValueError(f"RESHAPE from {before} to {shape} does not keep the batch axis")
    return ShapeOperation(_reshape_items, shape[1:])


def _reshape_items(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(x.shape[0], *shape)


def _transpose(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    order = _integers(op, 1, constants)
    if not order or order[0] != 0:
        raise ValueError(f"TRANSPOSE to {order} moves the batch axis")
    return ShapeOperation(torch.permute, order)


def _reduction(function: Function) -> Builder:
    def build(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
        rank = len(graph.tensors[op.inputs[0]].shape)
        axes = [axis + rank if axis < 0 else axis for axis in _integers(op, 1, constants)]
        if not axes or not all(1 <= axis < rank for axis in axes):
            raise ValueError(f"{op.name} over axes {axes} of {rank} is not supported")
        return ShapeOperation(function, axes, bool(op.option(0, "b")))

    return build


def _strided_slice(op: Operator, graph: Graph, constants: Constants) -> nn.Module:
    starts, stops, steps = (_integers(op, i, constants) for i in (1, 2, 3))
    no_start, no_stop, ellipsis, new_axis, shrink = (op.option(i, "i") for i in range(5))
    if not len(starts) == len(stops) == len(steps) or min(steps, default=0) < 1:
        raise ValueError(f"STRIDED_SLICE {starts}:{stops}:{steps} is not supported")
    if ellipsis or new_axis or shrink not in (0, 1):
        raise ValueError("STRIDED_SLICE that adds axes, or removes any but the first, is not supported")
    slices = [
        slice(None if no_start >> i & 1 else starts[i], None if no_stop >> i & 1 else stops[i], steps[i])
        for i in range(len(starts))
    ]
    if len(range(*slices[0].indices(1))) != 1:
        raise ValueError("STRIDED_SLICE cuts the batch axis")
    return ShapeOperation(torch.Tensor.__getitem__, (slice(None), *slices[1:]))


def _floats(op: Operator, position: int, constants: Constants) -> Tensor:
    """Return a constant input as f32."""
    values = _constant(op, position, constants)
    if values.dtype.kind != "f":
        raise ValueError(f"{op.name} with {values.dtype} weights: integer quantisation is not supported")
    return torch.from_numpy(values.astype(np.float32))  # astype copies: views of the file are read-only


def _integers(op: Operator, position: int, constants: Constants) -> list[int]:
    values = _constant(op, position, constants)
    if values.dtype.kind != "i" or values.size > 16:
        raise ValueError(f"{op.name} needs a few integers as input {position}, got {values.size} {values.dtype}")
    return [int(value) for value in values.reshape(-1)]


def _constant(op: Operator, position: int, constants: Constants) -> np.ndarray:
    if op.inputs[position] not in constants:
        raise ValueError(f"{op.name} is supported only where input {position} is a constant")
    return constants[op.inputs[position]]


def _image_shape(op: Operator, graph: Graph) -> tuple[int, ...]:
    shape = graph.tensors[op.inputs[0]].shape
    if len(shape) != 4:
        raise ValueError(f"{op.name} of a tensor of shape {shape} is not supported")
    return shape


def _positive(op: Operator, number: int, default: int = 0) -> int:
    value = int(op.option(number, "i", default))
    if not 1 <= value <= 64:
        raise ValueError(f"damaged model file: {op.name} with a size, stride or dilation of {value}")
    return value


def _activation(op: Operator, number: int) -> Function | None:
    code = op.option(number, "b")
    if code not in _ACTIVATIONS:
        raise ValueError(f"{op.name} with fused activation {code} is not supported")
    return _ACTIVATIONS[code]


def _padding(
    op: Operator,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) of option 0: SAME or VALID."""
    code = op.option(0, "b")
    if code not in (0, 1):
        raise ValueError(f"damaged model file: {op.name} with padding {code}")
    if code == 1:
        return 0, 0, 0, 0
    top, bottom = same_padding(shape[1], kernel[0], stride[0], dilation[0])
    left, right = same_padding(shape[2], kernel[1], stride[1], dilation[1])
    return left, right, top, bottom


def _squared_difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square()


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
    "SQUARED_DIFFERENCE": (_elementwise(_squared_difference), (2,)),
    "STRIDED_SLICE": (_strided_slice, (4,)),
    "SUB": (_elementwise(torch.sub, fused=True), (2,)),
    "SUM": (_reduction(torch.sum), (2,)),
    "TRANSPOSE": (_transpose, (2,)),
}
