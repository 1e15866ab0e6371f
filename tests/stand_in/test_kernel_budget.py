"""How many kernels an extraction launches, and how often the host waits: for each batch, clip and shard.

A kernel more in a loop costs microseconds, a wait more (``.item()``, ``.cpu()``, an ``if`` on a tensor) leaves the GPU
idle. The bounds are what the code does now; lower them when it does less. The networks' own kernels depend on which
landmark files are here, so theirs are counted apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.deep3d_files import make_deep3d
from benchmarks.stand_in import Record, most_common
from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import CorpusConfig, RegressionConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.runtime.device import pick_device
from lrs3_loader.types import ClipFeatures, DecodedChunk

BATCH = 8
NETWORKS = ("tflite_ops.py", "tflite.py", "fusion.py", "convolve.py", "steps.py", "sums.py", "landmarks/detector.py")


@dataclass(frozen=True)
class Count:
    """Kernels outside of the landmark networks, and waits."""

    kernels: int
    waits: int
    record: Record

    @classmethod
    def of(cls, record: Record) -> Count:
        kernels = [kernel for kernel in record.kernels if not any(name in kernel.place for name in NETWORKS)]
        return cls(len(kernels), len(record.waits), dataclasses.replace(record, kernels=kernels))


@pytest.fixture(scope="module")
def chunk(tmp_path_factory: pytest.TempPathFactory) -> DecodedChunk:
    """One clip of two batches."""
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    demo.make_demo_corpus(folder, num_speakers=1, clips_per_speaker=1, seconds=(0.8, 0.85))
    (clip,) = scan_corpus(CorpusConfig(corpus=folder))
    whole = ClipDataset(folder, RunConfig().decode, lambda _, rows: (np.zeros(rows, np.float32), rows))[
        ChunkRequest(clip)
    ]
    assert isinstance(whole, DecodedChunk)
    assert whole.head is not None
    num_frames = 2 * BATCH
    head = dataclasses.replace(
        whole.head, waveform=whole.head.waveform[: 640 * num_frames], f0_hz=whole.head.f0_hz[: 2 * num_frames]
    )
    return dataclasses.replace(whole, num_frames=num_frames, frames=whole.frames[:num_frames], head=head)


def copies(chunk: DecodedChunk, number: int) -> list[DecodedChunk]:
    """The same clip under other keys: as much work, and as many iterations of the fit."""
    clips = [dataclasses.replace(chunk.clip, key=f"{chunk.clip.key}{index}") for index in range(number)]
    return [dataclasses.replace(chunk, clip=clip) for clip in clips]


def extract(extractor: ShardExtractor, chunks: list[DecodedChunk], record: Record) -> tuple[Count, Count]:
    """What the two steps of an extraction ask of the device."""
    record.clear()
    shard = extractor.process_frames(chunks, {}, lambda **_: None)
    frames = Count.of(dataclasses.replace(record, kernels=list(record.kernels), waits=list(record.waits)))
    record.clear()
    results = list(extractor.process_clips(shard))
    assert all(isinstance(result, ClipFeatures) for result in results)
    return frames, Count.of(record)


#: (kernels, waits) at most. Those of a shard depend on the steps that its fit takes.
PER_BATCH = (380, 2)
PER_CLIP = (145, 0)
PER_SHARD = (2600, 24)


def test_kernels_and_waits_stay_within_their_budget(
    chunk: DecodedChunk, assets: Path | None, tmp_path: Path, stand_in: Record
) -> None:
    config = demo_defaults(RunConfig())
    config = dataclasses.replace(
        config,
        landmarks=dataclasses.replace(config.landmarks, frame_batch=BATCH),
        speech=dataclasses.replace(config.speech, dtype="float32", batch_seconds=1.0),
        regression=RegressionConfig(checkpoint=make_deep3d(tmp_path), batch=BATCH, dtype="float32"),
    )
    device = pick_device("cuda")
    config = resolve(config, device.type)
    extractor = ShardExtractor(config, Models.load(config, Assets(assets), device), device)
    (frames_of_one, clips_of_one), (frames_of_two, clips_of_two) = (
        extract(extractor, copies(chunk, number), stand_in) for number in (1, 2)
    )
    per_batch = (frames_of_two.kernels - frames_of_one.kernels) / 2, (frames_of_two.waits - frames_of_one.waits) / 2
    per_clip = clips_of_two.kernels - clips_of_one.kernels, clips_of_two.waits - clips_of_one.waits
    per_shard = clips_of_one.kernels - per_clip[0], clips_of_one.waits - per_clip[1]
    for name, found, bound, record in (
        ("batch", per_batch, PER_BATCH, frames_of_two.record),
        ("clip", per_clip, PER_CLIP, clips_of_two.record),
        ("shard", per_shard, PER_SHARD, clips_of_one.record),
    ):
        assert found[0] <= bound[0], f"kernels per {name}:\n{most_common(k.place for k in record.kernels)}"
        assert found[1] <= bound[1], f"waits per {name}:\n{most_common(wait.place for wait in record.waits)}"
