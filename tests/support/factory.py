"""Small made-up objects that many tests need."""

from __future__ import annotations

import numpy as np
import torch

from lrs3_loader.types import Clip, ClipFeatures, ClipHead, DecodedChunk, Reject, Shard, SourceInfo


def make_clip(key: str = "test/speaker/00001", **fields: object) -> Clip:
    return Clip(key=key, video_path=f"{key}.mp4", num_bytes=1000, **fields)  # type: ignore[arg-type]


def make_shard(name: str = "test-000000", num_clips: int = 4, first: int = 0) -> Shard:
    return Shard(name, tuple(make_clip(f"test/speaker/{first + number:05d}") for number in range(num_clips)))


def make_features(clip: Clip, num_frames: int = 10, seed: int = 0) -> ClipFeatures:
    random = np.random.default_rng([seed, num_frames])
    arrays = {
        "mel": random.normal(size=(2 * num_frames, 80)).astype(np.float32),
        "hubert": random.normal(size=(2 * num_frames, 16)).astype(np.float16),
        "lm68": random.uniform(0, 224, size=(num_frames, 68, 2)).astype(np.float32),
        "valid": np.ones(num_frames, dtype=bool),
    }
    return ClipFeatures(clip, num_frames, arrays, {"key": clip.key, "num_frames": num_frames, "text": "żółć"})


def make_reject(clip: Clip, reason: str = "no_face") -> Reject:
    return Reject(clip, reason, "3 of 10 frames with a face")


def make_chunk(clip: Clip, num_frames: int, start: int = 0, count: int | None = None, size: int = 8) -> DecodedChunk:
    """A chunk whose frame k holds the value k in every pixel."""
    count = num_frames - start if count is None else count
    values = torch.arange(start, start + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    head = ClipHead(
        waveform=torch.zeros(640 * num_frames),
        f0_hz=torch.zeros(2 * num_frames),
        num_f0_rows=2 * num_frames,
        source=SourceInfo(25.0, num_frames, size, size, 16000, 1, 640 * num_frames, 0.0, 0, 0),
    )
    return DecodedChunk(clip, num_frames, start, values.expand(count, size, size, 3), head if start == 0 else None)
