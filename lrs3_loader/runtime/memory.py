"""How this process keeps memory."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST = 1 << 30  # bytes
_LARGE = 2 << 20
LARGEST_THRESHOLD_OLDER = 32 << 20  # what older versions of glibc accept


def disable_malloc_trim() -> None:
    """Let the C library keep what is freed rather than hand it back to the system.

    Tensors come and go in the same few sizes. Handed back, each of more than 128 KiB is mapped and zeroed anew, page by
    page: a third of the time that small networks take on a CPU. Resident memory stays at its peak instead.
    Other C libraries than glibc are left as they are.
    """
    mallopt(M_MMAP_THRESHOLD, _LARGEST) or mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD_OLDER)
    mallopt(M_TRIM_THRESHOLD, _LARGEST)


def limit_malloc_cache() -> None:
    """Let the C library keep little of what is freed: for processes that decode, where it would pile up.

    All threads allocate from one arena (each with its own would keep its own leftovers), and large blocks never come
    from it: between small ones that live longer, freed pictures leave holes that the next do not fit.
    """
    mallopt(_M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, _LARGE)


def split_on_oom(function: Callable[[Any], Result], items: Sequence[Any] | torch.Tensor) -> list[Result]:
    """``[function(items)]``; where the device's memory does not suffice, the results of two halves, and so on.

    Batches are chosen to fit what was free when the run began: this is for when somebody else has taken it meanwhile.

    Raises:
        torch.OutOfMemoryError: there is not even enough for one item.
    """
    try:
        return [function(items)]
    except torch.OutOfMemoryError:
        if len(items) < 2:
            raise
    # Not within the except: what was raised holds on to the tensors that did not fit.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "a batch of %d does not fit the device's memory: splitting the batch (last bits may differ)", len(items)
    )
    middle = len(items) // 2
    return split_on_oom(function, items[:middle]) + split_on_oom(function, items[middle:])


def mallopt(setting: int, value: int) -> bool:
    libc = ctypes.CDLL(None)
    return bool(hasattr(libc, "mallopt") and libc.mallopt(setting, value))
