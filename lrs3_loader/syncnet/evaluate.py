"""Scores how well mouth and audio match at each offset, and how often the right offset has the best score.

An offset of k frames (25 fps) compares the mouth at frame t with the audio at frame t + k, so the best offset is
positive if the audio is late. Every window is compared at all offsets in -10..10; windows within 10 frames of the ends
of a clip, and windows with a frame without a face, are not used.

Shape letters: T frames of a clip, W = T - 4 windows, n of them used, K = 21 offsets, E size of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lrs3_loader.run.offsets import MAX_OFFSET
from lrs3_loader.stream.tasks import MOUTH, SYNC_FRAMES, SYNC_ROWS, Raw
from lrs3_loader.syncnet.model import MOUTH_WIDTH, SyncNetModel
from lrs3_loader.types import ROWS_PER_FRAME

OFFSETS = np.arange(-MAX_OFFSET, MAX_OFFSET + 1)
CHANCE = 1 / len(OFFSETS)
READS = Raw(fields=("hubert", "idexp_lm3d", "valid"))  # the task of ``ShardStream`` whose samples are scored


@dataclass(frozen=True)
class ClipScores:
    """The scores of one clip at all offsets."""

    key: str
    windows: np.ndarray  # [n, K] f32, cosines; n = 0 if the clip is too short

    @property
    def mean(self) -> np.ndarray:
        """[K] f32, averaged over the windows of the clip."""
        return self.windows.mean(0)

    @property
    def offset_frames(self) -> int | None:
        """Offset with the best mean score, positive if the audio is late; None if the clip is too short."""
        return int(OFFSETS[self.mean.argmax()]) if len(self.windows) else None

    @property
    def confidence(self) -> float | None:
        """Mean score of the best offset minus the median over all offsets (0..2); None if the clip is too short."""
        return float(self.mean.max() - np.median(self.mean)) if len(self.windows) else None


@torch.inference_mode()
def score_clip(model: SyncNetModel, sample: Mapping[str, Any]) -> ClipScores:
    """Score the windows of a sample of task ``READS`` at all offsets, on the device of the model."""
    device = model.bias.device
    mouth = torch.from_numpy(sample["idexp_lm3d"][:, MOUTH].reshape(-1, MOUTH_WIDTH)).to(device)
    audio = torch.from_numpy(sample["hubert"]).to(device).float()
    num_windows = len(mouth) - SYNC_FRAMES + 1
    if num_windows <= 2 * MAX_OFFSET:
        return ClipScores(sample["__key__"], np.zeros((0, len(OFFSETS)), np.float32))
    mouths = model.embed_mouth(mouth.unfold(0, SYNC_FRAMES, 1).transpose(1, 2))  # [W, E]
    audios = model.embed_audio(audio.unfold(0, SYNC_ROWS, ROWS_PER_FRAME).transpose(1, 2))  # [W, E]
    around = audios.unfold(0, len(OFFSETS), 1)  # [W - 20, E, K]: the audio around each window that has all offsets
    scores = torch.einsum("ne,nek->nk", mouths[MAX_OFFSET : num_windows - MAX_OFFSET], around)
    valid: np.ndarray = sample["valid"][MAX_OFFSET : len(mouth) - MAX_OFFSET]
    whole = np.lib.stride_tricks.sliding_window_view(valid, SYNC_FRAMES).all(axis=1)
    return ClipScores(sample["__key__"], scores.cpu().numpy()[whole])


@dataclass(frozen=True)
class Accuracy:
    """Share of clips and windows in which the right offset, 0, has the best score among -10..10. By chance, 1 in 21."""

    by_window: float  # fraction of windows of 0.2 s
    by_clip: float  # fraction of clips, by their mean scores
    num_windows: int
    num_clips: int
    mean_score: tuple[float, ...]  # [K] cosine at each offset, over all windows
    clip_offsets: tuple[int, ...]  # [K] number of clips for which each offset is best

    @classmethod
    def of(cls, scored: Iterable[ClipScores]) -> Accuracy:
        """Compute the accuracy over clips whose true offset is 0; clips that are too short are skipped.

        Raises:
            ValueError: no clip is long enough.
        """
        usable = [clip for clip in scored if len(clip.windows)]
        if not usable:
            raise ValueError(f"no clip of {SYNC_FRAMES + 2 * MAX_OFFSET} frames or more to evaluate on")
        windows = np.concatenate([clip.windows for clip in usable])
        counts = np.bincount([clip.mean.argmax() for clip in usable], minlength=len(OFFSETS))
        return cls(
            by_window=float((windows.argmax(1) == MAX_OFFSET).mean()),
            by_clip=float(counts[MAX_OFFSET] / len(usable)),
            num_windows=len(windows),
            num_clips=len(usable),
            mean_score=tuple(float(score) for score in windows.mean(0)),
            clip_offsets=tuple(counts.tolist()),
        )

    @property
    def figures(self) -> dict[str, float]:
        return {"window_accuracy": self.by_window, "clip_accuracy": self.by_clip}

    def details(self) -> dict[str, Any]:
        """Return all figures, offset by offset, as JSON values."""
        return {"offsets": OFFSETS.tolist(), **asdict(self)}

    def describe(self) -> str:
        """Describe it in one line."""
        return (
            f"right offset of {len(OFFSETS)} on top in {100 * self.by_window:.1f} % of {self.num_windows} windows, "
            f"{100 * self.by_clip:.1f} % of {self.num_clips} clips (held-out speakers; chance {100 * CHANCE:.1f} %)"
        )
