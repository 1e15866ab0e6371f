"""The options of a training: those that decide its result, and those that may differ between launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lrs3_loader.config import rarely
from lrs3_loader.runtime.boards import BoardConfig


@dataclass(frozen=True)
class TrainConfig:
    """The options that decide the weights. Only ``epochs`` may change when a training is resumed."""

    epochs: int = 120
    """Passes over the clips."""
    batch_clips: int = 16
    """Clips per batch on each rank."""
    pairs_per_clip: int = 8
    """Windows drawn from each clip; each is used once with its own audio and once with shifted audio."""
    max_shift_frames: int | None = None
    """Largest shift of that audio in 25 fps frames (default: anywhere in the clip)."""
    width: int = 128
    """Channels of the layers, and size of the embedding."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    held_out: float = 0.15
    """Fraction of speakers that are used only for the evaluation."""
    fold: int = 0
    """Which speakers are held out: each number stands for others, until all have been."""
    seed: int = 0
    """Seed of the initial weights and of the data order."""
    where: str | None = None
    """Only clips for which this condition over their figures is true (docs/quality.md)."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_clips", "pairs_per_clip", "width", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_shift_frames is not None and self.max_shift_frames < 1:
            raise ValueError(f"max_shift_frames must be at least 1, got {self.max_shift_frames}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        for name in ("weight_decay", "seed", "fold"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainLaunch:
    """The options that may differ between launches."""

    out: Path
    """Folder of the training; an unfinished training in it is resumed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto gives each rank the GPU of its local rank."""
    read_workers: int = 0
    """DataLoader workers per rank."""
    threads: int = 1
    """Compute threads per rank."""
    checkpoint_steps: int = 200
    """Steps between two checkpoints; another is written after each evaluation."""
    evaluate_epochs: int = 10
    """Epochs between two evaluations on the held-out speakers; another is at the end."""
    boards: Annotated[BoardConfig, rarely("figures elsewhere")] = field(default_factory=BoardConfig)

    def __post_init__(self) -> None:
        for name in ("threads", "checkpoint_steps", "evaluate_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.read_workers < 0:
            raise ValueError(f"read_workers must be >= 0, got {self.read_workers}")


@dataclass(frozen=True)
class DemoData:
    """The synthetic talking heads of --demo. Their speech features come from an untrained network."""

    demo_speakers: int = 24
    """Faces, each with its own voice."""
    demo_clips: int = 5
    """Clips per speaker."""
    demo_seconds: tuple[float, float] = (2.4, 3.6)
    """Shortest and longest clip in seconds."""
    assets: Path | None = None
    """Folder with model files, searched first (then $LRS3_LOADER_ASSETS, then the cache)."""
