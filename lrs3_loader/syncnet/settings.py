"""The options of a lip-sync training, beside those of every training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrs3_loader.train.settings import TrainingConfig


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """The options that decide the weights. Only ``epochs`` and ``patience`` may change when a training is resumed."""

    batch_clips: int = 16
    """Clips per batch on each rank."""
    pairs_per_clip: int = 8
    """Windows drawn from each clip; each is used once with its own audio and once with shifted audio."""
    max_shift_frames: int | None = None
    """Largest shift of that audio in 25 fps frames (default: anywhere in the clip)."""
    width: int = 128
    """Channels of the layers, and size of the embedding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_clips", "pairs_per_clip", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_shift_frames is not None and self.max_shift_frames < 1:
            raise ValueError(f"max_shift_frames must be at least 1, got {self.max_shift_frames}")


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
