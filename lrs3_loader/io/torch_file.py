"""Reading what ``torch.save`` wrote: plain values and tensors only, whatever the file holds."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

#: torch's restricted unpickler raises whatever the instructions of a damaged file run into.
_DAMAGE = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def load_plain(path: Path) -> Any:
    """The contents of a file, tensors on the CPU. Nothing in it is executed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no such file; the message is one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        lines = str(error).strip().splitlines()
        raise ValueError(lines[0] if lines else type(error).__name__) from error
