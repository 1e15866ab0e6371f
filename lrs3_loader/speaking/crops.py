"""Cuts the lower face out of every frame, as LR-ASD's training and demo do.

There, the box of the face is made a square of side s. Its centre and side are replaced by their medians over 13
frames. A square of 1.4 s, 0.2 s lower, is resized to 224 pixels and made grey. Its central 112 x 112 pixels are used:
0.7 s, from the eyes to below the chin. Here those pixels are sampled from the frame directly; the box is that of the
mesh of the face, and outside the frame its border is repeated (there: grey level 110).

https://github.com/Junhua-Liao/LR-ASD, ``Columbia_test.py``, which follows TalkNet's ``demoTalkNet.py``.

Letters: n frames, T frames of a clip, L landmarks, S = 112.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS
from lrs3_loader.face.image.colour import to_grey
from lrs3_loader.face.image.warp import crop
from lrs3_loader.face.image.windows import FrameWindows, fill_forward
from lrs3_loader.runtime.transfer import to_device
from lrs3_loader.speaking.network import FACE_SIZE

SIDE = 0.7  # of the crop over that of the box
LOWER = 0.2  # how far below the centre of the box that of the crop lies, in sides of the box
SMOOTHED_FRAMES = 13
_HALF = SMOOTHED_FRAMES // 2


class FaceCropper:
    """Cuts the faces of one clip. ``append`` takes its frames in order and returns the crops six frames behind.

    Args:
        num_frames: T; the crops of the last frames come with the last frame.
    """

    def __init__(self, num_frames: int) -> None:
        self._windows = FrameWindows(num_frames, _HALF)
        self._last: Tensor | None = None  # f32 [1, 3], the square of the last crop

    def append(self, frames: Tensor, points: Tensor) -> Tensor:
        """Take the next frames and return the crops that are decided now.

        Args:
            frames: u8 [n, H, W, 3].
            points: f32 [n, L, 2 or 3], the landmarks (L >= 468) in pixels, whole at their centres; NaN where no face
                was found. There, the smoothed square of the frames around is used, or the last one, or the whole frame.

        Returns:
            u8 [m, S, S], grey.

        Raises:
            ValueError: there are more frames than the clip has, or other shapes.
        """
        if self._last is None:
            height, width = frames.shape[1:3]
            whole = torch.tensor([[(width - 1) / 2, (height - 1) / 2, min(height, width)]])
            self._last = to_device(whole, points.device)
        decided, squares = self._windows.append(frames, face_squares(points))
        if len(decided) == 0:
            return torch.zeros(0, FACE_SIZE, FACE_SIZE, dtype=torch.uint8, device=frames.device)
        chosen = fill_forward(torch.cat([self._last, squares.nanmedian(-1).values]))
        self._last = chosen[-1:]
        return crop_squares(decided, chosen[1:])


def face_squares(points: Tensor) -> Tensor:
    """Return the square on the longer side of the mesh's box, centre and side (x, y, s): [n, 3]; NaN without a face."""
    if points.ndim != 3 or points.shape[1] < NUM_MESH_POINTS:
        raise ValueError(f"points must be [n, {NUM_MESH_POINTS} or more, 2 or 3], got {list(points.shape)}")
    mesh = points[:, :NUM_MESH_POINTS, :2]
    low, high = mesh.amin(1), mesh.amax(1)
    return torch.cat([(low + high) / 2, (high - low).amax(1, keepdim=True)], 1)


def crop_squares(frames: Tensor, squares: Tensor) -> Tensor:
    """Cut the lower face, grey u8 [n, S, S], out of frames u8 [n, H, W, 3] whose faces have these squares [n, 3]."""
    x, y, side = squares.unbind(1)
    step = SIDE * side / FACE_SIZE
    first = (1 - FACE_SIZE) / 2 * step  # from the centre to that of the first pixel
    zero = torch.zeros_like(step)
    rows = [torch.stack([step, zero, x + first], 1), torch.stack([zero, step, y + LOWER * side + first], 1)]
    return to_grey(crop(frames, torch.stack(rows, 1), FACE_SIZE))
