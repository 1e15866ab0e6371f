"""Backward passes on the stand-in device. PyTorch's engine would ask the driver for its streams."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.stand_in.tensor import StandInTensor

Gradients = dict[Any, dict[int, Tensor]]  # by node of the graph, by number of its output in the forward pass


class BackwardEngine:
    """Walks the graph in Python, node by node; graphs of host tensors are left to PyTorch's own engine."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def run_backward(
        self,
        tensors: Sequence[Tensor],
        grad_tensors: Sequence[Tensor],
        keep_graph: bool,
        create_graph: bool,
        inputs: Sequence[Tensor] = (),
        **options: Any,
    ) -> Any:
        """Add the gradients to ``grad`` of every parameter that the tensors depend on."""
        if not any(isinstance(tensor, StandInTensor) for tensor in tensors):
            return self._own.run_backward(tensors, grad_tensors, keep_graph, create_graph, inputs, **options)
        if create_graph or inputs:
            raise NotImplementedError(
                "the stand-in device adds gradients to parameters; it differentiates no gradients"
            )
        gradients: Gradients = defaultdict(dict)
        for tensor, gradient in zip(tensors, grad_tensors, strict=True):
            _add(gradients, tensor.grad_fn, tensor.output_nr, gradient)
        with torch.no_grad():
            _walk(gradients)
        return ()


def _walk(gradients: Gradients) -> None:
    """Call each node once all that depend on it have been called."""
    missing = _num_dependents(list(gradients))
    ready = [node for node in gradients if not missing[node]]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):
            leaf, gradient = node.variable, given[0]
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
            continue
        found = node(*(given.get(number) for number in range(len(node._input_metadata))))
        found = found if isinstance(found, tuple) else (found,)
        for (following, number), gradient in zip(node.next_functions, found, strict=True):
            if following is None:
                continue
            if gradient is not None:
                _add(gradients, following, number, gradient)
            missing[following] -= 1
            if not missing[following]:
                ready.append(following)


def _num_dependents(roots: list[Any]) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    seen, waiting = set(roots), list(roots)
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is not None:
                counts[following] += 1
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
    return counts


def _add(gradients: Gradients, node: Any, number: int, gradient: Tensor) -> None:
    """Add to a node's gradient, in the shape and type of what it computed: what was broadcast is summed."""
    of = node.variable if hasattr(node, "variable") else node._input_metadata[number]
    gradient = gradient.sum_to_size(of.shape).to(of.dtype)
    known = gradients[node].get(number)
    gradients[node][number] = gradient if known is None else known + gradient
