"""A stand-in for a CUDA device, for machines without one: computes on the host, refuses what CUDA refuses, counts.

    with stand_in_device() as record:
        model.cuda()(x.cuda())
    print(len(record.kernels), len(record.waits))

``python -m benchmarks.stand_in SCRIPT ARGS`` runs a program on it.
"""

from benchmarks.stand_in.counting import KernelCounter
from benchmarks.stand_in.cuda import stand_in_device, why_not
from benchmarks.stand_in.record import Copy, Kernel, Record, Wait, most_common
from benchmarks.stand_in.tensor import hollow

__all__ = ["Copy", "Kernel", "KernelCounter", "Record", "Wait", "hollow", "most_common", "stand_in_device", "why_not"]
