"""What the ranks of a training do together. Unlike an extraction, they wait for one another at each step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Initialise ``torch.distributed`` if torchrun has started this process and it is not initialised yet.

    A process does this once: a second group would find the addresses of the first one in the store of torchrun, and
    its first collective would wait for ever.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks: (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(mine: Sequence[Result]) -> list[Result]:
    """Return the entries of all ranks, those of rank 0 first; every rank gets them. They must be picklable."""
    parts: list[Any] = [mine]
    if dist.is_initialized():
        parts *= dist.get_world_size()
        dist.all_gather_object(parts, mine)
    return [entry for part in parts for entry in part]


def wait_for_all() -> None:
    """Return once all ranks have come here, so that what rank 0 has written is there."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values
