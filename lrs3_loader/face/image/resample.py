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

import math
from collections.abc import Sequence

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


def resize_crop_spans(
    frames: Sequence[Tensor], resized: Tensor, corner: Tensor, size: int, *, is_fused: bool
) -> Tensor:
    """Compute ``resize_crop`` for the frames of several spans, of any sizes.

    Args:
        frames: u8 [n, H, W, 3] of each span, N together.
        resized, corner: i64 [N, 2], on the host.
        size: S.
        is_fused: by ``resample_spans``, one kernel per span on a GPU.

    Returns:
        u8 [N, S, S, 3].
    """
    lengths = [len(part) for part in frames]
    if not is_fused:
        split = zip(frames, resized.split(lengths), corner.split(lengths), strict=True)
        return torch.cat([resize_crop(part, shape, place, size) for part, shape, place in split])
    device = frames[0].device
    sides = torch.tensor([[part.shape[2], part.shape[1]] for part in frames])  # W, H
    length = sides.repeat_interleave(torch.tensor(lengths), 0)
    most = 2 * math.ceil(_SUPPORT * float((length / resized).clamp(min=1.0).max())) + 1
    length, resized, corner = (to_device(part, device) for part in (length, resized, corner))
    first, weights = _integer_weights(length, resized, corner, size, most)
    return resample_spans(list(frames), first.int(), weights.int())


@torch.library.custom_op("lrs3_loader::resample_spans", mutates_args=())
def resample_spans(frames: Sequence[Tensor], first: Tensor, taps: Tensor) -> Tensor:
    """Filter the frames of all spans along rows, then along columns.

    Args:
        frames: u8 [n, H, W, 3] of each span, N together.
        first: i32 [N, 2, S], the first source column of every column, and the first source row of every row.
        taps: i32 [N, 2, S, K], the weights from there on, in units of 2^-22; the frame's last pixel counts for those
            beyond it, whose weights are 0.

    Returns:
        u8 [N, S, S, 3].
    """
    lengths, parts = [len(part) for part in frames], []
    for part, place, weights in zip(frames, first.split(lengths), taps.split(lengths), strict=True):
        at = place[..., None].long() + torch.arange(weights.shape[-1], device=place.device)
        dense = [
            torch.zeros(
                *place[:, axis].shape, part.shape[2 - axis], dtype=torch.float64, device=place.device
            ).scatter_add_(-1, at[:, axis].clamp(max=part.shape[2 - axis] - 1), weights[:, axis].double())
            for axis in (0, 1)
        ]
        parts.append(_filter(part, dense[1], dense[0]))
    return torch.cat(parts)


@resample_spans.register_fake
def _(frames: Sequence[Tensor], first: Tensor, taps: Tensor) -> Tensor:
    size = first.shape[2]
    return frames[0].new_empty(len(first), size, size, 3)


@resample_spans.register_kernel("cuda")
def _(frames: Sequence[Tensor], first: Tensor, taps: Tensor) -> Tensor:
    from lrs3_loader.kernels.on_gpu import sampling

    size, lengths = first.shape[2], [len(part) for part in frames]
    out = frames[0].new_empty(len(first), size, size, 3)
    split = (tensor.split(lengths) for tensor in (first, taps, out))
    for part, *places in zip(frames, *split, strict=True):
        sampling.resample(part.contiguous(), *places)
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
    lengths = torch.full_like(resized, length)
    _, first, last, inside = _taps(lengths, resized, corner, size)
    if not inside.any():
        return torch.zeros(*inside.shape, 1, dtype=torch.float64, device=device), 0
    start, stop = int(first[inside].min()), int(last[inside].max())
    # Computed again on the device: the inputs are far smaller than the weights.
    lengths, resized, corner = (to_device(part, device) for part in (lengths, resized, corner))
    first, integers = _integer_weights(lengths, resized, corner, size, int((last - first)[inside].max()))
    at = (first[..., None] + torch.arange(integers.shape[-1], device=device) - start).clamp_(0, stop - start - 1)
    dense = torch.zeros(*inside.shape, stop - start, dtype=torch.float64, device=device)
    return dense.scatter_add_(-1, at, integers), start


def _integer_weights(
    length: Tensor, resized: Tensor, corner: Tensor, size: int, num_taps: int
) -> tuple[Tensor, Tensor]:
    """First source pixel [..., S] i64 and weights [..., S, K] f64, in whole numbers, of every crop pixel.

    Weights are 0 beyond the pixel's own taps, and for pixels outside of the resized frame.
    """
    taps = torch.arange(num_taps, device=length.device)
    centre, first, last, inside = _taps(length, resized, corner, size)
    widen = (length / resized.double())[..., None].clamp(min=1.0)
    used = inside[..., None] & (taps < (last - first)[..., None])
    weight = _cubic((taps + first[..., None] - centre[..., None] + 0.5) * (1 / widen)[..., None]) * used
    weight = weight / weight.sum(-1, keepdim=True).where(inside[..., None], 1.0)
    return first, torch.trunc(weight * _ONE + torch.copysign(torch.full_like(weight, 0.5), weight))


def _taps(length: Tensor, resized: Tensor, corner: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute, [..., S] each, a crop pixel's centre in the source, the first pixel used, the one after the last, and
    if it is inside. ``length``, ``resized`` and ``corner`` are i64 [...]."""
    position = corner[..., None] + torch.arange(size, device=corner.device)
    inside = (position >= 0) & (position < resized[..., None])
    step = (length / resized.double())[..., None]
    widen = step.clamp(min=1.0)
    centre = (position + 0.5) * step
    # Conversion to integers truncates towards 0, as in C.
    first = (centre - _SUPPORT * widen + 0.5).long().clamp_(min=0).minimum(length[..., None])
    last = (centre + _SUPPORT * widen + 0.5).long().clamp_(min=0).minimum(length[..., None])
    return centre, first, last, inside


def _cubic(x: Tensor) -> Tensor:
    """Evaluate Keys' kernel in the order of operations of Pillow."""
    x = x.abs()
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
