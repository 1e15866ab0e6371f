"""Brightness and colour differences of RGB frames, in whole numbers that do not depend on the device.

The matrix is that of BT.601 in full range, as in JPEG: ``Y = 0.299 R + 0.587 G + 0.114 B``,
``Cb = 128 + (B - Y) / 1.772``, ``Cr = 128 + (R - Y) / 1.402`` (ITU-T T.871).

Letters: n frames, S side (even).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights of red, green and blue, times 2^14 and rounded so that they add up (OpenCV's): sums are exact in f32.
_ONE = 1 << 14
_Y = (4899.0, 9617.0, 1868.0)
_CB = (-2765.0, -5427.0, 8192.0)
_CR = (8192.0, -6860.0, -1332.0)


def to_grey(frames: Tensor) -> Tensor:
    """Return the brightness of frames of whole numbers in 0..255, u8 or f32 [..., 3]: u8 [...]."""
    return _weighted(frames, _Y, 0).to(torch.uint8)


def to_yuv420(frames: Tensor) -> Tensor:
    """Convert frames to planes as video encoders take them.

    Args:
        frames: f32 [n, S, S, 3], RGB, whole numbers in 0..255.

    Returns:
        u8 [n, 3 S / 2, S]: S rows of brightness, then S / 4 rows of each colour difference, S / 2 x S / 2 numbers that
        are of 2 x 2 pixels each.
    """
    num_frames, size = frames.shape[:2]
    quarters = frames.view(num_frames, size // 2, 2, size // 2, 2, 3).sum((2, 4)).div_(4).add_(0.5).floor_()
    differences = [_weighted(quarters, weights, 128).clamp_(0, 255) for weights in (_CB, _CR)]
    planes = [_weighted(frames, _Y, 0), *(part.view(num_frames, size // 4, size) for part in differences)]
    return torch.cat(planes, 1).to(torch.uint8)


def grey_to_yuv420(frames: Tensor) -> Tensor:
    """Return grey frames u8 [n, S, S] as planes u8 [n, 3 S / 2, S] without colour."""
    return torch.cat([frames, torch.full_like(frames[:, : frames.shape[1] // 2], 128)], 1)


def _weighted(frames: Tensor, weights: tuple[float, float, float], offset: int) -> Tensor:
    red, green, blue = frames.unbind(-1)
    total = red * weights[0] + green * weights[1] + blue * weights[2]
    return total.add_(_ONE / 2 + offset * _ONE).div_(_ONE).floor_()
