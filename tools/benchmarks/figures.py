"""The cost of the figures of every clip, how well they tell two people from one, and the time of a run's table."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, QualityConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.demo import demo_head
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.quality.face import identity_figures
from lrs3_loader.quality.figures import FIGURES, FIGURES_VERSION
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger, join_figures, ledger_name, tar_name
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import Clip, ClipFeatures, DecodedChunk, Shard
from lrs3_loader.viz.report import write_report

CLIPS_PER_SHARD = 58  # as many of LRS3's make a shard of 15,000 frames
PART_FRAMES = 30  # of each of two clips that are joined


def run_benchmark(clips: Path, assets: Assets, repeats: int, table_clips: int, scratch: Path) -> Iterator[str]:
    """Yield lines of text: CPU time with and without figures in turn, identities joined, and a table of many clips."""
    chunks = list(_decode(clips))
    yield from measure_cost(chunks, assets, repeats)
    yield from measure_identity(chunks, assets)
    yield from measure_table(scratch / "run", table_clips)


def _decode(folder: Path) -> Iterator[DecodedChunk]:
    """Yield the clips of a folder that are one chunk each."""
    config = CorpusConfig(corpus=folder)
    dataset = ClipDataset(folder, RunConfig().decode, f0_praat)
    for clip in scan_corpus(config):
        chunk = dataset[ChunkRequest(clip, 0)]
        if isinstance(chunk, DecodedChunk) and chunk.is_last:
            yield chunk


def _extractor(level: str, assets: Assets, **landmarks: bool) -> ShardExtractor:
    config = dataclasses.replace(demo_defaults(RunConfig()), quality=QualityConfig(level=level))  # type: ignore[arg-type]
    config = dataclasses.replace(config, landmarks=dataclasses.replace(config.landmarks, **landmarks))
    resolved, device = resolve(config, "cpu"), torch.device("cpu")
    return ShardExtractor(resolved, Models.load(resolved, assets, device), device)


def measure_cost(chunks: Sequence[DecodedChunk], assets: Assets, repeats: int) -> Iterator[str]:
    """Yield CPU seconds of landmarks, fit and demo speech encoder without and with figures, in turn; decoding apart."""
    extractors = {level: _extractor(level, assets) for level in ("none", "basic", "full")}
    frames = sum(chunk.num_frames for chunk in chunks)
    seconds: dict[str, list[float]] = {level: [] for level in extractors}
    for _ in range(repeats + 1):  # the first is warming up
        for level, extractor in extractors.items():
            started = time.process_time()
            list(extractor.extract(chunks, {}, lambda **counts: None))
            seconds[level].append(time.process_time() - started)
    median = {level: float(np.median(values[1:])) for level, values in seconds.items()}
    for level, value in median.items():
        more = f", {value / median['none'] - 1:+.1%}" if level != "none" else ""
        yield (
            f"--quality {level:<6} {1000 * value / frames:.2f} ms of CPU per frame{more} "
            f"({frames} frames, median of {repeats})"
        )


def measure_identity(chunks: Sequence[DecodedChunk], assets: Assets) -> Iterator[str]:
    """Yield the ``identity_change`` of clips, and of pieces of two clips joined, of one speaker or of two."""
    extractor = _extractor("none", assets, store_lm478=True)
    results = extractor.extract(chunks, {}, lambda **counts: None)
    meshes = {
        found.clip: found.arrays["lm478"][found.arrays["valid"]] for found in results if isinstance(found, ClipFeatures)
    }
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {"one clip": [], "two clips of one speaker": [], "clips of two speakers": []}
    for mesh in meshes.values():
        found["one clip"].append(identity_figures(mesh)["identity_change"])
    for (one, first), (other, second) in itertools.combinations(meshes.items(), 2):
        group = "two clips of one speaker" if one.speaker == other.speaker else "clips of two speakers"
        for _ in range(4):
            parts = [
                mesh[random.integers(0, max(len(mesh) - PART_FRAMES, 1)) :][:PART_FRAMES] for mesh in (first, second)
            ]
            found[group].append(identity_figures(np.concatenate(parts))["identity_change"])
    for group, values in found.items():
        if values:
            low, middle, high = np.percentile(values, (5, 50, 95))
            yield (
                f"identity_change, {group}: {min(values):.2f} to {max(values):.2f}, 5/50/95 % {low:.2f} {middle:.2f} "
                f"{high:.2f} ({len(values)})"
            )


def measure_table(path: Path, num_clips: int) -> Iterator[str]:
    """Yield the time to read the figures of a made-up run of so many clips from its ledgers."""
    num_bytes = _make_run(path, num_clips)
    for name in ("figures", "table"):
        started, cpu = time.perf_counter(), time.process_time()
        count = len(getattr(RunFolder.open(path), name)())
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        size = f"{num_bytes / 1e6:.0f} MB of ledgers"
        yield f"open_run(RUN).{name}(): {count} clips in {wall:.1f} s, {cpu:.1f} s of CPU ({size})"
    started, cpu = time.perf_counter(), time.process_time()
    page = path / "report.html"
    run = RunFolder.open(path)
    write_report(run, page, sample=1, gallery=0, load_model=demo_head, progress=lambda count: None)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    yield f"report, figures alone: {wall:.1f} s, {cpu:.1f} s of CPU, {page.stat().st_size / 1e6:.2f} MB"


def _make_run(path: Path, num_clips: int) -> int:
    """Write ledgers with all figures, and tars of one byte; return the bytes of the ledgers."""
    random, names = np.random.default_rng(0), list(FIGURES)
    shards = [
        Shard(f"pretrain-{number:06d}", tuple(_clip(number, index) for index in range(CLIPS_PER_SHARD)))
        for number in range(-(-num_clips // CLIPS_PER_SHARD))
    ]
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}
    run = RunFolder.create(path, record, shards)
    run_hash, total = run.run_hash, 0
    for shard in shards:
        values = random.normal(size=(len(shard.clips), len(names))) * 100
        figures = [{name: float(f"{value:.5g}") for name, value in zip(names, row, strict=True)} for row in values]
        samples = tuple((clip.key, 258) for clip in shard.clips)
        ledger = Ledger(
            shard.name, run_hash, "0" * 64, 1, samples, (), {}, {}, 0, {}, join_figures(figures), FIGURES_VERSION
        )
        data = ledger.to_json().encode()
        total += (path / ledger_name(shard.name)).write_bytes(data)
        (path / tar_name(shard.name)).write_bytes(b"x")  # num_bytes is 1
    return total


def _clip(number: int, index: int) -> Clip:
    key = f"pretrain/speaker{number:05d}/{index:05d}"
    return Clip(key, f"{key}.mp4", 100_000)
