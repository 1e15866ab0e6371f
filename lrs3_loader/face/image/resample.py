"""Pillow's bicubic ``resize`` followed by ``crop``, batched, on any device, bit for bit.

Networks get exactly the pixels they were trained on. Pillow's filter (Keys' cubic with a = -1/2, widened by the factor
of reduction against aliasing) is separable and works in integers: weights are multiples of 2^-22, and each of the two
passes ends in whole levels 0..255. Here both passes are products with a banded matrix; in f64 every sum of such
products is exact, in any order. Only the pixels inside the crop are computed.

The horizontal pass comes first, as in all versions of Pillow up to 12. Pillow 13 reverses the order for frames that are
reduced and higher than wide; there, single pixels differ from it by a few levels.

Keys, "Cubic convolution interpolation for digital image processing", 1981.

Letters: n frames, H W source size, S crop size, K filter taps, R rows and C columns of the source that are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrs3_loader.runtime.transfer import to_device

_SUPPORT = 2.0  # half width of the cubic, in pixels of the coarser of the two grids
_ONE = float(1 << 22)  # Pillow's weights are integers: 1 is 2^22
#: Source values at a time: on a CPU, as many as fit the cache; elsewhere, half a GiB.
_SLICE_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}


def resize_crop(frames: Tensor, resized: Tensor, corner: Tensor, size: int) -> Tensor:
    """Compute ``Image.resize((w, h), BICUBIC).crop((left, top, left + S, top + S))`` for every frame.

    Args:
        frames: u8 [n, H, W, 3].
        resized: i64 [n, 2], (w, h) of the whole frame after resizing, at least 1; on any device.
        corner: i64 [n, 2], (left, top) of the crop in the resized frame; on any device.
        size: S.

    Returns:
        u8 [n, S, S, 3], black outside of the resized frame.

    Raises:
        ValueError: an argument has another shape, type or range.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be u8 [n, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    num_frames, height, width, _ = frames.shape
    for name, pair in (("resized", resized), ("corner", corner)):
        if pair.shape != (num_frames, 2) or pair.dtype != torch.int64:
            raise ValueError(f"{name} must be i64 [{num_frames}, 2], got {pair.dtype} {list(pair.shape)}")
    resized, corner = resized.cpu(), corner.cpu()
    if num_frames and int(resized.min()) < 1:
        raise ValueError(f"a frame cannot be resized to {resized.min()} pixels")
    out = torch.empty(num_frames, size, size, 3, dtype=torch.uint8, device=frames.device)
    step = max(1, _SLICE_VALUES.get(frames.device.type, _SLICE_VALUES["cuda"]) // (3 * height * width))
    for i in range(0, num_frames, step):
        here = slice(i, i + step)
        columns, first_column = _weights(width, resized[here, 0], corner[here, 0], size, frames.device)
        rows, first_row = _weights(height, resized[here, 1], corner[here, 1], size, frames.device)
        window = frames[here, first_row : first_row + rows.shape[2], first_column : first_column + columns.shape[2]]
        out[here] = _filter(window, rows, columns)
    return out


def _filter(window: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Filter windows u8 [n, R, C, 3] with weights f64 [n, S, R] and f64 [n, S, C]; returns u8 [n, S, S, 3]."""
    num_frames, num_rows, num_columns, _ = window.shape
    size = rows.shape[1]
    planes = window.transpose(2, 3).to(torch.float64, memory_format=torch.contiguous_format)  # [n, R, 3, C]
    narrow = _to_levels(planes.view(num_frames, -1, num_columns) @ columns.transpose(1, 2))  # [n, R 3, S]
    small = _to_levels(rows @ narrow.view(num_frames, num_rows, 3 * size))  # [n, S, 3 S]
    return small.view(num_frames, size, 3, size).transpose(2, 3).to(torch.uint8)


def _to_levels(sums: Tensor) -> Tensor:
    return sums.div_(_ONE).add_(0.5).floor_().clamp_(0, 255)


def _weights(length: int, resized: Tensor, corner: Tensor, size: int, device: torch.device) -> tuple[Tensor, int]:
    """Compute the filter weights along one axis: f64 [n, S, used] for the consecutive source pixels from ``start``.

    They are 0 for crop pixels outside of the resized frame. ``resized`` and ``corner`` [n] are on the host.
    """
    _, first, last, inside = _taps(length, resized, corner, size)
    if not inside.any():
        return torch.zeros(*inside.shape, 1, dtype=torch.float64, device=device), 0
    start, stop = int(first[inside].min()), int(last[inside].max())
    taps = torch.arange(int((last - first)[inside].max()), device=device)
    # Computed again on the device: the inputs are far smaller than the weights.
    centre, first, last, inside = _taps(length, to_device(resized, device), to_device(corner, device), size)
    widen = (length / to_device(resized, device).double())[:, None].clamp(min=1.0)
    used = inside[..., None] & (taps < (last - first)[..., None])
    at = (first[..., None] + taps - start).clamp_(0, stop - start - 1)  # [n, S, K]
    weight = _cubic((taps + first[..., None] - centre[..., None] + 0.5) * (1 / widen)[..., None]) * used
    weight = weight / weight.sum(-1, keepdim=True).where(inside[..., None], 1.0)
    integers = torch.trunc(weight * _ONE + torch.copysign(torch.full_like(weight, 0.5), weight))
    dense = torch.zeros(*inside.shape, stop - start, dtype=torch.float64, device=device)
    return dense.scatter_add_(-1, at, integers), start


def _taps(length: int, resized: Tensor, corner: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute, [n, S] each, a crop pixel's centre in the source, the first pixel used, the one after the last, and if
    it is inside."""
    position = corner[:, None] + torch.arange(size, device=corner.device)
    inside = (position >= 0) & (position < resized[:, None])
    step = (length / resized.double())[:, None]
    widen = step.clamp(min=1.0)
    centre = (position + 0.5) * step
    # Conversion to integers truncates towards 0, as in C.
    first = (centre - _SUPPORT * widen + 0.5).long().clamp_(0, length)
    last = (centre + _SUPPORT * widen + 0.5).long().clamp_(0, length)
    return centre, first, last, inside


def _cubic(x: Tensor) -> Tensor:
    """Evaluate Keys' kernel in the order of operations of Pillow."""
    x = x.abs()
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
