"""Settings of the C library's allocator, and recovery from a device that is out of memory."""

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
    """Make glibc's malloc keep freed memory instead of returning it to the system. Other C libraries are unaffected.

    Tensors of the same few sizes are allocated again and again. By default every block over 128 KiB would be mapped
    and zeroed again, page by page, which takes a third of the time of small networks on a CPU. The price is that
    resident memory stays at its peak.
    """
    mallopt(M_MMAP_THRESHOLD, _LARGEST) or mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD_OLDER)
    mallopt(M_TRIM_THRESHOLD, _LARGEST)


def limit_malloc_cache() -> None:
    """Make glibc's malloc keep little freed memory: for decode processes, where it would accumulate.

    All threads share one arena, and blocks over 2 MiB are mapped separately: otherwise freed frames leave holes
    between small blocks that live longer, which the next frames do not fit.
    """
    mallopt(_M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, _LARGE)


def split_on_oom(function: Callable[[Any], Result], items: Sequence[Any] | torch.Tensor) -> list[Result]:
    """Call ``function`` on a batch; if the device runs out of memory, on its halves, recursively.

    Batch sizes fit the memory that was free when the run began. Another process may have taken it since.

    Returns:
        The results of all parts, in order: ``[function(items)]`` if the batch was not split.

    Raises:
        torch.OutOfMemoryError: there is not enough memory for a single item.
    """
    try:
        return [function(items)]
    except torch.OutOfMemoryError:
        if len(items) < 2:
            raise
    # Outside of the except block, since the exception keeps the tensors alive that did not fit.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("out of memory: splitting the batch of %d (last bits of the results may differ)", len(items))
    middle = len(items) // 2
    return split_on_oom(function, items[:middle]) + split_on_oom(function, items[middle:])


def mallopt(setting: int, value: int) -> bool:
    """Set a parameter of glibc's malloc. Returns whether it was accepted."""
    libc = ctypes.CDLL(None)
    return bool(hasattr(libc, "mallopt") and libc.mallopt(setting, value))
