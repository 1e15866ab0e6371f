"""Is the loader the bottleneck? Clips a second that it reads, beside those that a training step uses.

A step is timed on this machine's CPU, and priced for a GPU from the kernels that it launches on the stand-in device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.roofline.cards import Card, price
from benchmarks.stand_in import Kernel, stand_in_device, why_not
from benchmarks.stream import make_synthetic_run
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.runtime.memory import disable_malloc_trim
from lrs3_loader.stream.tasks import Item
from lrs3_loader.syncnet.objective import LipSync
from lrs3_loader.syncnet.settings import TrainConfig
from lrs3_loader.train.loop import Training
from lrs3_loader.train.objective import Objective
from lrs3_loader.train.settings import TrainLaunch

NUM_BATCHES = 6
DISPATCH_SECONDS = 10e-6  # of the host, for a kernel: what PyTorch's eager mode takes on a fast core, launch included


@dataclass(frozen=True)
class Size:
    """A corpus to train on, and the network for it."""

    name: str
    num_clips: int
    speech_width: int
    frames: tuple[int, int]  # shortest and longest clip


#: Clips of the demo, and of LRS3 (12 s on average in its largest part) with HuBERT-large.
SIZES = (Size("demo", 600, 128, (60, 90)), Size("real", 240, 1024, (75, 525)))


@dataclass(frozen=True)
class Modelled:
    """A step on a GPU that need not be here."""

    num_kernels: int
    milliseconds: float  # of the device
    clips_per_second: float
    bound_by: str


@dataclass(frozen=True)
class Pace:
    """Clips a second of a training: read by one process, and used by a step."""

    training: str
    size: str
    num_clips: float  # of a batch
    read: float  # clips/s of the loader in the process of the training, median of the passes
    read_range: tuple[float, float]
    step: float  # clips/s of a step on one thread of this machine
    gpu: Modelled | None  # None where the stand-in device cannot run


def measure(scratch: Path, passes: int, card: Card, share: float = 1.0) -> Iterator[Pace]:
    """Make a run of each size, and measure both trainings on it."""
    torch.set_num_threads(1)
    disable_malloc_trim()  # as ``train`` does
    for size in SIZES:
        num_clips = round(share * size.num_clips)
        run = make_synthetic_run(scratch / size.name, num_clips, 60, size.speech_width, size.frames)
        for name, objective in _objectives(run, size):
            out = scratch / f"{name}-{size.name}"
            yield _pace(name, size, objective, out, passes, card)


def _objectives(run: RunFolder, size: Size) -> Iterator[tuple[str, Objective[Any, Any]]]:
    yield "syncnet", LipSync(run, TrainConfig())


def _pace(name: str, size: Size, objective: Objective[Any, Any], out: Path, passes: int, card: Card) -> Pace:
    read = sorted(_read_rate(objective, epoch) for epoch in range(passes))
    batches = list(islice(objective.stream(0, 1), NUM_BATCHES))
    num_clips = sum(len(set(batch["keys"])) for batch in batches) / len(batches)
    seconds, kernels = _step_seconds(objective, out / "cpu", batches), None
    if not why_not():
        with stand_in_device(free_gib=card.memory_gib) as record:
            training = _training(objective, out / "stand-in", "cuda:0")
            training._step(batches[0])  # makes the state of the optimiser
            record.clear()
            training._step(batches[1])
            kernels = list(record.kernels)
    return Pace(
        name,
        size.name,
        num_clips,
        statistics.median(read),
        (read[0], read[-1]),
        num_clips / seconds,
        None if kernels is None else _modelled(kernels, num_clips, card),
    )


def _modelled(kernels: list[Kernel], num_clips: float, card: Card) -> Modelled:
    cost = price(kernels, card)
    host = DISPATCH_SECONDS * cost.num_kernels
    bound_by = "launches by the host" if host > cost.total_seconds else cost.bound_by
    return Modelled(cost.num_kernels, 1e3 * cost.total_seconds, num_clips / max(host, cost.total_seconds), bound_by)


def _training(objective: Objective[Any, Any], out: Path, device: str) -> Training[Any, Any]:
    return Training(objective, TrainLaunch(out, device=device), torch.device(device))


def _read_rate(objective: Objective[Any, Any], epoch: int) -> float:
    """Clips a second of one pass of the loader, in this process."""
    stream = objective.stream(0, 1)
    stream.set_epoch(epoch)
    started, num_clips = time.process_time(), 0
    for batch in DataLoader(stream, batch_size=None):
        num_clips += len(set(batch["keys"]))
    return num_clips / (time.process_time() - started)


def _step_seconds(objective: Objective[Any, Any], out: Path, batches: list[Item]) -> float:
    """Median seconds of a step on this thread."""
    training, seconds = _training(objective, out, "cpu"), []
    for batch in batches:
        started = time.process_time()
        training._step(batch)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def describe(found: Iterable[Pace], card: Card) -> Iterator[str]:
    """A table, line by line."""
    yield (
        f"clips/s; a GPU's step is a MODEL of a {card.name}: its roofline, or {1e6 * DISPATCH_SECONDS:.0f} us of the "
        "host for each kernel if that is longer"
    )
    titles = f"{'loader, one process':>28}{'step, CPU':>11}{'kernels':>9}{'ms, GPU':>9}{'step, GPU':>11}  readers"
    yield f"{'':<20}{'clips':>6}{titles}"
    for pace in found:
        spread = f"{pace.read:.0f} ({pace.read_range[0]:.0f} - {pace.read_range[1]:.0f})"
        line = f"{pace.training + ', ' + pace.size:<20}{pace.num_clips:>6.0f}{spread:>28}{pace.step:>11.1f}"
        if (gpu := pace.gpu) is not None:
            readers = math.ceil(gpu.clips_per_second / pace.read)
            line += (
                f"{gpu.num_kernels:>9}{gpu.milliseconds:>9.2f}{gpu.clips_per_second:>11.0f}  {readers} ({gpu.bound_by})"
            )
        yield line
