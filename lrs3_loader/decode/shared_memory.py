"""How results cross from decode processes: in shared memory, without a copy."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch


def empty_shared(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A new tensor, not filled, that other processes are handed without a copy.

    Sharing what is there already would copy it first. torch's own collation of batches makes its results like this.
    """
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(tuple(shape))


def to_shared_memory(item: Any) -> torch.Tensor:
    """Anything that may be pickled, as bytes in shared memory; tensors in it cross by handle, without a copy.

    The handle of the result is all that a pipe has to carry then: less than the ``PIPE_BUF`` bytes (4096) that are
    written whole or not at all, even if the writer is killed meanwhile. Half a message would block its reader for ever.
    """
    data = np.frombuffer(ForkingPickler.dumps(item), dtype=np.uint8)
    packed = empty_shared(data.shape, torch.uint8)
    packed.numpy()[:] = data
    return packed


def from_shared_memory(packed: torch.Tensor) -> Any:
    """What another process has packed.

    Raises:
        OSError, EOFError, RuntimeError: that process has gone, and tensors were still to be fetched from it.
    """
    return pickle.loads(packed.numpy().data)
