"""The model against what is measured: on this machine's CPU with its own ceilings, and against published speeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models import resnet50

from benchmarks.inputs import Workbench
from benchmarks.machine import has_fast_bfloat16
from benchmarks.options import BenchOptions
from benchmarks.results import Figure, Remark
from benchmarks.roofline.cards import Card, Efficiency, price
from benchmarks.stand_in import KernelCounter
from lrs3_loader.face.geometry.topology import to_ibug68

NUM_FRAMES = {"cpu": 64}
#: ResNet-50 on an RTX PRO 6000 in float16, as published: pictures/s as written, and compiled (kernels joined).
PUBLISHED = Card("RTX PRO 6000", 1.79e12, 504e12, 252e12, 126e12, 1.97e12, 64e9, 96)
PUBLISHED_EAGER, PUBLISHED_COMPILED = 6_459, 12_188
BATCH = 128
_REPEATS = 5
_EXACT = Efficiency(1.0, 1.0, 0.0)  # of ceilings that were measured


def compare(options: BenchOptions, scratch: Path) -> Iterator[Figure | Remark]:
    """Yield, for each stage and for published speeds, how many times as fast the model is."""
    yield from published_figures()
    yield from cpu_figures(options, scratch)


def published_figures() -> Iterator[Figure]:
    """ResNet-50's kernels as PyTorch runs them; joined, products and pooling remain."""
    for name, known, joined in (("eager", PUBLISHED_EAGER, False), ("compiled", PUBLISHED_COMPILED, True)):
        rate = resnet_rate(PUBLISHED, joined)
        note = f"{rate:,.0f} modelled, {known:,} published pictures/s on an RTX PRO 6000"
        yield Figure("model / published", f"ResNet-50 {name}", rate / known, "x", note=note)


def resnet_rate(card: Card, joined: bool) -> float:
    """Modelled pictures/s of torchvision's ResNet-50 in float16; ``joined``: with nothing but products and pooling."""
    with torch.device("meta"):
        network = resnet50().half().eval().to(memory_format=torch.channels_last)
        pictures = torch.empty(BATCH, 3, 224, 224, dtype=torch.float16).to(memory_format=torch.channels_last)
    with torch.no_grad(), KernelCounter() as counter:
        network(pictures)
    kernels = [each for each in counter.kernels if not joined or each.is_product or "pool" in each.op]
    return BATCH / price(kernels, card).total_seconds


def cpu_figures(options: BenchOptions, scratch: Path) -> Iterator[Figure | Remark]:
    """Each stage on the CPU: processor time that it takes, over that of its kernels at the CPU's measured ceilings."""
    device = torch.device("cpu")
    bench = Workbench(dataclasses.replace(options, device="cpu"), device, scratch, NUM_FRAMES)
    card = cpu_card(side=256 if options.quick else 2048)
    for name, work in _stages(bench).items():
        with KernelCounter() as counter:
            work()
        modelled = price(counter.kernels, card, _EXACT)
        measured = min(_processor_seconds(work) for _ in range(options.repeats))
        note = f"{modelled.total_seconds:.2f} s modelled, {measured:.2f} s measured; bound by {modelled.bound_by}"
        yield Figure("model / measured", f"{name}, this CPU", measured / modelled.total_seconds, "x", note=note)
    yield Remark("a CPU's caches hold what the model takes from memory, so it can be faster than the model")


def cpu_card(side: int) -> Card:
    """This CPU's ceilings on one core, in processor time: square products of this side, and copies as large."""

    def product(dtype: torch.dtype) -> float:
        a = torch.randn(side, side).to(dtype)
        return 2 * side**3 / min(_processor_seconds(lambda: a @ a) for _ in range(_REPEATS))

    source = torch.ones(32 * side * side)
    target = torch.zeros_like(source)
    copying = min(_processor_seconds(lambda: target.copy_(source)) for _ in range(_REPEATS))
    memory = 2 * source.nbytes / copying  # a copy reads and writes
    single = product(torch.float32)
    half = product(torch.bfloat16) if has_fast_bfloat16(torch.device("cpu")) else single
    return Card("this CPU", memory, half, single, single, product(torch.float64), memory, 1)


def _processor_seconds(work: Callable[[], Any]) -> float:
    """Of this process, which has one thread: others on the machine do not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _stages(bench: Workbench) -> dict[str, Callable[[], Any]]:
    waveforms = [take.waveform for take in bench.takes]
    landmarks = bench.find_faces(bench.models.landmarker)
    spans = [(frames, to_ibug68(part.points)[..., :2]) for frames, part in zip(bench.frames, landmarks, strict=True)]
    assert bench.models.regressor is not None
    return {
        "landmarks": partial(bench.find_faces, bench.models.landmarker),
        "regression": partial(bench.models.regressor, spans),
        "mel": partial(bench.models.mel, waveforms),
        "HuBERT": partial(bench.models.speech, waveforms),
        "fit": partial(bench.models.fitter, bench.fit_inputs(landmarks)),
    }
