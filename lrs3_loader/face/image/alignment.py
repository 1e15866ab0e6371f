"""Cuts face and mouth out of every frame: upright, of one size, and steady.

This is the convention of auto_avsr, https://github.com/mpc001/auto_avsr, ``preparation/detectors/retinaface``: a
similarity takes eight points that move little (corners of the eyes, bridge and base of the nose, corners of the mouth)
to those of a mean face in a picture of 256 x 256 pixels. Their shape is the mean over the frames t - 6 to t + 6 (fewer,
and as many on either side, near the ends of the clip), moved to where all landmarks of frame t have their centre. The
mouth is the 96 x 96 pixels of that picture around the centre of its 20 landmarks, in grey. There the similarity is
cv2's least median of squares and the picture is resampled bilinearly, then cut; here it is least squares, the mean face
is symmetric, and pixels are sampled from the frame once. Outside the frame, its border is repeated (there: black).

The face is a square of the same picture, from above the forehead to below the chin: the base of the nose is in its
middle, and the mouth in its lower half.

Landmarks are rounded to 1/32 pixel, so that all sums are exact in f64: crops do not depend on how the frames of a clip
were divided, nor on the order of operations.

Letters: n frames, S side of a crop, K = 13 frames of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrs3_loader.face.image.warp import crop
from lrs3_loader.face.image.windows import FrameWindows, fill_forward

FACE_RULE = "similarity to a symmetric mean face in 256 x 256 px, smoothed over 13 frames; its 176 px square, resampled"
MOUTH_RULE = "the same similarity (that of auto_avsr); the 96 x 96 px around the centre of the mouth, grey"
MOUTH_SIZE = 96
SMOOTHED_FRAMES = 13
_HALF = SMOOTHED_FRAMES // 2
PICTURE = 256  # side of the picture that faces are aligned in
_MIDDLE = 129.0
#: Where the eight points are, by their numbers in iBUG-68: whole or half pixels.
_MEAN_FACE = {
    28: (_MIDDLE, 107.0),  # bridge of the nose
    33: (_MIDDLE, 137.0),  # its base
    36: (_MIDDLE - 37, 94.0),  # corners of the eyes, from the person's right to the left
    39: (_MIDDLE - 16.5, 94.5),
    42: (_MIDDLE + 16.5, 94.5),
    45: (_MIDDLE + 37, 94.0),
    48: (_MIDDLE - 22.5, 157.0),  # corners of the mouth
    54: (_MIDDLE + 22.5, 157.0),
}
_MOUTH = slice(48, 68)
_MOUTH_CENTRE = (_MIDDLE, 158.0)
FACE_SIDE = 176.0  # of the face's square in the picture
_FACE_CENTRE = (_MIDDLE, 137.0)
_STEPS = 32  # of a pixel, that landmarks are rounded to
MAX_OVERSAMPLING = 4  # of frames whose face is larger than the crop


@dataclass(frozen=True)
class AlignedFaces:
    """Where the faces of n frames are."""

    to_frame: Tensor  # f64 [n, 2, 3]: from (column, row, 1) of the picture to (x, y) of the frame
    mouth_corner: Tensor  # f64 [n, 2]: column and row in the picture of the first pixel of the mouth, whole numbers

    def face(self, size: int) -> Tensor:
        """Return the transforms f32 [n, 2, 3] from (column, row, 1) of face crops of this side to (x, y) of the frame.

        Whole numbers are at pixel centres on both sides.
        """
        step = FACE_SIDE / size
        centre = torch.tensor(_FACE_CENTRE, dtype=torch.float64, device=self.to_frame.device)
        return _compose(self.to_frame, step, (centre - step * (size - 1) / 2).expand(len(self.to_frame), 2))

    def mouth(self) -> Tensor:
        """Return the transforms f32 [n, 2, 3] from (column, row, 1) of mouth crops to (x, y) of the frame."""
        return _compose(self.to_frame, 1.0, self.mouth_corner)


class FaceAligner:
    """Aligns the faces of one clip, whose frames it is given in order; see ``FrameWindows``."""

    def __init__(self, num_frames: int) -> None:
        self._windows = FrameWindows(num_frames, _HALF)
        self._num_frames, self._num_decided = num_frames, 0
        self._last: Tensor | None = None  # f64 [1, 8], the alignment of the last frame

    def append(self, frames: Tensor, points: Tensor) -> tuple[Tensor, AlignedFaces]:
        """Take the next frames and return those that are decided now.

        Args:
            frames: u8 [n, H, W, 3].
            points: f32 [n, 68, 2], iBUG-68 landmarks in pixels, whole at their centres; NaN where no face was found.
                There, the frames around decide; where they have no face either, the last alignment is kept, and
                before the first face the middle of the frame is taken.

        Returns:
            u8 [m, H, W, 3], and where the faces in them are.
        """
        if self._last is None:
            self._last = _whole_frame(frames)
        decided, windows = self._windows.append(frames, points)
        first, self._num_decided = self._num_decided, self._num_decided + len(decided)
        number = torch.arange(first, self._num_decided, device=points.device)
        rows = _align(windows, torch.minimum(number, self._num_frames - 1 - number))
        rows = fill_forward(torch.cat([self._last, rows]))
        self._last = rows[-1:]
        return decided, AlignedFaces(rows[1:, :6].view(-1, 2, 3), rows[1:, 6:])


def cut(frames: Tensor, transforms: Tensor, size: int, oversampling: int = 1) -> Tensor:
    """Cut a square out of each frame, f32 [n, S, S, 3] of whole numbers in 0..255.

    Args:
        frames: u8 [n, H, W, 3].
        transforms: f32 [n, 2, 3], from (column, row, 1) of the crop to (x, y) of the frame.
        size: S.
        oversampling: how many samples in each direction are averaged to one pixel: a crop that is much smaller than
            what it shows would flicker otherwise.
    """
    if oversampling == 1:
        return crop(frames, transforms, size).float()
    k = oversampling
    scaled = transforms.double() / k
    shift = scaled[:, :, :2].sum(-1) * ((1 - k) / 2)
    fine = torch.cat([scaled[:, :, :2], (transforms[:, :, 2].double() + shift)[:, :, None]], 2).float()
    samples = crop(frames, fine, k * size).float().view(len(frames), size, k, size, k, 3)
    return samples.sum((2, 4)).add_(k * k / 2).div_(k * k).floor_()


def oversampling_of(transforms: Tensor) -> Tensor:
    """Return how many samples each crop needs in a direction: about one for each pixel of the frame, i64 [n]."""
    pixels = transforms[:, :, 0].double().square().sum(-1).sqrt()
    return (pixels - 0.25).ceil().clamp(1, MAX_OVERSAMPLING).long()


def _align(windows: Tensor, reach: Tensor) -> Tensor:
    """Align frames by windows f32 [n, 68, 2, K], of whose frames ``reach`` [n] on either side count.

    Returns:
        f64 [n, 8]: the six numbers of ``to_frame``, and ``mouth_corner``; NaN without a face.
    """
    offset = torch.arange(SMOOTHED_FRAMES, device=windows.device) - _HALF
    steps = (windows * _STEPS).round().double()
    counts = windows.isfinite().all(2).all(1) & (offset.abs() <= reach[:, None])  # [n, K]
    number = counts.sum(1).double()[:, None]
    total = torch.where(counts[:, None, None], steps, 0.0).sum(-1)  # [n, 68, 2], of ``number`` frames
    here = torch.where(counts[:, _HALF, None], steps[..., _HALF].nan_to_num().sum(1), total.sum(1) / number)
    moved = (here - total.sum(1) / number) / 68

    mean = torch.tensor(list(_MEAN_FACE.values()), dtype=torch.float64, device=windows.device)
    points = total[:, list(_MEAN_FACE)]
    centred, wanted = 8 * points - points.sum(1, keepdim=True), 8 * mean - mean.sum(0)
    squares = centred.square().sum((1, 2))
    along = (centred * wanted).sum((1, 2))
    across = (centred[..., 0] * wanted[:, 1] - centred[..., 1] * wanted[:, 0]).sum(1)
    # q = (along, -across; across, along) p / squares, and back again
    scale = squares / (along.square() + across.square())
    cosine, sine = along * scale / (_STEPS * number[:, 0]), across * scale / (_STEPS * number[:, 0])
    linear = torch.stack([cosine, sine, -sine, cosine], 1).view(-1, 2, 2)
    centre = (points.sum(1) / (8 * number) + moved) / _STEPS
    to_frame = torch.cat([linear, (centre - _apply(linear, mean.sum(0) / 8))[:, :, None]], 2)

    mouth = total[:, _MOUTH].sum(1) / 20 - points.sum(1) / 8
    turned = torch.stack([along * mouth[:, 0] - across * mouth[:, 1], across * mouth[:, 0] + along * mouth[:, 1]], 1)
    corner = (turned / squares[:, None] + mean.sum(0) / 8 - MOUTH_SIZE // 2).round()
    rows = torch.cat([to_frame.flatten(1), corner], 1)
    return rows.masked_fill(~rows.isfinite().all(1, keepdim=True), torch.nan)


def _apply(linear: Tensor, points: Tensor) -> Tensor:
    """Multiply matrices [n, 2, 2] and points [2] or [n, 2], element by element: no kernel chooses an order."""
    return linear[:, :, 0] * points[..., :1] + linear[:, :, 1] * points[..., 1:]


def _compose(to_frame: Tensor, step: float, corner: Tensor) -> Tensor:
    """Return the transforms of crops whose first pixel has its centre at ``corner`` [n, 2] of the picture."""
    linear = to_frame[:, :, :2]
    return torch.cat([linear * step, (to_frame[:, :, 2] + _apply(linear, corner))[:, :, None]], 2).float()


def _whole_frame(frames: Tensor) -> Tensor:
    """Return the alignment of the middle of a frame, f64 [1, 8]."""
    height, width = frames.shape[1:3]
    scale = min(height, width) / PICTURE
    left, top = ((side - 1 - scale * (PICTURE - 1)) / 2 for side in (width, height))
    corner = [centre - MOUTH_SIZE // 2 for centre in _MOUTH_CENTRE]
    return torch.tensor([[scale, 0, left, 0, scale, top, *corner]], dtype=torch.float64, device=frames.device)
