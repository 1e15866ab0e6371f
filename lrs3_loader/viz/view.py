"""Views: which square of the source frame a panel shows, and how source pixels map to panel pixels.

In both, whole numbers are pixel centres and y goes down: panel = (source - corner + 1/2) * scale - 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

GROUND = (0.11, 0.12, 0.14)  # where there is no frame
MARGIN = 1.5  # side of the face view over the larger extent of the landmarks
WHOLE_FRAME = 0.8  # a face view larger than this share of the frame shows all of it instead


def blank_panel(size: int) -> np.ndarray:
    """Return plain ground, [size, size, 3] f32 in 0..1."""
    return np.full((size, size, 3), GROUND, dtype=np.float32)


@dataclass(frozen=True)
class View:
    """A square of ``side`` source pixels, drawn as a panel of ``size`` pixels."""

    left: int  # source pixels, may lie outside the frame
    top: int
    side: int
    size: int

    @classmethod
    def of_frame(cls, height: int, width: int, size: int) -> View:
        """View the whole frame, in the middle of its square."""
        side = max(height, width)
        return cls((width - side) // 2, (height - side) // 2, side, size)

    @classmethod
    def around(cls, points: np.ndarray, size: int) -> View:
        """View the square around ``points`` [..., 2], with a margin."""
        low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
        side = max(16, int(np.ceil(MARGIN * (high - low).max())))
        left, top = np.rint((low + high - side + 1) / 2).astype(int)
        return cls(int(left), int(top), side, size)

    @classmethod
    def of_face(cls, landmarks: np.ndarray, height: int, width: int, size: int) -> View:
        """View the square around all ``landmarks`` [..., 2] of a clip, or the whole frame where they fill most."""
        view = cls.around(landmarks, size)
        return view if view.side <= WHOLE_FRAME * max(height, width) else cls.of_frame(height, width, size)

    @property
    def scale(self) -> float:
        """Panel pixels per source pixel."""
        return self.size / self.side

    def to_panel(self, points: np.ndarray) -> np.ndarray:
        """Source pixels [..., 2] to panel pixels."""
        return (points - (self.left, self.top) + 0.5) * self.scale - 0.5

    def show(self, frame: np.ndarray) -> np.ndarray:
        """The panel of a ``frame`` [H, W, 3] u8: [size, size, 3] f32 in 0..1; plain ground outside the frame."""
        square = blank_panel(self.side)
        rows = slice(max(self.top, 0), max(self.top + self.side, 0))
        columns = slice(max(self.left, 0), max(self.left + self.side, 0))
        part = frame[rows, columns].astype(np.float32) / 255
        top, left = rows.start - self.top, columns.start - self.left
        square[top : top + part.shape[0], left : left + part.shape[1]] = part
        planes = torch.from_numpy(square).permute(2, 0, 1)[None]
        shown = interpolate(planes, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        return shown[0].permute(1, 2, 0).contiguous().numpy()
