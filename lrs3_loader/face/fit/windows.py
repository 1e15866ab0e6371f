"""How the frames of many clips are cut and gathered into batches of bounded size.

Letters: B sequences of a batch, T frames of the longest. "Frames" are numbered over all clips in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lrs3_loader.runtime.batching import batch_by_length, round_up

WINDOW_FRAMES = 512  # a longer clip is fitted in windows of this length ...
MARGIN_FRAMES = 32  # ... of which this much at inner ends is fitted twice and used once


@dataclass(frozen=True)
class Window:
    """Frames ``frames`` [n] of one clip, rising, fitted together; those at ``keep`` are used."""

    clip: int
    frames: torch.Tensor  # [n] i64
    keep: slice


@dataclass(frozen=True)
class WindowBatch:
    """Windows side by side, the shorter ones padded with their last frame."""

    windows: list[Window]
    clip: torch.Tensor  # [B] i64
    index: torch.Tensor  # [B, T] i64 frame numbers
    real: torch.Tensor  # [B, T] bool, false for padding

    @property
    def neighbours(self) -> torch.Tensor:
        """[B, T - 1] whether a frame and the next follow each other in the clip."""
        return self.real[:, 1:] & (self.index[:, 1:] == self.index[:, :-1] + 1)

    def scatter(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Write the rows to keep of ``values`` [B, T, ...] into ``target`` [frames, ...]."""
        for row, window in enumerate(self.windows):
            target[self.index[row, window.keep]] = values[row, window.keep]


def split_into_windows(lengths: Sequence[int]) -> list[Window]:
    """All frames of clips of these ``lengths``, in overlapping windows that keep each frame once."""
    found, first = [], 0
    for clip, length in enumerate(lengths):
        last = first + length
        for keep in range(first, last, WINDOW_FRAMES):
            keep_stop = min(keep + WINDOW_FRAMES, last)
            start, stop = max(first, keep - MARGIN_FRAMES), min(keep_stop + MARGIN_FRAMES, last)
            found.append(Window(clip, torch.arange(start, stop), slice(keep - start, keep_stop - start)))
        first = last
    return found


def batches(
    parts: Sequence[Window], batch_frames: int, device: torch.device, length_step: int = 1
) -> Iterator[WindowBatch]:
    """Windows of like length together, at most ``batch_frames`` frames (padding included) or one window a batch.

    Batches are as long as their longest window, rounded up to a multiple of ``length_step``, so that there are few
    different lengths.
    """
    lengths = [len(part.frames) for part in parts]
    for indices in batch_by_length(lengths, batch_frames, length_step=length_step):
        yield _batch([parts[i] for i in indices], device, length_step)


def _batch(parts: list[Window], device: torch.device, length_step: int) -> WindowBatch:
    longest = round_up(len(parts[0].frames), length_step)
    index = torch.stack([_padded(part.frames, longest) for part in parts])
    real = torch.arange(longest) < torch.tensor([[len(part.frames)] for part in parts])
    clip = torch.tensor([part.clip for part in parts])
    return WindowBatch(parts, clip.to(device), index.to(device), real.to(device))


def _padded(frames: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat((frames, frames[-1:].expand(length - len(frames))))
