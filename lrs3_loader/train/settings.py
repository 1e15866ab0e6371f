"""The options of every training: those that decide its result, and those that may differ between launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lrs3_loader.config import rarely
from lrs3_loader.runtime.boards import BoardConfig

#: Options of ``TrainingConfig`` that may change when a training is resumed: they only say when it ends.
ENDING_OPTIONS = ("epochs", "patience")


@dataclass(frozen=True)
class TrainingConfig:
    """The options that decide the weights. Only ``epochs`` and ``patience`` may change when a training is resumed."""

    epochs: int = 120
    """Passes over the clips."""
    patience: int | None = None
    """Stop after so many evaluations in a row that are no better than the best; that one then counts (best.pt)."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float | None = None
    """Gradients of a larger norm, over all weights, are scaled down to this one (default: no limit)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 computes most products of a step in mixed precision; weights and evaluations stay in float32."""
    held_out: float = 0.15
    """Fraction of speakers that are used only for the evaluation."""
    fold: int = 0
    """Which speakers are held out: each number stands for others, until all have been."""
    seed: int = 0
    """Seed of the initial weights, of the data order and of random numbers in the loss."""
    where: str | None = None
    """Only clips for which this condition over their figures is true (docs/quality.md)."""

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "patience", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")
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
