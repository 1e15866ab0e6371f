"""How well mouth and sound go together at each offset, and how often the right offset is on top.

An offset of k frames (25 fps) compares the mouth at frame t with the sound at frame t + k: the best offset is positive
where the sound comes late. Every window is compared at all offsets in -10..10, so windows within 10 frames of a clip's
ends, where some would be missing, are not used, nor are those with a frame in which no face was found.

Shape letters: T frames of a clip, W = T - 4 windows, n of them used, K = 21 offsets, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrs3_loader.run.offsets import MAX_OFFSET
from lrs3_loader.stream.tasks import MOUTH, SYNC_FRAMES, SYNC_ROWS, Raw
from lrs3_loader.syncnet.model import MOUTH_WIDTH, SyncNetModel
from lrs3_loader.types import ROWS_PER_FRAME

OFFSETS = np.arange(-MAX_OFFSET, MAX_OFFSET + 1)
CHANCE = 1 / len(OFFSETS)
READS = Raw(fields=("hubert", "idexp_lm3d", "valid"))  # what a sample must hold: a task for ``ShardStream``


@dataclass(frozen=True)
class ClipScores:
    """One clip at every offset."""

    key: str
    windows: np.ndarray  # [n, K] f32, cosines; n = 0 where the clip is too short to say

    @property
    def mean(self) -> np.ndarray:
        """[K], averaged over the clip's windows."""
        return self.windows.mean(0)

    @property
    def offset_frames(self) -> int | None:
        """The best offset; positive: the sound comes late. None where the clip is too short to say."""
        return int(OFFSETS[self.mean.argmax()]) if len(self.windows) else None

    @property
    def confidence(self) -> float | None:
        """How far the best offset stands out: its mean cosine, less the median over all offsets (0..2)."""
        return float(self.mean.max() - np.median(self.mean)) if len(self.windows) else None


@torch.inference_mode()
def score_clip(model: SyncNetModel, sample: Mapping[str, Any]) -> ClipScores:
    """Compare all windows of a sample of task ``READS`` at all offsets, on the model's device."""
    device = model.bias.device
    mouth = torch.from_numpy(sample["idexp_lm3d"][:, MOUTH].reshape(-1, MOUTH_WIDTH)).to(device)
    sound = torch.from_numpy(sample["hubert"]).to(device).float()
    num_windows = len(mouth) - SYNC_FRAMES + 1
    if num_windows <= 2 * MAX_OFFSET:
        return ClipScores(sample["__key__"], np.zeros((0, len(OFFSETS)), np.float32))
    mouths = model.embed_mouth(mouth.unfold(0, SYNC_FRAMES, 1).transpose(1, 2))  # [W, E]
    sounds = model.embed_sound(sound.unfold(0, SYNC_ROWS, ROWS_PER_FRAME).transpose(1, 2))  # [W, E]
    around = sounds.unfold(0, len(OFFSETS), 1)  # [W - 20, E, K]: the sounds about each window that has all of them
    scores = torch.einsum("ne,nek->nk", mouths[MAX_OFFSET : num_windows - MAX_OFFSET], around)
    valid: np.ndarray = sample["valid"][MAX_OFFSET : len(mouth) - MAX_OFFSET]
    whole = np.lib.stride_tricks.sliding_window_view(valid, SYNC_FRAMES).all(axis=1)
    return ClipScores(sample["__key__"], scores.cpu().numpy()[whole])


@dataclass(frozen=True)
class Accuracy:
    """How often the right offset, 0, has the top score among -10..10. By chance: 1 in 21."""

    by_window: float  # share of single windows, of a fifth of a second
    by_clip: float  # share of clips, by the mean score over their windows
    num_windows: int
    num_clips: int
    mean_score: tuple[float, ...]  # [K] cosine at each offset, over all windows
    clip_offsets: tuple[int, ...]  # [K] clips that have each offset on top

    @classmethod
    def of(cls, scored: Iterable[ClipScores]) -> Accuracy:
        """Over clips whose sound is in place; those too short to say are left out.

        Raises:
            ValueError: none is left.
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
