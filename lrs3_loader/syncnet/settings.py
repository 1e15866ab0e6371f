"""What decides a training, checked, and what may differ from one launch of it to the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainConfig:
    """What decides the weights. Kept in the checkpoint: only ``epochs`` may change when a training goes on."""

    epochs: int = 120
    """Passes over the clips."""
    batch_clips: int = 16
    """Clips of a batch, on each rank."""
    pairs_per_clip: int = 8
    """Windows drawn from each of them; each is used once with its own sound, once with another."""
    max_shift_frames: int | None = None
    """How far away in the clip that other sound may lie (anywhere when not given)."""
    width: int = 128
    """Channels of the network's layers, and size of its embedding."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of AdamW."""
    held_out: float = 0.15
    """Share of speakers kept for the evaluation."""
    seed: int = 0
    """Of the first weights and of the order of everything."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_clips", "pairs_per_clip", "width", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_shift_frames is not None and self.max_shift_frames < 1:
            raise ValueError(f"max_shift_frames must be at least 1, got {self.max_shift_frames}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if self.weight_decay < 0 or self.seed < 0:
            raise ValueError(f"weight_decay and seed must be >= 0, got {self.weight_decay} and {self.seed}")


@dataclass(frozen=True)
class TrainLaunch:
    """What may differ from one launch to the next."""

    out: Path
    """Folder of the training; an unfinished one found there is gone on with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto gives each rank the GPU of its local rank."""
    read_workers: int = 0
    """DataLoader workers of each rank that read shards."""
    threads: int = 1
    """Compute threads of each rank."""
    checkpoint_steps: int = 200
    """A checkpoint is written every so many steps, and at the end of each evaluation."""
    evaluate_epochs: int = 10
    """The held-out speakers are looked at after every so many passes, and at the end."""
    tensorboard: bool = True
    """Write for TensorBoard as well, where it is installed."""

    def __post_init__(self) -> None:
        for name in ("threads", "checkpoint_steps", "evaluate_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.read_workers < 0:
            raise ValueError(f"read_workers must be >= 0, got {self.read_workers}")


@dataclass(frozen=True)
class DemoData:
    """How many talking heads, with --demo. Their speech features come from a network that was never trained."""

    demo_speakers: int = 24
    """Faces, each with its own voice."""
    demo_clips: int = 5
    """Clips of each."""
    demo_seconds: tuple[float, float] = (2.4, 3.6)
    """Shortest and longest clip."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
