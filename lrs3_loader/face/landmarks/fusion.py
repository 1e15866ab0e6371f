"""Joins the layers of a TensorFlow Lite network into the operators of ``lrs3_loader.kernels``, for GPUs.

A convolution is joined with the activation behind it, and a depthwise convolution with the 1 x 1 convolution, the sum
with a shortcut and the activation behind it; a shortcut may come through a maximum over 2 x 2 pixels and a padding with
channels of zeros. A 1 x 1 convolution that reads the result is computed along with it. Layers whose results are needed
elsewhere, too, stay as they are, and so does whatever fits nothing. The ten operators that a layer normalisation is
written as become PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrs3_loader.face.landmarks.steps import LayerStep, Step, StepGraph, note_unused, single_step
from lrs3_loader.face.landmarks.tflite_ops import Layer
from lrs3_loader.kernels.convolution import MAX_CHANNELS, convolution_prelu, residual_block


class JoinedConvolution(nn.Module):
    """``convolution_prelu`` with its weights; the network's input is divided and shifted, others are not."""

    def __init__(self, weights: Mapping[str, Tensor | None], stride: int, padding: Sequence[int]) -> None:
        super().__init__()
        _store(self, weights)
        self.stride, self.padding = stride, list(padding)
        self.divisor, self.offset = 1.0, 0.0

    def forward(self, x: Tensor) -> list[Tensor]:
        weights = self.weight, self.bias, self.slope, self.next_weight, self.next_bias, self.next_slope
        return convolution_prelu(x.contiguous(), *weights, self.stride, self.padding, self.divisor, self.offset)


class JoinedBlock(nn.Module):
    """``residual_block`` with its weights."""

    def __init__(self, weights: Mapping[str, Tensor | None], stride: int, padding: Sequence[int]) -> None:
        super().__init__()
        _store(self, weights)
        self.stride, self.padding = stride, list(padding)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> list[Tensor]:
        first = self.depthwise_weight, self.depthwise_bias, self.weight, self.bias
        last = self.slope, self.next_weight, self.next_bias, self.next_slope
        shortcut = None if shortcut is None else shortcut.contiguous()
        return residual_block(x.contiguous(), *first, shortcut, *last, self.stride, self.padding)


class JoinedNormalization(nn.Module):
    """Layer normalisation over the channels, without an offset. Ba et al., "Layer Normalization", 2016."""

    gamma: Tensor

    def __init__(self, gamma: Tensor, epsilon: float) -> None:
        super().__init__()
        _store(self, {"gamma": gamma})
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.layer_norm(x, x.shape[-1:], self.gamma, None, self.epsilon)]


def _store(module: nn.Module, weights: Mapping[str, Tensor | None]) -> None:
    for name, weight in weights.items():
        module.register_buffer(name, None if weight is None else weight.contiguous(), persistent=False)


def join_layers(
    steps: Sequence[LayerStep], shapes: Mapping[int, tuple[int, ...]], results: Sequence[int]
) -> list[Step]:
    """Join the layers of a network.

    Args:
        steps: the network, in an order in which it can run.
        shapes: of each tensor, without the batch axis.
        results: tensors that the network returns.

    Returns:
        steps that compute the same tensors.
    """
    joiner = _Joiner(steps, shapes, results)
    made: dict[int, Step] = {}  # by the position of the last layer joined
    for position in range(len(steps)):
        for join in (joiner.block, joiner.convolution, joiner.normalization):
            if position not in joiner.taken and (found := join(position)):
                made[found[0]] = found[1]
    made |= {position: single_step(step) for position, step in enumerate(steps) if position not in joiner.taken}
    return note_unused([made[position] for position in sorted(made)], results)


class _Joiner(StepGraph):
    """Finds layers to join; ``taken`` are the positions of those that have been."""

    def __init__(
        self, steps: Sequence[LayerStep], shapes: Mapping[int, tuple[int, ...]], results: Sequence[int]
    ) -> None:
        super().__init__(steps, results)
        self.shapes = shapes
        self.taken = set[int]()
        self.device = next((buffer.device for layer, *_ in steps for buffer in layer.buffers()), None)

    def convolution(self, position: int) -> tuple[int, Step] | None:
        """Join a convolution with its activation and the next 1 x 1 convolution."""
        layer, (source, *_), write = self.steps[position]
        if not _is_convolution(layer, groups=1):
            return None
        self.taken.add(position)
        weight, bias = layer.constants[1:]
        slope, y, last = self._activated(position, write)
        following, writes = self._next(y)
        weights = {"weight": weight.permute(2, 3, 1, 0), "bias": bias, "slope": slope, **following}
        geometry = layer.geometry
        module = JoinedConvolution(weights, geometry["stride"][0], geometry["padding"])
        return last, Step(module, (source,), (y, *writes))

    def block(self, position: int) -> tuple[int, Step] | None:
        """Join a depthwise convolution with the 1 x 1 convolution behind it, its shortcut and its activation."""
        layer, (source, *_), write = self.steps[position]
        channels = self.shapes[source][-1]
        if not _is_convolution(layer, groups=channels) or channels == 1 or self.shapes[write][-1] != channels:
            return None
        point = self.sole_reader(write)
        if layer.activation is not None or point is None or not self._is_pointwise(point):
            return None
        wide, _, y = self.steps[point]
        self.taken |= {position, point}
        last, shortcut = point, tuple[int, ...]()
        total = self.sole_reader(y)
        if wide.activation is None and total is not None and (other := self._added_to(y, total)) is not None:
            self.taken.add(total)
            last, y, shortcut = total, self.steps[total][2], (self._shortcut(other),)
        slope, y, last = self._activated(last, y)
        following, writes = self._next(y)
        weights = {
            "depthwise_weight": layer.constants[1][:, 0].permute(1, 2, 0),
            "depthwise_bias": layer.constants[2],
            "weight": wide.constants[1][:, :, 0, 0].T,
            "bias": wide.constants[2],
            "slope": slope,
            **following,
        }
        module = JoinedBlock(weights, layer.geometry["stride"][0], layer.geometry["padding"])
        return last, Step(module, (source, *shortcut), (y, *writes))

    def normalization(self, position: int) -> tuple[int, Step] | None:
        """Join ``x * scale - mean * scale`` with ``scale = gamma / sqrt(variance + epsilon)`` over the last axis."""
        _, (source, *_), mean = self.steps[position]
        readers = {self.name(reader): reader for reader in self.readers.get(mean, ())}
        if not self._averages_channels(position) or readers.keys() != {"NEG", "SQUARED_DIFFERENCE"}:
            return None
        negated, squared = readers["NEG"], readers["SQUARED_DIFFERENCE"]
        chain = [squared]
        for name in ("MEAN", "ADD", "RSQRT", "MUL"):
            follower = self.sole_reader(self.steps[chain[-1]][2])
            if follower is None or self.name(follower) != name:
                return None
            chain.append(follower)
        _, variance, plus_epsilon, _, scaled = chain
        products = self.readers.get(self.steps[scaled][2], [])
        last = {self.sole_reader(self.steps[product][2]) for product in products}
        factors = {tensor for product in products for tensor in self.steps[product][1]}
        epsilon, gamma = (self.steps[at][0].constants[-1] for at in (plus_epsilon, scaled))
        (end,) = last if len(last) == 1 else (None,)
        fits = (
            end is not None
            and self.name(end) == "ADD"
            and [self.name(product) for product in products] == ["MUL", "MUL"]
            and factors == {source, self.steps[negated][2], self.steps[scaled][2]}
            and set(self.steps[squared][1]) == {source, mean}
            and self._averages_channels(variance)
            and all(self.steps[at][0].activation is None for at in (plus_epsilon, scaled, end, *products))
            and epsilon is not None
            and gamma is not None
            and epsilon.numel() == 1
            and gamma.numel() == self.shapes[source][-1]
        )
        if not fits or end is None:
            return None
        self.taken |= {position, negated, *chain, *products, end}
        module = JoinedNormalization(gamma.reshape(-1), float(epsilon))
        return end, Step(module, (source,), (self.steps[end][2],))

    def _averages_channels(self, position: int) -> bool:
        layer, (source, *_), _ = self.steps[position]
        last = [len(self.shapes[source])]  # with the batch axis
        return layer.name == "MEAN" and layer.geometry["dim"] == last and bool(layer.geometry["keepdim"])

    def _added_to(self, tensor: int, position: int) -> int | None:
        """Return the other tensor of the sum at a position, if it is a sum of two tensors of one shape."""
        layer, reads, _ = self.steps[position]
        others = set(reads) - {tensor}
        if not (layer.is_sum and _activates_simply(layer) and len(others) == 1):
            return None
        (other,) = others
        return other if self.shapes[other] == self.shapes[tensor] else None

    def _is_pointwise(self, position: int) -> bool:
        layer, (source, *_), write = self.steps[position]
        sizes_fit = max(self.shapes[source][-1], self.shapes[write][-1]) <= MAX_CHANNELS
        return _is_convolution(layer, groups=1) and _is_one_by_one(layer) and sizes_fit

    def _activated(self, position: int, tensor: int) -> tuple[Tensor, int, int]:
        """Take the activation of a layer's result: returns its slopes, the activated tensor, and the last layer."""
        layer, num_channels = self.steps[position][0], self.shapes[tensor][-1]
        if layer.activation is not None:
            return torch.zeros(num_channels, device=self.device), tensor, position
        reader = self.sole_reader(tensor)
        if reader is not None and self.name(reader) in ("RELU", "PRELU"):
            self.taken.add(reader)
            activation, _, write = self.steps[reader]
            if activation.name == "RELU":
                return torch.zeros(num_channels, device=self.device), write, reader
            return activation.constants[1][:num_channels], write, reader  # it has them for a whole row of pixels
        return torch.ones(num_channels, device=self.device), tensor, position

    def _next(self, tensor: int) -> tuple[dict[str, Tensor | None], tuple[int, ...]]:
        """Take the first 1 x 1 convolution that reads a tensor: returns its weights and the tensor that it writes."""
        found = [reader for reader in self.readers.get(tensor, ()) if reader not in self.taken]
        position = next((reader for reader in found if self._is_pointwise(reader)), None)
        if position is None:
            return dict.fromkeys(("next_weight", "next_bias", "next_slope")), ()
        self.taken.add(position)
        layer, _, write = self.steps[position]
        slope, write, _ = self._activated(position, write)
        weight, bias = layer.constants[1:]
        return {"next_weight": weight[:, :, 0, 0].T, "next_bias": bias, "next_slope": slope}, (write,)

    def _shortcut(self, tensor: int) -> int:
        """Take the padding and the pooling that a shortcut comes through; returns the tensor before them."""
        height, width = self.shapes[tensor][:2]
        for name in ("PAD", "MAX_POOL_2D"):
            position = self.maker.get(tensor)
            if position is None or self.sole_reader(tensor) is None or self.name(position) != name:
                continue
            layer, (source, *_), _ = self.steps[position]
            if name == "PAD":
                fits = self.shapes[source][:2] == (height, width) and layer.geometry["pad"][0] == 0
            else:
                doubled = self.shapes[source][:2] == (2 * height, 2 * width)
                fits = doubled and layer.geometry["kernel"] == layer.geometry["stride"] == (2, 2)
            if fits:
                self.taken.add(position)
                tensor = source
        return tensor


def _is_convolution(layer: Layer, groups: int) -> bool:
    """Return whether a layer is a convolution in that many groups, with a bias, of a shape that the kernels take."""
    if layer.name not in ("CONV_2D", "DEPTHWISE_CONV_2D") or len(layer.constants) != 3:
        return False
    geometry, kernel = layer.geometry, layer.constants[1].shape[2:]
    is_square = kernel[0] == kernel[1] and geometry["stride"][0] == geometry["stride"][1]
    return geometry["groups"] == groups and is_square and geometry["dilation"] == (1, 1) and _activates_simply(layer)


def _activates_simply(layer: Layer) -> bool:
    return layer.activation in (None, torch.relu_)


def _is_one_by_one(layer: Layer) -> bool:
    geometry, kernel = layer.geometry, layer.constants[1].shape[2:]
    return tuple(kernel) == (1, 1) and geometry["stride"] == (1, 1) and not any(geometry["padding"])
