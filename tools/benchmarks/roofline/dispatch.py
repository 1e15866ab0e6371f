"""How long the host takes to ask for a kernel: Python, and PyTorch's way from there to the kernel."""

from __future__ import annotations

import time

import torch

from benchmarks.stand_in import KernelCounter
from lrs3_loader.face.deep3d.align import CROP_SIZE
from lrs3_loader.face.deep3d.regressor import Deep3DFiles, Deep3DNetwork

_REPEATS = 10


@torch.inference_mode()
def dispatch_seconds(files: Deep3DFiles) -> float:
    """Seconds for each kernel on this machine: those of ResNet-50, on the CPU, in a batch of no pictures.

    All is done but the arithmetic. What CUDA's driver adds for a launch, some microseconds, is not in it.
    """
    network = Deep3DNetwork(files.weights)
    nothing = torch.zeros(0, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8)
    with KernelCounter() as counter:
        network(nothing)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        network(nothing)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(counter.kernels)
