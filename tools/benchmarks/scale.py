"""How cost grows with the number of clips: time and memory of whole runs on 1, 4 and 16 times the same clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.e2e import extract_options, pinned_to_ranks
from benchmarks.extraction import Extraction, ExtractRunner, link_copies
from benchmarks.inputs import generate_clips
from benchmarks.options import BenchOptions
from benchmarks.results import Bound, Figure, Remark

NUM_CLIPS = 6
FACTORS = (1, 4, 16)
TIME_BOUND = 16.5 / 16  # times the growth of the clips
MEMORY_BOUND = Bound(1.1, at_most=True)  # 16x the clips against 4x: a run of 1x has not filled its buffers yet
SHARD_CLIPS = 3


def measure(
    options: BenchOptions,
    device: torch.device,
    scratch: Path,
    script: Path,
    factors: Sequence[int] = FACTORS,
    runner: ExtractRunner | None = None,
) -> Iterator[Figure | Remark]:
    """One rank, small shards, the small speech encoder: what is looked at is the growth, not the speed.

    Raises:
        ValueError: not two different factors, or ``options.clips``, which cannot be linked under other names.
    """
    if len(set(factors)) < 2 or min(factors) < 1:
        raise ValueError(f"scale needs two different factors of at least 1, got {list(factors)}")
    if options.clips is not None:
        raise ValueError("scale makes its own clips; leave --clips away")
    base = generate_clips(scratch / "clips", options.quick, NUM_CLIPS)
    on_gpu = device.type == "cuda"
    if runner is None:
        runner = ExtractRunner(script, extract_options(options, device, scratch, full=False), options.threads, on_gpu)
    yield Remark("clips are hard links of the same few rendered files; small speech encoder, no regression, one rank")
    runs: dict[int, Extraction] = {}
    for factor in sorted(set(factors)):
        corpus = link_copies(base, scratch / f"clips-{factor}", factor)
        with pinned_to_ranks(options.threads, device):
            shards = ["--shard-clips", str(SHARD_CLIPS), "--workers", "1"]
            runs[factor] = runner.run(corpus, scratch / f"run-{factor}", 1, shards)
        yield from _describe(runs[factor], f"{factor}x")
    yield from _growth(runs)


def _describe(run: Extraction, group: str) -> Iterator[Figure]:
    yield Figure(
        group, "time", run.seconds, "s", note=f"{run.num_frames} frames, {run.usage.seconds:.1f} s with start-up"
    )
    yield Figure(group, "speed", run.frames_per_second, "frames/s")
    for role in ("ranks", "decode workers"):
        yield Figure(group, f"memory, {role}", run.usage.peak_mib(role), "MiB", note="largest process, resident")


def _growth(runs: dict[int, Extraction]) -> Iterator[Figure]:
    """The largest against the smallest in time; against the middle one in memory."""
    factors = list(runs)
    first, last = factors[0], factors[-1]
    growth = last / first
    ratio = runs[last].seconds / runs[first].seconds
    bound = Bound(growth * TIME_BOUND, at_most=True)
    yield Figure("growth", f"time, {last}x / {first}x", ratio, "x", bound=bound)
    middle = factors[-2]
    for role in ("ranks", "decode workers"):
        sizes = [runs[factor].usage.peak_mib(role) for factor in (last, middle)]
        name = f"{role}, {last}x / {middle}x"
        yield Figure("growth", name, sizes[0] / max(sizes[1], 1e-9), "x", bound=MEMORY_BOUND, note="memory")
