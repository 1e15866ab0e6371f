"""How this process keeps and shares memory."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST = 1 << 30  # bytes
_LARGEST_OLDER = 32 << 20  # what older versions of glibc accept


def keep_freed_memory() -> None:
    """Let the C library keep what is freed rather than hand it back to the system.

    Tensors come and go in the same few sizes. Handed back, each of more than 128 KiB is mapped and zeroed anew, page by
    page: a third of the time that small networks take on a CPU. Resident memory stays at its peak instead.
    Other C libraries than glibc are left as they are.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGEST) or _mallopt(_M_MMAP_THRESHOLD, _LARGEST_OLDER)
    _mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def share_one_arena() -> None:
    """Have all threads allocate from one arena: each with its own would keep its own leftovers of what was freed."""
    _mallopt(_M_ARENA_MAX, 1)


def _mallopt(setting: int, value: int) -> bool:
    libc = ctypes.CDLL(None)
    return bool(hasattr(libc, "mallopt") and libc.mallopt(setting, value))
