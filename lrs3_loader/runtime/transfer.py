"""Asynchronous copies between host and device.

On a CPU nothing is copied. On a GPU copies run in the order of the current stream, through pinned memory that PyTorch
caches; an ordinary copy would block the host until all work queued before it is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Start copying a host tensor to the device; work that is queued later sees the complete copy."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def join_on_device(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Concatenate float tensors of one device, and start copying them to another, as float32 and in one copy."""
    return to_device(torch.cat([tensor.to(torch.float32) for tensor in tensors]), device)


class HostCopy:
    """An asynchronous copy of a device tensor to the host. It starts when built; ``wait`` returns the result."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self) -> Tensor:
        """Wait for the copy and return the tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


def copy_to_host(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copy tensors of equal type, and of equal shape but for the first axis, to the host, in one copy.

    Args:
        dtype: to convert to (default: theirs).

    Returns:
        tensors that share no memory with one another, but with the given ones if these are on the host.
    """
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.to(dtype or tensor.dtype) for tensor in tensors]
    whole = torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
    parts = HostCopy(whole.to(dtype or whole.dtype)).wait().split([len(tensor) for tensor in tensors])
    return [part.clone() for part in parts]  # the pinned memory is used again
