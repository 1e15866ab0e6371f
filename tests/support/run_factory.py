"""Made-up runs on disk, small but with every field, for whatever reads shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrs3_loader.io.media_codec import VideoEncoder, encode_flac
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import Clip, ClipFeatures, Shard
from support.factory import make_clip, make_reject

SPEECH_WIDTH = 8


def full_features(clip: Clip, num_frames: int, seed: int = 0, quality: Mapping[str, Any] | None = None) -> ClipFeatures:
    """Every field. Frame t of ``idexp_lm3d`` starts with t, row r of ``hubert`` with r: what belongs together shows."""
    random = np.random.default_rng([seed, num_frames])
    rows = 2 * num_frames

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    arrays = {
        "mel": normal(rows, 80),
        "f0": random.choice([0.0, 110.0, 220.0], size=rows).astype(np.float32),
        "hubert": normal(rows, SPEECH_WIDTH).astype(np.float16),
        "lm68": random.uniform(0, 224, size=(num_frames, 68, 2)).astype(np.float32),
        "blendshapes": random.uniform(size=(num_frames, 52)).astype(np.float16),
        "id": normal(10),
        "exp": normal(num_frames, 6),
        "pose": normal(num_frames, 6),
        "idexp_lm3d": normal(num_frames, 68, 3),
        "speaking": normal(num_frames).astype(np.float16),
        "valid": np.ones(num_frames, dtype=bool),
    }
    arrays["hubert"][:, 0] = np.arange(rows)
    arrays["idexp_lm3d"][:, :, 0] = np.arange(num_frames)[:, None]
    meta: dict[str, Any] = {"key": clip.key, "num_frames": num_frames}
    return ClipFeatures(clip, num_frames, arrays, meta if quality is None else {**meta, "quality": quality})


def with_media(features: ClipFeatures, size: int = 64) -> ClipFeatures:
    """The same features with audio, face and mouth: level and brightness tell the frame, t / 100 and 4 t."""
    length = features.num_frames
    waveform = (np.arange(640 * length) // 640 / 100).astype(np.float32)
    audio, scale = encode_flac(waveform, 24)
    media = {"audio": audio}
    arrays = dict(features.arrays)
    for name, side in (("face", size), ("mouth", 96)):
        planes = np.full((length, side * 3 // 2, side), 128, np.uint8)
        planes[:, :side] = np.minimum(4 * np.arange(length), 255)[:, None, None]
        encoder = VideoEncoder(side, "h264", 4)
        encoder.append(planes)
        media[name] = encoder.finish()
        arrays[f"{name}_to_frame"] = np.tile(np.eye(2, 3, dtype=np.float32), (length, 1, 1))
    return dataclasses.replace(features, arrays=arrays, media=media, meta={**features.meta, "audio_scale": scale})


def begin_run(folder: Path | str, lengths: Sequence[Sequence[int]], split: str = "pretrain") -> RunFolder:
    """A run without any shard yet: a shard for each row of lengths (25 fps frames; 0 = a clip that gets rejected)."""
    shards, number = [], 0
    for index, row in enumerate(lengths):
        keys = [f"{split}/speaker{index}{k % 2}/{number + k:05d}" for k in range(len(row))]
        number += len(row)
        shards.append(Shard(f"{split}-{index:06d}", tuple(make_clip(key) for key in sorted(keys))))
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}
    return RunFolder.create(folder, record, tuple(shards))


def publish(
    run: RunFolder, index: int, lengths: Sequence[int], quality: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write one shard of it; ``quality`` has the figures of clips by their keys."""
    shard = run.shards[index]
    results = [
        full_features(clip, length, index * 1000 + number, (quality or {}).get(clip.key))
        if length
        else make_reject(clip)
        for number, (clip, length) in enumerate(zip(shard.clips, lengths, strict=True))
    ]
    run.publish(shard, results, {}, {})


def make_run(
    folder: Path | str,
    lengths: Sequence[Sequence[int]],
    split: str = "pretrain",
    quality: Mapping[str, Mapping[str, Any]] | None = None,
) -> RunFolder:
    """A finished run; ``quality`` has the figures of clips by their keys."""
    run = begin_run(folder, lengths, split)
    for index, row in enumerate(lengths):
        publish(run, index, row, quality)
    return run
