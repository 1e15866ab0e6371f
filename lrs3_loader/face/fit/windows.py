"""Cut the frames of many clips into windows, and gather these into batches of bounded size.

Letters: N frames of all clips, concatenated and numbered in that order; n frames of a window; B windows of a batch,
T frames of the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lrs3_loader.face.fit.terms import State
from lrs3_loader.runtime.batching import batch_by_length, round_up
from lrs3_loader.runtime.transfer import to_device

WINDOW_FRAMES = 512  # longer clips are fitted in windows that keep this many frames
MARGIN_FRAMES = 32  # additional frames at inner ends: fitted with both windows, kept from one
_MIXED_STEP, _EQUAL_STEP = 16, 4  # frames


@dataclass(frozen=True)
class Window:
    """Frames of one clip that are fitted together."""

    clip: int
    frames: torch.Tensor  # [n] i64, ascending
    keep: slice  # those whose result is kept


@dataclass(frozen=True)
class WindowBatch:
    """Windows of one batch; shorter ones are padded with their last frame."""

    windows: list[Window]
    clip: torch.Tensor  # [B] i64
    index: torch.Tensor  # [B, T] i64 frame numbers
    real: torch.Tensor  # [B, T] bool, false for padding

    def scatter(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Write the frames to keep of ``values`` [B, T, ...] into ``target`` [N, ...]."""
        frames, places = (to_device(part, target.device) for part in self._kept())
        target[frames] = values.flatten(0, 1)[places]

    def scatter_state(self, target: State, state: State) -> None:
        """Write the frames to keep of ``state`` into ``target``, whose frames are [N, ...]; the identity is left."""
        for name in ("exp", "rotation", "translation"):
            self.scatter(getattr(target, name), getattr(state, name))

    def _kept(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of the frames to keep, and their places in the batch [B T], on the host."""
        num_frames = self.index.shape[1]
        places = [torch.arange(len(window.frames))[window.keep] for window in self.windows]
        frames = [window.frames[place] for window, place in zip(self.windows, places, strict=True)]
        rows = [row * num_frames + place for row, place in enumerate(places)]
        return torch.cat(frames), torch.cat(rows)


def split_into_windows(lengths: Sequence[int]) -> list[Window]:
    """Cut clips of these ``lengths`` into overlapping windows, which keep each frame once."""
    found, first = [], 0
    for clip, length in enumerate(lengths):
        last = first + length
        for keep in range(first, last, WINDOW_FRAMES):
            keep_stop = min(keep + WINDOW_FRAMES, last)
            start, stop = max(first, keep - MARGIN_FRAMES), min(keep_stop + MARGIN_FRAMES, last)
            found.append(Window(clip, torch.arange(start, stop), slice(keep - start, keep_stop - start)))
        first = last
    return found


def batches(parts: Sequence[Window], batch_frames: int, device: torch.device, *, mixed: bool) -> Iterator[WindowBatch]:
    """Gather windows into batches of at most ``batch_frames`` frames, padding included.

    A longer window is a batch by itself. With ``mixed``, windows of similar length share a batch, padded to a multiple
    of 16 frames, so that there are few shapes. Otherwise each window is padded to a multiple of 4 frames, whatever its
    neighbours, and shares a batch with others of that length only: it then has the shape, and the place relative to 16
    bytes of memory, that it has alone.
    """
    step = _MIXED_STEP if mixed else _EQUAL_STEP
    lengths = [round_up(len(part.frames), step) for part in parts]
    for numbers in batch_by_length(lengths, batch_frames, min_fill=0.0 if mixed else 1.0):
        yield _batch([parts[number] for number in numbers], lengths[numbers[0]], device)


def _batch(windows: list[Window], length: int, device: torch.device) -> WindowBatch:
    place = torch.arange(length)
    index = torch.stack([window.frames[place.clamp(max=len(window.frames) - 1)] for window in windows])
    real = place < torch.tensor([[len(window.frames)] for window in windows])
    clip = torch.tensor([window.clip for window in windows])
    return WindowBatch(windows, *(to_device(part, device) for part in (clip, index, real)))
