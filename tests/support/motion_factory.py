"""A run whose motion is a known function of its speech features, bent so that no straight line fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import Clip, ClipFeatures, Shard
from support.factory import make_clip

SPEECH_WIDTH = 12
_CURVES = 4  # that the speech features are mixed from
NUM_EXP = 14  # of the demo head


def make_motion_run(folder: Path, num_speakers: int, clips_per_speaker: int, frames: tuple[int, int]) -> RunFolder:
    """A finished run, one shard a speaker, with ``hubert``, ``mel``, ``f0``, ``exp``, ``idexp_lm3d`` and ``valid``.

    Args:
        frames: least and largest number of frames of a clip.
    """
    shards = tuple(
        Shard(
            f"pretrain-{speaker:06d}",
            tuple(make_clip(f"pretrain/Head{speaker:03d}/{clip:05d}") for clip in range(clips_per_speaker)),
        )
        for speaker in range(num_speakers)
    )
    speech = {"model": "made up", "sha256": "0" * 64, "layer": 0, "width": SPEECH_WIDTH}
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {"speech": speech}, "device_type": "cpu"}
    run = RunFolder.create(folder, record, shards)
    for number, shard in enumerate(shards):
        generator = np.random.default_rng([5, number])
        face = generator.normal(0, 0.2, (68, 3))
        run.publish(shard, [_move(clip, face, frames, generator) for clip in shard.clips], {}, {})
    return run


def _move(clip: Clip, face: np.ndarray, frames: tuple[int, int], generator: np.random.Generator) -> ClipFeatures:
    num_frames = int(generator.integers(frames[0], frames[1] + 1))
    curves = gaussian_filter1d(generator.standard_normal((2 * num_frames, _CURVES)), 3.0, axis=0)
    curves /= curves.std()
    features = curves @ np.random.default_rng(0).normal(size=(_CURVES, SPEECH_WIDTH))
    per_frame = curves.reshape(num_frames, 2, _CURVES).mean(1)
    opening = 0.5 * np.abs(per_frame[:, 0]) + 0.3 * per_frame[:, 1]
    offsets = np.repeat(face[None], num_frames, axis=0)
    offsets[:, 55:60, 1] -= opening[:, None]
    offsets[:, 65:68, 1] -= opening[:, None]
    exp = np.zeros((num_frames, NUM_EXP))
    exp[:, 0] = opening
    valid = np.ones(num_frames, dtype=bool)
    valid[num_frames // 2] = False
    arrays = {
        "hubert": features.astype(np.float16),
        "mel": np.tile(features, 7)[:, :80].astype(np.float32),
        "f0": np.where(curves[:, 2] > 0, 120 * np.exp(0.1 * curves[:, 3]), 0).astype(np.float32),
        "exp": exp.astype(np.float32),
        "idexp_lm3d": offsets.astype(np.float32),
        "valid": valid,
    }
    return ClipFeatures(clip, num_frames, arrays, {"key": clip.key, "num_frames": num_frames})
