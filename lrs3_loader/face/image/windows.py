"""Frames of a clip in order, each together with what is known of the frames around it.

Letters: n frames appended, m frames decided, H W source size, R frames on either side.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FrameWindows:
    """Takes the frames of one clip in order and returns each, R frames later, with the rows of its neighbourhood.

    Nothing waits for the device. Frames that are not decided yet are copied, so that the others can be freed.

    Args:
        num_frames: T of the clip; its last frames are decided with the last one.
        reach: R.
    """

    def __init__(self, num_frames: int, reach: int) -> None:
        self.num_left = num_frames
        self._reach = reach
        self._frames: Tensor | None = None  # u8 [up to R, H, W, 3], not yet decided
        self._rows: Tensor | None = None  # f32 [R more, ...], from R frames before those on

    def append(self, frames: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next frames.

        Args:
            frames: u8 [n, H, W, 3].
            rows: f32 [n, ...], numbers of each frame.

        Returns:
            the frames u8 [m, H, W, 3] that are decided now, and f32 [m, ..., 2 R + 1], their rows from R frames before
            to R frames after; NaN before the first and after the last frame of the clip.

        Raises:
            ValueError: there are more frames than the clip has, or not as many rows.
        """
        if len(frames) > self.num_left or len(rows) != len(frames):
            raise ValueError(f"{len(frames)} frames with {len(rows)} faces come where {self.num_left} are left")
        self.num_left -= len(frames)
        edge = rows.new_full((self._reach, *rows.shape[1:]), torch.nan)
        if self._frames is None or self._rows is None:
            self._frames, self._rows = frames[:0], edge
        all_rows = torch.cat([self._rows, rows, *([edge] if self.num_left == 0 else [])])
        waiting = torch.cat([self._frames, frames]) if len(self._frames) else frames
        num_decided = max(0, len(all_rows) - 2 * self._reach)
        self._frames, self._rows = waiting[num_decided:].clone(), all_rows[num_decided:]
        if num_decided == 0:
            return waiting[:0], all_rows.new_zeros((0, *rows.shape[1:], 2 * self._reach + 1))
        return waiting[:num_decided], all_rows.unfold(0, 2 * self._reach + 1, 1)


def fill_forward(rows: Tensor) -> Tensor:
    """Replace rows [n, K] that begin with NaN by the last one before that does not; the first must not."""
    number = torch.arange(len(rows), device=rows.device)
    return rows[torch.where(rows[:, 0].isnan(), 0, number).cummax(0).values]
