"""All clips of a workbench as one shard, extracted with everything on, in this process."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.inputs import Take, Workbench
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.upload import upload
from lrs3_loader.types import ROWS_PER_FRAME, ClipFeatures, ClipHead, DecodedChunk, SourceInfo


def extract_shard(bench: Workbench) -> int:
    """Extract the decoded clips as a run does, from their frames in host memory to features on the host.

    Returns:
        frames of its batches, padding included.

    Raises:
        ValueError: no face was found in any clip.
    """
    extractor = ShardExtractor(bench.config, bench.models, bench.device)
    slots = []
    chunks = [as_chunk(take, number) for number, take in enumerate(bench.takes)]
    items = (item for _, item in upload(((None, chunk) for chunk in chunks), bench.device))
    shard = extractor.process_frames(items, {}, lambda **counts: slots.append(counts.get("frame_slots", 0)))
    results = list(extractor.process_clips(shard))
    if not any(isinstance(result, ClipFeatures) for result in results):
        raise ValueError("no face was found in any clip: there is nothing to look at")
    return sum(slots)


def as_chunk(take: Take, number: int) -> DecodedChunk:
    """The decoded clip under a key of its own, which tells it from others of the same file. It has no pitch."""
    num_frames, height, width, _ = take.frames.shape
    clip = dataclasses.replace(take.clip, key=f"{take.clip.key}x{number:03d}")
    num_rows = ROWS_PER_FRAME * num_frames
    source = SourceInfo(25.0, num_frames, height, width, 16_000, 1, len(take.waveform), 0.0, 0, 0)
    head = ClipHead(waveform=take.waveform, f0_hz=torch.zeros(num_rows), num_f0_rows=num_rows, source=source)
    return DecodedChunk(clip, num_frames, 0, take.frames, head)
