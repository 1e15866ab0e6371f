"""Small square crops of video frames by bilinear sampling, reproducible bit for bit.

Coordinates are rounded to 1/32 pixel and results to whole levels, as in OpenCV's ``warpPerspective``, which MediaPipe
uses. Weights are then multiples of 1/1024 and every sum below is exact in f32: a crop does not depend on the device, on
the order of operations, or on the rest of the batch.

Letters: n frames, H W source size, S crop size, P = S * S.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 32  # sampling positions per pixel
#: Frames at a time: on a CPU, as many as fit the cache; elsewhere, 4 MB each at S = 256.
_SLICE = {"cpu": 1, "cuda": 64}


def crop(frames: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Compute one affine crop per frame; outside the frame, its border is repeated.

    Args:
        frames: u8 [n, H, W, 3], H and W at least 2.
        matrix: f32 [n, 2, 3], from (column, row, 1) of the crop to (x, y) of the source, in pixels with whole numbers
            at their centres.
        size: S.

    Returns:
        f32 [n, S, S, 3] of whole numbers in 0..255.

    Raises:
        ValueError: an argument has another shape or type.
    """
    _check(frames)
    if matrix.shape != (len(frames), 2, 3):
        raise ValueError(f"matrix must be [{len(frames)}, 2, 3], got {list(matrix.shape)}")
    step = _SLICE.get(frames.device.type, _SLICE["cuda"])
    out = torch.empty(len(frames), size, size, 3, device=frames.device)
    for i in range(0, len(frames), step):
        out[i : i + step] = _crop(frames[i : i + step].contiguous(), matrix[i : i + step], size)
    return out


def letterbox(frames: Tensor, size: int) -> Tensor:
    """Resize whole frames, each centred in a black square; the outermost pixels fade to black over one pixel.

    Arguments and result are those of ``crop``. Rows are interpolated first, then columns, which takes a third of the
    time of a crop.
    """
    _check(frames)
    height, width = frames.shape[1:3]
    side = max(height, width)
    top, down, rows_there = _letterbox_axis(size, side, height, frames.device)
    left, across, columns_there = _letterbox_axis(size, side, width, frames.device)
    columns = (3 * left[:, None] + torch.arange(3, device=frames.device)).flatten()
    across, columns_there = across.repeat_interleave(3), columns_there.repeat_interleave(3)
    there = rows_there[:, None] * columns_there
    step = _SLICE.get(frames.device.type, _SLICE["cuda"])
    out = torch.empty(len(frames), size, 3 * size, device=frames.device)
    for i in range(0, len(frames), step):
        lines = frames[i : i + step].flatten(2)
        upper, lower = lines.index_select(1, top).float(), lines.index_select(1, top + 1).float()
        mixed = upper.add_(lower.sub_(upper).mul_(down[:, None]))
        first, second = mixed.index_select(2, columns), mixed.index_select(2, columns + 3)
        out[i : i + step] = first.add_(second.sub_(first).mul_(across)).mul_(there).add_(0.5).floor_()
    return out.view(len(frames), size, size, 3)


def _check(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or min(frames.shape[1:3]) < 2:
        raise ValueError(f"frames must be u8 [n, H, W, 3], at least 2 x 2, got {frames.dtype} {list(frames.shape)}")


def _letterbox_axis(size: int, side: int, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Compute, for every row (or column), the first of two source pixels, the second's weight, and the share inside.

    ``side`` is the longer side of the frame, ``length`` the one along this axis.
    """
    at = torch.arange(size, device=device, dtype=torch.float32)
    steps = (at * (_STEPS * side / size) + _STEPS * (length - side) / 2).round_()
    first, share = _split_steps(steps.clamp(0, _STEPS * (length - 1)), length)
    pixels = steps / _STEPS
    outside = torch.maximum(-pixels, pixels - (length - 1))
    return first.long(), share, (1 - outside.clamp_(min=0)).clamp_(min=0)


def _crop(frames: Tensor, matrix: Tensor, size: int) -> Tensor:
    num_frames, height, width, _ = frames.shape
    at = torch.arange(size, device=matrix.device, dtype=torch.float32)
    m = (matrix * _STEPS)[:, :, :, None, None]
    steps = m[:, :, 0] * at + (m[:, :, 1] * at[:, None] + m[:, :, 2])  # [n, 2, S, S]
    x, y = steps.round_().flatten(2).unbind(1)
    sample = _sample_with_grid if frames.device.type == "cpu" and height * width <= size * size else _sample_with_gather
    value = sample(frames, x.clamp_(0, _STEPS * (width - 1)), y.clamp_(0, _STEPS * (height - 1)))
    return value.add_(0.5).floor_().view(3, num_frames, size, size).permute(1, 2, 3, 0)


def _sample_with_gather(frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample at x, y [n, P], in steps from 0 to the last pixel: [3, n, P]. Reads only the pixels that it needs."""
    num_frames, height, width, _ = frames.shape
    left, across = _split_steps(x, width)
    top, down = _split_steps(y, height)
    first = torch.arange(num_frames, device=frames.device, dtype=torch.int32) * (height * width)
    index = (top.int() * width).add_(left.int()).add_(first[:, None]).reshape(-1)
    # Two neighbours in a row are adjacent in memory: six bytes from each pixel, in overlapping rows.
    pairs = frames.view(-1).as_strided((frames.numel() // 3 - 1, 6), (3, 1))
    upper = _as_planes(pairs.index_select(0, index))
    lower = _as_planes(pairs.index_select(0, index.add_(width)))
    sides = upper.add_(lower.sub_(upper).mul_(down.reshape(-1)))  # [6, n P]
    return sides[3:].sub_(sides[:3]).mul_(across.reshape(-1)).add_(sides[:3]).view(3, num_frames, -1)


def _sample_with_grid(frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample as ``_sample_with_gather`` with ``grid_sample``: on a CPU, twice as fast for crops of most of the frame.

    ``grid_sample`` takes positions as fractions of the sides, which are exact for sides that are powers of two.
    """
    num_frames, height, width, _ = frames.shape
    rows, columns = (1 << (side - 1).bit_length() for side in (height, width))
    planes = torch.zeros(num_frames, 3, rows, columns)
    planes[:, :, :height, :width] = frames.permute(0, 3, 1, 2)
    fractions = [steps.mul(2 / _STEPS).add_(1).div_(side).sub_(1) for steps, side in ((x, columns), (y, rows))]
    grid = torch.stack(fractions, 1).transpose(1, 2)[:, None]  # [n, 1, P, 2]; x and y are contiguous, each by itself
    return F.grid_sample(planes, grid, align_corners=False)[:, :, 0].transpose(0, 1)


def _split_steps(steps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first of the two pixels to interpolate, and the weight of the second (0..1)."""
    pixels = steps / _STEPS
    first = pixels.floor().clamp_(max=size - 2)
    return first, pixels.sub_(first)


def _as_planes(pairs: Tensor) -> Tensor:
    """Convert u8 [n P, 6] to contiguous f32 [6, n P], so that sums run along memory."""
    return pairs.t().to(torch.float32, memory_format=torch.contiguous_format)
