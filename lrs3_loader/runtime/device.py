"""Choice of this rank's device, and settings that make torch deterministic."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from lrs3_loader.errors import RunError
from lrs3_loader.runtime.memory import disable_malloc_trim


def pick_device(name: str) -> torch.device:
    """Return the named device, made current if it is a GPU.

    Args:
        name: a torch device; ``cuda`` is the GPU of this local rank, ``auto`` is that GPU, or the CPU without any.

    Raises:
        RunError: this machine has no such device.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank % max(torch.cuda.device_count(), 1)}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise RunError(f"--device {name} cannot be used here ({first_line}); try --device cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def free_gpu_bytes(device: torch.device) -> int:
    """Return this rank's share of a GPU's free memory; 0 for a CPU.

    More ranks than GPUs (``torchrun --nproc_per_node 4`` on two) share them as ``pick_device`` deals them out.
    """
    if device.type != "cuda":
        return 0
    num_ranks, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), max(torch.cuda.device_count(), 1)
    sharing = len(range(device.index or 0, num_ranks, num_gpus))
    return int(torch.cuda.mem_get_info(device)[0]) // max(sharing, 1)


def configure_torch(threads: int) -> None:
    """Make torch deterministic in this process: fixed thread count, no kernels chosen by timing, full float32.

    A run does this once: limited to a block of code, the settings would affect other threads while that runs.
    """
    disable_malloc_trim()
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def torch_configured(threads: int) -> Iterator[None]:
    """Make torch deterministic in the block, and set back what the program had; see ``configure_torch``."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    flags = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    configure_torch(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = flags
