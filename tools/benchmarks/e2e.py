"""Whole runs on clips on disk: cold and warm, on one rank and more, and what kept each of them busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from benchmarks.deep3d_files import make_deep3d
from benchmarks.extraction import Extraction, ExtractRunner, forget
from benchmarks.extrapolate import lrs3_remark
from benchmarks.inputs import (
    RANDOM_WEIGHTS,
    SPEECH_FOLDER,
    generate_clips,
    local_root,
    make_speech_encoder,
    network_dtype,
)
from benchmarks.options import BenchOptions
from benchmarks.results import Bound, Figure, Remark
from benchmarks.timing import pinned
from lrs3_loader.assets.locate import Assets
from lrs3_loader.corpus.scan import scan_corpus

NUM_CLIPS = 12
TWO_RANKS = Bound(1.8)  # times one rank on one core
ROLES = ("ranks", "decode workers", "launcher", "other")


def measure(
    options: BenchOptions, device: torch.device, scratch: Path, script: Path, max_ranks: int | None, full: bool
) -> Iterator[Figure | Remark]:
    """Runs on 1, 2, 4 ... ``max_ranks`` ranks (as many as there are cores or GPUs when None), each on as many cores.

    full: with HuBERT-large and the Deep3D network; else with the small speech encoder and without regression.
    """
    generated = scratch / "clips"
    corpus = options.corpus(generated if options.clips else generate_clips(generated, options.quick, NUM_CLIPS))
    clips = options.clips or generated
    paths = [local_root(corpus) / clip.video_path for clip in scan_corpus(corpus)]
    runner = ExtractRunner(script, extract_options(options, device, scratch, full), options.threads, _on_gpu(device))
    if full:
        yield Remark(RANDOM_WEIGHTS)
    yield Remark(f"{len(paths)} clips, {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB; the command of each:")
    yield Remark(" ".join(runner.command(clips, Path("OUT"), 1)))
    single: float | None = None
    for ranks in rank_counts(device, max_ranks, options.threads):
        seconds: list[float] = []
        for number in range(1 if options.quick else options.repeats + 1):
            cold = number == 0
            if cold:
                forget(paths)
            with pinned_to_ranks(ranks * options.threads, device):
                out = scratch / f"run-{ranks}-{number}"
                run = runner.run(clips, out, ranks, shard_options(len(paths), ranks))
            yield from describe_run(
                run, f"{ranks} rank{'s' * (ranks > 1)}", "cold" if cold else f"warm {number}", ranks
            )
            if not cold or options.quick:
                seconds.append(run.seconds)
        rate = run.num_frames / min(seconds)
        if single is not None:
            bound = TWO_RANKS if ranks == 2 else None
            yield Figure("ranks", f"{ranks} ranks / one", rate / single, "x", bound=bound, note="fastest warm runs")
        single = single or rate
        unit = "GPU(s)" if device.type == "cuda" else f"rank(s) of {options.threads} core(s)"
        yield lrs3_remark(rate, ranks, unit, "ranks of other machines add up (they share nothing but storage)")


def extract_options(options: BenchOptions, device: torch.device, scratch: Path, full: bool) -> list[str]:
    """Of extract.py, the same for all runs."""
    assets = ["--assets", str(options.assets)] if options.assets else []
    face_model = "ict" if Assets(options.assets).has_ict() and not options.quick else "demo"
    given = ["--device", device.type, "--threads", str(options.threads), "--face-model", face_model, *assets]
    if not full:
        return [*given, "--hubert", "demo"]
    speech = make_speech_encoder(scratch / SPEECH_FOLDER, options.quick)
    dtype = network_dtype(options, device)
    precision = ["--hubert-dtype", dtype, "--deep3d-dtype", dtype]
    return [*given, *precision, "--hubert", str(speech), "--deep3d", str(make_deep3d(scratch / "deep3d"))]


def shard_options(num_clips: int, ranks: int) -> list[str]:
    """Several shards a rank, so that ranks end at about the same time, and one worker a rank."""
    return ["--shard-clips", str(max(1, num_clips // (6 * ranks))), "--workers", "1"]


def rank_counts(device: torch.device, max_ranks: int | None, threads: int) -> list[int]:
    """1, 2, 4, ... up to what there is, and that itself.

    Raises:
        ValueError: more ranks than cores (or GPUs).
    """
    cores = len(os.sched_getaffinity(0)) // threads
    available = torch.cuda.device_count() if device.type == "cuda" else cores
    most = available if max_ranks is None else max_ranks
    if not 1 <= most <= available:
        raise ValueError(f"ranks must lie in 1..{available} on this machine, got {most}")
    counts = [1]
    while 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    return counts if counts[-1] == most else [*counts, most]


def pinned_to_ranks(num_cores: int, device: torch.device) -> AbstractContextManager[list[int]]:
    """On a CPU a core for each thread of each rank, its decode worker included; on GPUs all cores."""
    return pinned(len(os.sched_getaffinity(0)) if device.type == "cuda" else num_cores)


def describe_run(run: Extraction, group: str, name: str, ranks: int) -> Iterator[Figure | Remark]:
    """Its speed, and the time each resource was busy."""
    usage = run.usage
    yield Figure(
        group, name, run.frames_per_second, "frames/s", note=f"{run.num_frames} frames, {run.num_rejects} rejects"
    )
    yield Figure(group, "  seconds", run.seconds, "s", note=f"{usage.seconds:.1f} s with start-up and models")
    cpu = {role: usage.cpu_seconds(role) for role in ROLES}
    parts = [f"{role} {seconds:.1f}" for role, seconds in cpu.items() if seconds >= 0.05]
    yield Figure(group, "  processor busy", sum(cpu.values()), "s", note=f"start-up included: {', '.join(parts)}")
    stages = sorted(run.stage_seconds.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages)
    yield Figure(group, "  stages", sum(run.stage_seconds.values()), "s", note=f"over {ranks} rank(s): {listed}")
    if usage.gpu_seconds is not None:
        yield Figure(group, "  GPU busy", usage.gpu_seconds, "s", note=f"peak {usage.gpu_peak_mib:.0f} MiB")
    yield Figure(group, "  disk", usage.read_mb, "MB read", note=f"{usage.written_mb:.0f} MB written")
    yield Figure(group, "  memory", usage.peak_mib("ranks"), "MiB", note="largest rank, resident")


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
