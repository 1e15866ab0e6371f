"""Transfer of results from decode processes, in shared memory and without a copy."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch


def empty_shared(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Make an uninitialized tensor in shared memory, which other processes receive without a copy.

    Sharing an existing tensor would copy it first. torch's own collation allocates its batches in the same way.
    """
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(tuple(shape))


def to_shared_memory(item: Any) -> torch.Tensor:
    """Pickle an object into shared memory, with its tensors as handles, so that they are not copied.

    A pipe then has to carry only the handle of the result. That is less than ``PIPE_BUF`` bytes (4096), which are
    written whole or not at all even if the writer is killed; half a message would block its reader for ever.

    Returns:
        [n] u8.
    """
    data = np.frombuffer(ForkingPickler.dumps(item), dtype=np.uint8)
    packed = empty_shared(data.shape, torch.uint8)
    packed.numpy()[:] = data
    return packed


def from_shared_memory(packed: torch.Tensor) -> Any:
    """Unpickle an object that another process passed through ``to_shared_memory``.

    Raises:
        OSError, EOFError, RuntimeError: that process ended before its tensors were fetched.
    """
    return pickle.loads(packed.numpy().data)
