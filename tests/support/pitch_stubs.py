"""Stand-ins for the computation of F0 that run in decode workers, and happen to them.

A module of its own, with few imports: every worker loads it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from lrs3_loader.decode import shared_memory

HANGS, HANGS_WITH_LOCK, CRASHES, RAISES, SLOW = 31, 32, 33, 34, 35  # numbers of frames that make `tricky_pitch` act


def flat_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    assert len(waveform) == 320 * num_rows
    return np.full(num_rows, 100.0, dtype=np.float32), num_rows - 1


def no_memory(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Fail as Python does, whose own error says nothing."""
    raise MemoryError


def tricky_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Runs in the workers, so what it does happens to them."""
    match num_rows // 2:
        case 31:
            time.sleep(1_000)
        case 32:
            ctypes.PyDLL(None).sleep(1_000)  # holds the interpreter lock
        case 33:
            os.kill(os.getpid(), signal.SIGKILL)
        case 34:
            raise KeyError("a bug")
        case 35:
            time.sleep(1.0)
    return flat_pitch(waveform, num_rows)


def crash_once(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Dies the first time it sees 33 frames, and leaves a note."""
    note = Path(os.environ["TEST_CRASH_NOTE"])
    if num_rows // 2 == CRASHES and not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return flat_pitch(waveform, num_rows)


def scarce_pitch(free_bytes: int, waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Leaves its worker no more memory than that."""
    shared_memory.available_bytes = lambda: free_bytes
    return flat_pitch(waveform, num_rows)
