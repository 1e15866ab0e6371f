"""Measures the audio-video offset of each clip with a trained network, for RUN/sync.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import write_result
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.offsets import MAX_OFFSET
from lrs3_loader.stream import ShardStream
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from lrs3_loader.syncnet.evaluate import READS, score_clip
from lrs3_loader.train.checkpoint import feature_differences, feature_models
from lrs3_loader.train.speakers import speaker_of


@dataclass(frozen=True)
class ClipOffset:
    """The audio-video offset of one clip: a line of the file."""

    key: str
    offset_frames: int | None  # at 25 fps, -10..10; positive: the audio is late. None: clip too short
    confidence: float | None  # score of this offset above the median, 0..2
    num_windows: int  # number of windows scored
    in_training: bool  # the network was trained on this speaker


def measure_offsets(
    folder: RunFolder, checkpoint: SyncNetCheckpoint, device: torch.device | str = "cpu"
) -> Iterator[ClipOffset]:
    """Measure every published clip of a run, in the order of its plan.

    Raises:
        RunError: the features of the run come from other models than those of the training; the message names them.
    """
    changes = feature_differences(checkpoint.features, feature_models(folder.record))
    if changes:
        raise RunError(
            f"the checkpoint was trained on other features than those of {folder.path} (trained on -> found): "
            + "; ".join(changes)
        )
    model = checkpoint.network(device)
    speakers = set(checkpoint.speakers)
    stream = ShardStream(folder.path, READS, shuffle=False, partial=True, rank=0, world_size=1)
    for sample in stream:
        clip = score_clip(model, sample)
        confidence = None if clip.confidence is None else round(clip.confidence, 4)
        seen = speaker_of(clip.key) in speakers
        yield ClipOffset(clip.key, clip.offset_frames, confidence, len(clip.windows), seen)


def write_offsets(path: Path, offsets: Sequence[ClipOffset]) -> None:
    """Write one line of JSON per clip; the file is written atomically."""
    with write_result(path) as file:
        file.writelines(json.dumps(asdict(offset)).encode() + b"\n" for offset in offsets)


def describe_offsets(offsets: Sequence[ClipOffset]) -> str:
    """Summarise the offsets of all clips, and of the speakers that the network was not trained on."""
    groups = {"clips": list(offsets)}
    if any(offset.in_training for offset in offsets):
        groups["of them of speakers it was not trained on"] = [o for o in offsets if not o.in_training]
    lines = [_describe(name, group) for name, group in groups.items() if group]
    return "\n".join(["audio-video offset in frames (positive: the audio is late)", *lines])


def _describe(name: str, group: Sequence[ClipOffset]) -> str:
    known = [(o.offset_frames, o.confidence) for o in group if o.offset_frames is not None]
    short = f", {len(group) - len(known)} too short to say" if len(known) < len(group) else ""
    if not known:
        return f"  {len(group)} {name}{short}"
    counts = Counter(offset for offset, _ in known)
    median = float(np.median([offset for offset, _ in known]))
    confidence = float(np.median([confidence for _, confidence in known]))
    listed = ", ".join(
        f"{offset:+d}: {counts[offset]}" for offset in range(-MAX_OFFSET, MAX_OFFSET + 1) if counts[offset]
    )
    return f"  {len(group)} {name}{short}: median {median:+g}, median confidence {confidence:.2f} ({listed})"
