"""How fast shards stream, beside plain webdataset on the same tars and torch over a file per array."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.shards import read_shard
from lrs3_loader.stream import ShardStream
from lrs3_loader.types import Clip, ClipFeatures, Shard

SPEECH_WIDTH = 128
FRAMES = (6, 16)  # shortest and longest clip


@dataclass(frozen=True)
class Timing:
    """One way of reading the samples once."""

    name: str
    samples_per_second: float  # median over the passes
    slowest: float
    fastest: float
    memory_start_mib: float  # resident, of the reading process, a tenth into the first pass: caches are filled by then
    memory_end_mib: float  # at the end of the last pass


def make_synthetic_run(
    folder: Path,
    num_samples: int,
    samples_per_shard: int,
    speech_width: int = SPEECH_WIDTH,
    frames: tuple[int, int] = FRAMES,
) -> RunFolder:
    """A run of random samples with every field a demo run has; clips have ``frames`` = (least, most) frames."""
    keys = [f"pretrain/speaker{number % 40:02d}/{number:06d}" for number in range(num_samples)]
    clips = [Clip(key, f"{key}.mp4", 1000) for key in sorted(keys)]
    parts = [clips[start : start + samples_per_shard] for start in range(0, num_samples, samples_per_shard)]
    shards = tuple(Shard(f"pretrain-{index:06d}", tuple(part)) for index, part in enumerate(parts))
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}
    run = RunFolder.create(folder, record, shards)
    random = np.random.default_rng(0)
    for shard in shards:
        run.publish(shard, (_features(clip, random, speech_width, frames) for clip in shard.clips), {}, {})
    return run


def _features(clip: Clip, random: np.random.Generator, speech_width: int, frames: tuple[int, int]) -> ClipFeatures:
    num_frames = int(random.integers(frames[0], frames[1] + 1))

    def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32).astype(dtype)

    arrays = {
        "mel": normal(2 * num_frames, 80),
        "f0": np.abs(normal(2 * num_frames)) * 100,
        "hubert": normal(2 * num_frames, speech_width, dtype=np.float16),
        "lm68": normal(num_frames, 68, 2),
        "blendshapes": normal(num_frames, 52, dtype=np.float16),
        "id": normal(100),
        "exp": normal(num_frames, 53),
        "pose": normal(num_frames, 6),
        "idexp_lm3d": normal(num_frames, 68, 3),
        "valid": np.ones(num_frames, dtype=bool),
    }
    return ClipFeatures(clip, num_frames, arrays, {"key": clip.key, "num_frames": num_frames})


class ArrayFiles(Dataset[dict[str, Any]]):
    """A file per array and clip, read with ``np.load``: how features lie around without shards."""

    def __init__(self, folder: Path, keys: list[str], fields: list[str]):
        self._folder = folder
        self._keys = keys
        self._fields = fields

    @classmethod
    def write(cls, folder: Path, run: RunFolder) -> ArrayFiles:
        """Copy the arrays of a run."""
        keys: list[str] = []
        fields: list[str] = []
        for shard in run.shards:
            for sample in read_shard(run.tar_path(shard)):
                key = sample.pop("__key__")
                fields = sorted(set(sample) - {"json"})
                (folder / key).parent.mkdir(parents=True, exist_ok=True)
                for name in fields:
                    np.save(folder / f"{key}.{name}.npy", sample[name])
                keys.append(key)
        return cls(folder, keys, fields)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self._keys[index]
        arrays = {name: np.load(self._folder / f"{key}.{name}.npy") for name in self._fields}
        return {"__key__": key, **arrays}


def compare(run: RunFolder, files: ArrayFiles, num_workers: int, num_passes: int) -> Iterator[Timing]:
    """Read all samples in each way, in turn, so that whatever else the machine does falls on all alike.

    All ways give whole samples as numpy arrays, but for the last, which gives batches of the three fields that
    audio2motion takes, as tensors.
    """
    urls = [str(run.tar_path(shard)) for shard in run.shards]
    stream = ShardStream(run.path, "raw")
    batches = ShardStream(run.path, "audio2motion", batch_frames=800)
    plain = webdataset.WebDataset(urls, shardshuffle=False).decode()
    options: dict[str, Any] = {"batch_size": None, "num_workers": num_workers, "collate_fn": _as_is}
    ways: dict[str, tuple[Iterable[Any], Callable[[Any], int]]] = {
        "ShardStream raw": (DataLoader(stream, **options), _one),
        "webdataset, same tars": (DataLoader(plain, **options), _one),
        "torch over .npy files, shuffled": (DataLoader(files, shuffle=True, **options), _one),
        "ShardStream audio2motion": (DataLoader(batches, **options), _num_keys),
    }
    total = sum(len(shard.clips) for shard in run.shards)
    passes: dict[str, list[_Pass]] = {name: [] for name in ways}
    for epoch in range(num_passes):
        stream.set_epoch(epoch)
        batches.set_epoch(epoch)
        for name, (loader, count) in ways.items():
            passes[name].append(_pass(loader, count, total))
    for name, found in passes.items():
        rates = [each.samples_per_second for each in found]
        yield Timing(
            name, statistics.median(rates), min(rates), max(rates), found[0].memory_start_mib, found[-1].memory_end_mib
        )


@dataclass(frozen=True)
class _Pass:
    samples_per_second: float
    memory_start_mib: float
    memory_end_mib: float


def _pass(loader: Iterable[Any], count: Callable[[Any], int], total: int) -> _Pass:
    num_samples, early = 0, None
    started = time.perf_counter()
    for item in loader:
        num_samples += count(item)
        if early is None and num_samples >= total // 10:
            early = resident_mib()
    seconds = time.perf_counter() - started
    if num_samples != total:
        raise RuntimeError(f"{num_samples} of {total} samples came out")
    now = resident_mib()
    return _Pass(num_samples / seconds, now if early is None else early, now)


def resident_mib() -> float:
    """Memory of this process that is in RAM, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def format_timings(timings: Iterable[Timing]) -> Iterator[str]:
    """A table, line by line."""
    yield f"{'':<34}{'samples/s':>11}{'(slowest - fastest)':>22}{'memory, MiB':>20}"
    for timing in timings:
        spread = f"({timing.slowest:.0f} - {timing.fastest:.0f})"
        memory = f"{timing.memory_start_mib:.0f} -> {timing.memory_end_mib:.0f}"
        yield f"{timing.name:<34}{timing.samples_per_second:>11.0f}{spread:>22}{memory:>20}"


def _as_is(item: Any) -> Any:
    return item


def _one(item: Any) -> int:
    return 1


def _num_keys(batch: dict[str, Any]) -> int:
    return len(batch["keys"])


def run_benchmark(scratch: Path, num_samples: int, num_workers: int, num_passes: int) -> Iterator[str]:
    """Make the samples, read them in every way, and say how it went, line by line."""
    torch.set_num_threads(1)
    run = make_synthetic_run(scratch / "run", num_samples, samples_per_shard=500)
    files = ArrayFiles.write(scratch / "files", run)
    num_bytes = sum(run.ledger(shard).num_bytes for shard in run.shards)
    yield (
        f"{num_samples} samples in {len(run.shards)} shards, {num_bytes / 1e6:.0f} MB, {num_workers} workers, "
        f"median of {num_passes} passes in turn"
    )
    yield from format_timings(compare(run, files, num_workers, num_passes))
