"""Streams a run in several processes while its shards are published again and again.

Each reader passes over the run in epochs, opening it anew now and then. Every epoch has to give exactly the samples of
the run, and every sample has to be whole: all of its arrays are of one publication.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import Clip, ClipFeatures, Shard

NUM_SHARDS = 8
CLIPS_PER_SHARD = 12
NUM_FRAMES = 10
_MAX_LISTED = 20


class Report(NamedTuple):
    """What one reader did and found."""

    num_epochs: int
    num_samples: int
    num_changes: int  # samples that were of another publication than in the epoch before
    problems: list[str]


def features(clip: Clip, publication: int) -> ClipFeatures:
    """Make features in which every array tells the publication."""
    value = float(publication % 1000)
    arrays = {
        "mel": np.full((2 * NUM_FRAMES, 80), value, np.float32),
        "f0": np.full(2 * NUM_FRAMES, value, np.float32),
        "lm68": np.full((NUM_FRAMES, 68, 2), value, np.float32),
    }
    return ClipFeatures(clip, NUM_FRAMES, arrays, {"key": clip.key, "num_frames": NUM_FRAMES, "publication": value})


def make_run(folder: Path) -> RunFolder:
    """Make a run of which every shard is published."""
    shards = tuple(
        Shard(
            f"pretrain-{shard:06d}",
            tuple(
                Clip(key, f"{key}.mp4", 1)
                for key in (f"pretrain/speaker{shard}/{number:05d}" for number in range(CLIPS_PER_SHARD))
            ),
        )
        for shard in range(NUM_SHARDS)
    )
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}
    run = RunFolder.create(folder, record, shards)
    for shard in shards:
        run.publish(shard, [features(clip, 0) for clip in shard.clips], {}, {})
    return run


def read_on(path: Path, until: float, seed: int, results: Connection) -> None:
    """Be a reader until a moment (monotonic)."""
    draw = random.Random(seed)
    problems: list[str] = []
    expected = sorted(clip.key for shard in RunFolder.open(path).shards for clip in shard.clips)
    num_epochs = num_samples = num_changes = 0
    last: dict[str, float] = {}
    stream = ShardStream(path, "raw", seed=seed)
    while time.monotonic() < until and len(problems) < _MAX_LISTED:
        try:
            if draw.random() < 0.2:
                stream = ShardStream(path, "raw", seed=seed)
            stream.set_epoch(num_epochs)
            keys = []
            for sample in stream:
                key, value = sample["__key__"], sample["json"]["publication"]
                keys.append(key)
                if not all((sample[name] == value).all() for name in ("mel", "f0", "lm68")):
                    problems.append(f"{key} is of two publications")
                num_changes += last.get(key, value) != value
                last[key] = value
            if sorted(keys) != expected:
                problems.append(f"epoch {num_epochs} gives {len(keys)} samples of {len(expected)}")
        except RunError as error:
            problems.append(f"epoch {num_epochs}: {error}")
        num_epochs += 1
        num_samples += len(keys)
    results.send(Report(num_epochs, num_samples, num_changes, problems))


def run_benchmark(scratch: Path | None, seconds: float, num_readers: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yield lines to print, each with the number of defects that it stands for."""
    memory = Path("/dev/shm")
    place = scratch or (memory if os.access(memory, os.W_OK) else None)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="lrs3-faults-", dir=place) as folder:
        run = make_run(Path(folder) / "run")
        until = time.monotonic() + seconds
        readers = []
        for number in range(num_readers):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (Path(folder) / "run", until, seed + number, theirs)
            process = context.Process(target=read_on, args=arguments, daemon=True)
            process.start()
            theirs.close()
            readers.append((process, ours))
        draw, num_publications = random.Random(seed), 0
        while time.monotonic() < until:
            num_publications += 1
            shard = run.shards[draw.randrange(NUM_SHARDS)]
            run.publish(shard, [features(clip, num_publications) for clip in shard.clips], {}, {})
        found = [_report(process, results) for process, results in readers]
    problems = [problem for report in found for problem in report.problems]
    epochs, samples, changes = (sum(column) for column in list(zip(*found, strict=True))[:3])
    yield f"republishing: {num_publications:,} shards in {seconds:.0f} s; {len(problems)} problems", len(problems)
    yield f"  {num_readers} readers: {samples:,} samples in {epochs:,} epochs, {changes:,} had changed", 0
    yield from ((f"  {problem}", 0) for problem in problems[:_MAX_LISTED])


def _report(process: multiprocessing.process.BaseProcess, results: Connection) -> Report:
    try:
        report: Report = results.recv()
    except EOFError:
        report = Report(0, 0, 0, ["a reader ends in a traceback"])
    process.join()
    return report
