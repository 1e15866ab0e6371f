"""Lets convolutions add to a shortcut, and apply the ReLU behind them, as they write their result.

As layers of their own, sums and activations read and write every value again; in networks of few channels that takes
as long as the convolutions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lrs3_loader.face.landmarks.convolve import convolve
from lrs3_loader.face.landmarks.steps import LayerStep, Step, StepGraph, note_unused, single_step
from lrs3_loader.face.landmarks.tflite_ops import Layer

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
#: Layers whose results share memory with what they read.
_VIEWS = {"RESHAPE", "STRIDED_SLICE", "TRANSPOSE"}


def fuse_sums(steps: Sequence[LayerStep], shapes: Mapping[int, tuple[int, ...]], results: Sequence[int]) -> list[Step]:
    """Return steps that compute the same tensors in fewer passes.

    Args:
        steps: the network, in an order in which it can run.
        shapes: of each tensor, without the batch axis.
        results: tensors that the network returns.
    """
    graph = StepGraph(steps, results)
    taken = set[int]()
    made: dict[int, Step] = {}  # by the position of the last layer in it

    def fuse(convolution: int, last: int, shortcut: tuple[int, ...] = ()) -> None:
        relu = _relu_behind(graph, last)
        if shortcut or relu is not None:
            end = last if relu is None else relu
            taken.update({convolution, last, end})
            layer, (source, *_), _ = steps[convolution]
            made[end] = Step(_compute(layer, relu=relu is not None), (source, *shortcut), (steps[end][2],))

    for position in range(len(steps)):
        for convolution, shortcut in _sums_at(graph, position, shapes):
            if convolution not in taken and position not in taken:
                fuse(convolution, position, (shortcut,))
    for position in range(len(steps)):
        if position not in taken and _is_plain_convolution(graph, position):
            fuse(position, position)
    made |= {position: single_step(step) for position, step in enumerate(steps) if position not in taken}
    return note_unused([made[position] for position in sorted(made)], results)


def _sums_at(graph: StepGraph, position: int, shapes: Mapping[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return the convolutions whose result is added here to a tensor that may be overwritten, and that tensor."""
    layer, reads, _ = graph.steps[position]
    if not layer.is_sum or layer.activation is not None or len(set(reads)) != 2:
        return []
    found = []
    for tensor, shortcut in (reads, reads[::-1]):
        convolution = graph.maker.get(tensor)
        if (
            convolution is not None
            and graph.sole_reader(tensor) == position
            and _is_plain_convolution(graph, convolution)
            and shapes[tensor] == shapes[shortcut]
            and shortcut not in graph.steps[convolution][1]
            and _may_be_overwritten(graph, shortcut, position)
        ):
            found.append((convolution, shortcut))
    return found


def _is_plain_convolution(graph: StepGraph, position: int) -> bool:
    layer = graph.steps[position][0]
    return layer.name in _CONVOLUTIONS and layer.activation is None


def _may_be_overwritten(graph: StepGraph, tensor: int, position: int) -> bool:
    """Return whether a tensor shares memory with no other and nothing needs it after the layer at this position."""
    if tensor not in graph.maker or tensor in graph.results or graph.readers[tensor][-1] != position:
        return False
    names = {graph.name(layer) for layer in (graph.maker[tensor], *graph.readers[tensor])}
    return names.isdisjoint(_VIEWS)


def _relu_behind(graph: StepGraph, position: int) -> int | None:
    """Return the position of the ReLU that alone reads the result of a layer."""
    reader = graph.sole_reader(graph.steps[position][2])
    return reader if reader is not None and graph.name(reader) == "RELU" else None


def _compute(layer: Layer, relu: bool) -> Callable[..., Sequence[Tensor]]:
    """Return the function of a tensor, and of the shortcut, if there is one, that the convolution is added to."""
    return lambda x, total=None: [convolve(x, *_weights(layer), total, relu=relu, **layer.geometry)]


def _weights(layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias as they are now: they may have moved to another device."""
    weight, *bias = layer.constants[1:]
    return weight, bias[0] if bias else None
