"""One shard, extracted on the stand-in device: which kernels each stage launches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.inputs import Workbench
from benchmarks.options import BenchOptions
from benchmarks.roofline.dispatch import dispatch_seconds
from benchmarks.shard import extract_shard
from benchmarks.stand_in import Kernel, Record, stand_in_device
from benchmarks.stand_in.tensor import StandInTensor
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.types import DecodedChunk

NUM_FRAMES = {"cuda": 512}
#: Stages by the file that asks for a kernel; the first that fits counts.
STAGES = {
    "crops": ("lrs3_loader/face/image/warp.py", "lrs3_loader/face/image/spans.py"),
    "landmarks": ("lrs3_loader/face/landmarks/",),
    "alignment": ("lrs3_loader/face/image/resample.py", "lrs3_loader/face/deep3d/align.py"),
    "regression": ("lrs3_loader/face/deep3d/",),
    "mel": ("lrs3_loader/audio/mel.py",),
    "HuBERT": ("lrs3_loader/audio/",),
    "fit": ("lrs3_loader/face/fit/", "lrs3_loader/face/geometry/", "lrs3_loader/face/model/"),
    "quality": ("lrs3_loader/quality/",),
}
OTHER = "other"


def stage_of(place: str) -> str:
    """The stage of extraction that a line of the package belongs to."""
    return next((stage for stage, prefixes in STAGES.items() if place.startswith(prefixes)), OTHER)


@dataclass(frozen=True)
class Rehearsal:
    """What one shard asked of the device."""

    record: Record
    num_frames: int
    num_clips: int
    num_slots: int  # frames of the batches, padding included
    frame_bytes: int
    decode_seconds: float  # of one core, for each frame: frames, audio and pitch
    dispatch_seconds: float  # of the host, for each kernel

    def kernels_by_stage(self) -> dict[str, list[Kernel]]:
        found: dict[str, list[Kernel]] = {stage: [] for stage in (*STAGES, OTHER)}
        for kernel in self.record.kernels:
            found[stage_of(kernel.place)].append(kernel)
        return found


def rehearse(options: BenchOptions, scratch: Path, memory_gib: int) -> Rehearsal:
    """Extract one shard of the benchmark's clips on the stand-in device, everything on.

    HuBERT and ResNet-50 have shapes, but no values: they cost nothing here. The landmark networks and the fit compute.

    Args:
        options: the benchmark's.
        scratch: an empty folder to work in.
        memory_gib: memory of the card, which sizes of batches depend on.
    """
    with stand_in_device(free_gib=memory_gib) as record:
        bench = Workbench(options, torch.device("cuda:0"), scratch, NUM_FRAMES)
        models = bench.models
        assert models.regressor is not None
        for model in (models.landmarker, models.regressor):
            model.batch_size = _without_padding(model.batch_size, bench.num_frames)
        for module in (models.regressor.network, models.speech._model):
            _make_hollow(module)
        record.clear()
        num_slots = extract_shard(bench)
    return Rehearsal(
        record,
        bench.num_frames,
        len(bench.takes),
        num_slots,
        bench.takes[0].frames[0].nbytes,
        _decode_seconds(bench),
        dispatch_seconds(bench.deep3d_files()),
    )


def _without_padding(batch_size: int, num_frames: int) -> int:
    """Frames of a batch: as on the card, but no more than there are. In a shard of 15,000, 2 % are padding."""
    return min(batch_size, 1 << (num_frames.bit_length() - 1))


def _make_hollow(module: torch.nn.Module) -> None:
    """Take the values of all weights away, and keep their shapes."""
    for weight in (*module.parameters(), *module.buffers()):
        assert isinstance(weight, StandInTensor)
        weight.host = weight.host.to("meta")


def _decode_seconds(bench: Workbench) -> float:
    """Seconds of one core for each frame, decoded as extraction decodes it."""
    takes = {take.path: take for take in bench.takes}
    dataset = ClipDataset(bench.root, bench.config.decode, f0_praat)
    started, num_frames = time.perf_counter(), 0
    for take in takes.values():
        chunk = dataset[ChunkRequest(take.clip)]
        num_frames += len(chunk.frames) if isinstance(chunk, DecodedChunk) else 0
    return (time.perf_counter() - started) / max(num_frames, 1)
