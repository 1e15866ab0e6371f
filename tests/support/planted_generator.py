"""A generator of motion that opens the jaw as loud as the sound is, and a sound that is loud for half a second."""

from __future__ import annotations

import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrs3_loader.audio.checkpoint import demo_checkpoint
from lrs3_loader.demo import demo_head
from lrs3_loader.demo.head import EXPRESSION_MODES

JAW = EXPRESSION_MODES.index("jaw_open")
SPEECH = {"model": "demo", "sha256": demo_checkpoint().sha256, "layer": 3, "width": 64}
FACE = {"name": "demo", "sha256": demo_head().source_sha256}
RATE = 48_000


@dataclass(frozen=True)
class Planted:
    """A generator of ``target`` from mel: the jaw opens with the level, about the reference where there is one."""

    target: str = "idexp_lm3d"
    speech: str = "mel"
    features: dict[str, Any] = field(default_factory=lambda: {"speech": SPEECH, "face_model": FACE, "idexp": "fit"})

    def generate(
        self,
        speech: torch.Tensor,
        f0: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        level = speech.mean(1).unflatten(0, (-1, 2)).mean(1)  # log10, one a frame
        jaw = ((level + 5) / 3).clamp(0, 1)
        exp = torch.zeros(len(jaw), len(EXPRESSION_MODES))
        exp[:, JAW] = jaw
        if self.target == "exp":
            return exp if reference is None else exp - exp.mean(0) + reference
        motion = demo_head().idexp_lm3d(torch.zeros(16), exp).flatten(1)
        return motion if reference is None else motion - motion.mean(0) + reference


def vowel(seconds: float, rate: int) -> np.ndarray:
    """[n] f32: half a second of silence, a loud vowel, and silence again."""
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 150 * harmonic * time) / harmonic for harmonic in range(1, 40))
    loud = (time > 0.5) & (time < 1.0)
    return (0.3 * np.where(loud, tone, 0)).astype(np.float32)


def write_wav(path: Path, seconds: float = 1.53) -> Path:
    """A stereo file of 16 bits at 48 kHz."""
    samples = np.repeat((vowel(seconds, RATE) * 32767).astype("<i2")[:, None], 2, axis=1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return path
