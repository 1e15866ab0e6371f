"""Floating-point TensorFlow Lite networks, read from their files and run as batched PyTorch modules.

Tensors keep TensorFlow's order N H W C. Convolutions take a permuted view of them, PyTorch's ``channels_last``, without
a copy. float16 weights behind DEQUANTIZE are converted to float32 once, at load. The file states a batch of 1; here
axis 0 of every tensor is a batch of any size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lrs3_loader.face.landmarks.fusion import JoinedConvolution, join_layers
from lrs3_loader.face.landmarks.steps import LayerStep, Step, run_steps
from lrs3_loader.face.landmarks.sums import fuse_sums
from lrs3_loader.face.landmarks.tflite_graph import Graph, read_graph
from lrs3_loader.face.landmarks.tflite_ops import build_layer, drops_batch
from lrs3_loader.runtime.memory import split_on_oom

MIN_SLICE, MAX_SLICE, SLICE_BYTES = 4, 32, 4 << 20
"""On a CPU a batch is run in slices, whose tensors are kept small for the cache: the smaller an item's tensors, the
more items a slice has, since each call of a small layer costs more than its arithmetic. As long as batches are
multiples of the largest slice, an item's result does not depend on the batch size."""


class TFLiteModule(nn.Module):
    """A ``.tflite`` network. Its weights are buffers; nothing is trainable.

    Args:
        data: the bytes of the file. Damaged weights cannot be recognised here: compare the file's hash.
        divisor, offset: the network is given ``x / divisor - offset``.

    Raises:
        ValueError: the file is damaged, or has an operator that is not supported (the message names it).
    """

    def __init__(self, data: bytes, divisor: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.divisor, self.offset = divisor, offset
        graph = read_graph(data)
        if len(graph.inputs) != 1 or len(graph.tensors[graph.inputs[0]].shape) < 2:
            raise ValueError(f"a network with one batched input is expected, this one has {len(graph.inputs)}")
        self._source = graph.inputs[0]
        self._results = graph.outputs
        self.input_shape: tuple[int, ...] = graph.tensors[self._source].shape[1:]
        self._shapes = {self._source: self.input_shape}  # of each computed tensor, without the batch axis
        self._layer_steps = self._build(graph)
        self.layers = nn.ModuleList(layer for layer, *_ in self._layer_steps)
        self._check_shapes()
        self._steps = fuse_sums(self._layer_steps, self._shapes, self._results)
        self._stages = self._split()
        self._joined: list[Step] | None = None
        self._normalizes_itself = False  # the first of the joined steps divides and shifts the input

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each output without the batch axis."""
        return tuple(self._shapes[i] for i in self._results)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the network on f32 [N, *input_shape]; returns f32 [N, *shape] for each of ``output_shapes``."""
        if tuple(x.shape[1:]) != self.input_shape or len(x) == 0:
            raise ValueError(f"input must be [N, {', '.join(map(str, self.input_shape))}], got {list(x.shape)}")
        if x.device.type != "cpu" or self._joined is not None:
            steps = self._steps if self._joined is None else self._joined
            parts = split_on_oom(lambda part: self._outputs(self._run(steps, {self._source: part})), x)
            return parts[0] if len(parts) == 1 else tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
        values = {self._source: x}
        for steps, num_items in self._stages:
            pieces = [
                self._run(steps, {i: tensor[start : start + num_items] for i, tensor in values.items()})
                for start in range(0, len(x), num_items)
            ]
            values = (
                pieces[0] if len(pieces) == 1 else {i: torch.cat([piece[i] for piece in pieces]) for i in pieces[0]}
            )
        return self._outputs(values)

    def use_joined_layers(self, wanted: bool) -> None:
        """Run the network by the operators of ``lrs3_loader.kernels``, or layer by layer, as it does at first.

        Call this once the module is on its device.
        """
        self._joined = join_layers(self._layer_steps, self._shapes, self._results) if wanted else None
        readers = [step.compute for step in self._joined or () if self._source in step.reads]
        stems = [reader for reader in readers if isinstance(reader, JoinedConvolution)]
        self._normalizes_itself = len(stems) == len(readers)
        for stem in stems if self._normalizes_itself else ():
            stem.divisor, stem.offset = self.divisor, self.offset

    def _run(self, steps: Sequence[Step], values: dict[int, Tensor]) -> dict[int, Tensor]:
        """Run steps of the network; its input, if it is among ``values``, is that of ``forward``."""
        if self._source in values and not (steps is self._joined and self._normalizes_itself):
            values[self._source] = self._normalized(values[self._source])
        return run_steps(steps, values)

    def _normalized(self, x: Tensor) -> Tensor:
        if self.divisor == 1 and self.offset == 0:
            return x.float()
        y = x.to(torch.float32, copy=True).div_(self.divisor)
        return y if self.offset == 0 else y.sub_(self.offset)

    def _outputs(self, values: dict[int, Tensor]) -> tuple[Tensor, ...]:
        return tuple(values[i] for i in self._results)

    def _build(self, graph: Graph) -> list[LayerStep]:
        constants = {i: tensor.data for i, tensor in enumerate(graph.tensors) if tensor.data is not None}
        final = set[int]()  # tensors that can be outputs only
        built: list[LayerStep] = []
        for op in graph.operators:
            if op.name == "DEQUANTIZE" and len(op.inputs) == 1 and op.inputs[0] in constants:
                constants.update(dict.fromkeys(op.outputs, constants[op.inputs[0]].astype(np.float32)))
                continue
            layer = build_layer(op, graph, constants)
            reads = tuple(i for i in op.inputs if i >= 0 and i not in constants)
            write = op.outputs[0]
            if not reads or not final.isdisjoint(reads) or any(i not in self._shapes for i in reads):
                raise ValueError(f"damaged model file: {op.name} reads tensors {reads} that nothing has written")
            if write in constants or write in self._shapes:
                raise ValueError(f"damaged model file: {op.name} writes tensor {write} a second time")
            shape = graph.tensors[write].shape
            if drops_batch(op):
                final.add(write)
            else:
                shape = shape[1:]
            self._shapes[write] = shape
            built.append((layer, reads, write))
        if any(i not in self._shapes for i in self._results):
            raise ValueError("damaged model file: an output is never written")
        return built

    def _split(self) -> list[tuple[list[Step], int]]:
        """Group the layers into stages with a slice size each, as large as the largest following tensor allows."""
        sizes: list[int] = []
        largest = 0
        for step in reversed(self._steps):
            largest = max(largest, *(4 * math.prod(self._shapes[i]) for i in (*step.reads, *step.writes)))
            fitting = 1 << max(SLICE_BYTES // largest, 1).bit_length() - 1
            sizes.insert(0, min(max(fitting, MIN_SLICE), MAX_SLICE))
        grouped = itertools.groupby(zip(sizes, self._steps, strict=True), key=lambda pair: pair[0])
        return [([step for _, step in group], size) for size, group in grouped]

    def _check_shapes(self) -> None:
        """Check on an empty batch, at no cost, that every tensor has the shape that the file states."""
        values = {self._source: torch.empty(0, *self.input_shape)}
        for layer, reads, write in self._layer_steps:
            try:
                values[write] = layer(*[values[i] for i in reads])
            except (RuntimeError, IndexError) as problem:
                raise ValueError(f"damaged model file: tensor {write} cannot be computed: {problem}") from problem
            got, stated = tuple(values[write].shape), (0, *self._shapes[write])
            if got != stated:
                raise ValueError(f"damaged model file: tensor {write} has shape {got}, the file states {stated}")
