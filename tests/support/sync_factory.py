"""Runs of talking heads that are never drawn: lips from the demo head's true coefficients, sound from its voice.

In place of a speech encoder's rows stands the mel spectrogram, which says more of the sound than an untrained encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.demo.head import IDENTITY_MODES, demo_head
from lrs3_loader.demo.motion import make_motion
from lrs3_loader.demo.voice import Voice, make_speech, synthesise
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import SAMPLES_PER_FRAME, Clip, ClipFeatures, Shard
from support.factory import make_clip


def make_talking_run(
    folder: Path,
    num_speakers: int,
    clips_per_speaker: int,
    late_frames: int = 0,
    seconds: tuple[float, float] = (2, 3),
    first_speaker: int = 0,
    habit: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> RunFolder:
    """A finished run, one shard a speaker. The sound of every clip comes ``late_frames`` too late.

    Speakers are numbered from ``first_speaker``, which decides their faces and voices; ``habit`` changes how they
    move: from expression coefficients [T, E] to others.
    """
    speakers = range(first_speaker, first_speaker + num_speakers)
    shards = tuple(
        Shard(
            f"pretrain-{place:06d}",
            tuple(make_clip(f"pretrain/Head{number:03d}/{clip:05d}") for clip in range(clips_per_speaker)),
        )
        for place, number in enumerate(speakers)
    )
    speech = {"model": "mel", "sha256": "0" * 64, "layer": 0, "width": 80}
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {"speech": speech}, "device_type": "cpu"}
    run = RunFolder.create(folder, record, shards)
    for number, shard in zip(speakers, shards, strict=True):
        generator = np.random.default_rng([7, number])
        voice = Voice.of(number, generator)
        identity = torch.from_numpy(generator.normal(0, 0.9, len(IDENTITY_MODES)).clip(-2, 2).astype(np.float32))
        clips = [
            _talk(clip, voice, identity, [7, number, k], late_frames, seconds, habit)
            for k, clip in enumerate(shard.clips)
        ]
        run.publish(shard, clips, {}, {})
    return run


def _talk(
    clip: Clip,
    voice: Voice,
    identity: torch.Tensor,
    seed: list[int],
    late_frames: int,
    seconds: tuple[float, float],
    habit: Callable[[torch.Tensor], torch.Tensor] | None,
) -> ClipFeatures:
    generator = np.random.default_rng(seed)
    num_frames = round(25 * generator.uniform(*seconds))
    speech = make_speech(num_frames, voice, generator)
    waveform = torch.from_numpy(synthesise(speech, voice, generator))
    late = torch.cat([torch.zeros(late_frames * SAMPLES_PER_FRAME), waveform])[: len(waveform)]
    exp, pose = make_motion(speech, generator)
    landmarks = demo_head().landmarks(identity, exp if habit is None else habit(exp))
    arrays = {
        "hubert": MelSpectrogram()([late])[0].numpy().astype(np.float16),
        "idexp_lm3d": 10 * (landmarks - demo_head().landmark_mean).numpy(),
        "pose": pose.numpy(),
        "valid": np.ones(num_frames, dtype=bool),
    }
    return ClipFeatures(clip, num_frames, arrays, {"key": clip.key, "num_frames": num_frames})
