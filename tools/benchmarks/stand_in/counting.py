"""Counts what a program computes on host tensors, or on tensors of the ``meta`` device, which have shapes alone."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.stand_in import rules
from benchmarks.stand_in.record import Kernel, place_of_caller
from benchmarks.stand_in.tensor import tensors_of


class KernelCounter(TorchDispatchMode):
    """Within the block, every operation of this thread adds a kernel to ``kernels``, as it would be on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode, operations that consist of others arrive whole
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if func.overloadpacket.__name__ not in rules.NO_KERNEL:
            inputs, outputs = list(tensors_of(args, kwargs)), list(tensors_of((result,), {}))
            self.kernels.append(rules.kernel_of(func, args, kwargs, inputs, outputs, place_of_caller()))
        return result
