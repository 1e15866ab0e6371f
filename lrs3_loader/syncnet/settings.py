"""The options of a lip-sync training, beside those of every training."""

from __future__ import annotations

from dataclasses import dataclass

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
