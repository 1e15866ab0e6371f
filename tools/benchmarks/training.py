"""Is the loader the bottleneck? Clips a second that it reads, beside those that a training step uses.

Both are timed by the processor's clock, so that they hold for a core of its own. A step is also priced for a GPU, from
the kernels that it launches on the stand-in device.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from benchmarks.roofline.cards import Card, price
from benchmarks.stand_in import Kernel, stand_in_device, why_not
from benchmarks.stream import make_synthetic_run
from lrs3_loader.audio2motion.objective import MotionTraining
from lrs3_loader.audio2motion.settings import Audio2MotionConfig
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

    name: Literal["demo", "real"]
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
    read: float  # clips of the loader in the process of the training, for each second of processor time
    worker: float  # the same of a DataLoader worker, which copies its batches into shared memory
    step: float  # clips of a step, for each second of one thread
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
    yield "audio2motion", MotionTraining(run, Audio2MotionConfig(size=size.name))


def _pace(name: str, size: Size, objective: Objective[Any, Any], out: Path, passes: int, card: Card) -> Pace:
    read, worker = (_read_rate(objective, passes, num_workers) for num_workers in (0, 1))
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
    gpu = None if kernels is None else _modelled(kernels, num_clips, card)
    return Pace(name, size.name, num_clips, read, worker, num_clips / seconds, gpu)


def _modelled(kernels: list[Kernel], num_clips: float, card: Card) -> Modelled:
    cost = price(kernels, card)
    host = DISPATCH_SECONDS * cost.num_kernels
    bound_by = "launches by the host" if host > cost.total_seconds else cost.bound_by
    return Modelled(cost.num_kernels, 1e3 * cost.total_seconds, num_clips / max(host, cost.total_seconds), bound_by)


def _training(objective: Objective[Any, Any], out: Path, device: str) -> Training[Any, Any]:
    return Training(objective, TrainLaunch(out, device=device), torch.device(device))


def _read_rate(objective: Objective[Any, Any], passes: int, num_workers: int) -> float:
    """Clips that this process, or its workers, read in a second of processor time: the median of the passes."""
    stream, rates = objective.stream(0, 1), []
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0)
    for epoch in range(passes):
        stream.set_epoch(epoch)
        batches = iter(loader)
        processes = [child.pid for child in active_children() if child.pid] if num_workers else [os.getpid()]
        next(batches)  # workers start meanwhile
        started = _processor_seconds(processes)
        num_clips = sum(len(set(batch["keys"])) for batch in batches)
        rates.append(num_clips / (_processor_seconds(processes) - started))
    return statistics.median(rates)


def _processor_seconds(processes: list[int]) -> float:
    tasks = (path for process in processes for path in Path(f"/proc/{process}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


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
    titles = ("clips", "loader", "worker", "step, CPU", "kernels", "ms, GPU", "step, GPU")
    yield f"{'':<20}" + "".join(f"{title:>11}" for title in titles) + "  workers"
    for pace in found:
        numbers = [f"{pace.num_clips:.0f}", f"{pace.read:.0f}", f"{pace.worker:.0f}", f"{pace.step:.1f}"]
        needed = ""
        if (gpu := pace.gpu) is not None:
            numbers += [str(gpu.num_kernels), f"{gpu.milliseconds:.2f}", f"{gpu.clips_per_second:.0f}"]
            needed = f"  {math.ceil(gpu.clips_per_second / pace.worker)} ({gpu.bound_by})"
        yield f"{pace.training + ', ' + pace.size:<20}" + "".join(f"{number:>11}" for number in numbers) + needed
