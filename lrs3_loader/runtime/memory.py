"""How this process keeps memory."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST = 1 << 30  # bytes
_LARGE = 2 << 20
_LARGEST_OLDER = 32 << 20  # what older versions of glibc accept


def keep_freed_memory() -> None:
    """Let the C library keep what is freed rather than hand it back to the system.

    Tensors come and go in the same few sizes. Handed back, each of more than 128 KiB is mapped and zeroed anew, page by
    page: a third of the time that small networks take on a CPU. Resident memory stays at its peak instead.
    Other C libraries than glibc are left as they are.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGEST) or _mallopt(_M_MMAP_THRESHOLD, _LARGEST_OLDER)
    _mallopt(_M_TRIM_THRESHOLD, _LARGEST)


@contextmanager
def as_usual() -> Iterator[None]:
    """Within: as glibc settles by itself, for measuring what does not know of this. Memory is kept again afterwards."""
    _mallopt(_M_MMAP_THRESHOLD, _LARGEST_OLDER)
    _mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_OLDER)
    try:
        yield
    finally:
        keep_freed_memory()


def hand_back_freed_memory() -> None:
    """Let the C library keep little of what is freed: for processes that decode, where it would pile up.

    All threads allocate from one arena (each with its own would keep its own leftovers), and large blocks never come
    from it: between small ones that live longer, freed pictures leave holes that the next do not fit.
    """
    _mallopt(_M_ARENA_MAX, 1)
    _mallopt(_M_MMAP_THRESHOLD, _LARGE)


def piecewise(function: Callable[[Any], Result], items: Sequence[Any] | torch.Tensor) -> list[Result]:
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
        "a batch of %d does not fit the device's memory: going on in halves (last bits may differ)", len(items)
    )
    middle = len(items) // 2
    return piecewise(function, items[:middle]) + piecewise(function, items[middle:])


def _mallopt(setting: int, value: int) -> bool:
    libc = ctypes.CDLL(None)
    return bool(hasattr(libc, "mallopt") and libc.mallopt(setting, value))
