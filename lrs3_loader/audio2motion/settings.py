"""The options of a training of the generator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lrs3_loader.train.settings import TrainingConfig

_SPEECH = re.compile(r"mel|hubert(_\d+)?")  # the list in ``types`` imports torch, which help must not wait for


@dataclass(frozen=True)
class Audio2MotionConfig(TrainingConfig):
    """The options that decide the weights. Only ``epochs`` and ``patience`` may change when a training is resumed."""

    epochs: int = 30
    """Passes over the clips."""
    clip_norm: float | None = 1.0
    """Gradients of a larger norm, over all weights, are scaled down to this one."""
    size: Literal["demo", "real"] | None = None
    """Size of the network: demo trains in minutes on two cores, real is for hundreds of hours (default: real, or demo
    with --demo)."""
    target: Literal["idexp_lm3d", "exp"] = "idexp_lm3d"
    """What is generated: landmarks in 3D, or the face model's expression coefficients."""
    speech: str = "hubert"
    """Field with the speech features: hubert, hubert_2 ... or mel."""
    batch_clips: int = 8
    """Clips per batch on each rank."""
    crop_frames: int = 200
    """Longer clips are cut to so many 25 fps frames, at a random place in each epoch."""
    kl_weight: float = 0.3
    """Weight of the divergence of the posterior from the prior (nats per frame)."""
    velocity_weight: float = 1.0
    """Weight of the error of the change from frame to frame, beside that of the motion itself."""
    sync_weight: float = 0.0
    """Weight of the lip-sync network's loss on samples (needs --sync)."""
    baseline_clips: int = 1000
    """Training clips, at most, that ridge regression is fitted on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_clips", "crop_frames", "baseline_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kl_weight", "velocity_weight", "sync_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not _SPEECH.fullmatch(self.speech):
            raise ValueError(f"speech must be hubert, hubert_2 ... or mel, got {self.speech!r}")
        if self.sync_weight > 0 and self.target != "idexp_lm3d":
            raise ValueError(f"the lip-sync network reads idexp_lm3d: sync_weight needs that target, not {self.target}")
