"""Small square crops out of video frames by bilinear sampling, exact to the last bit.

Coordinates are rounded to 1/32 pixel and results to whole grey levels, as OpenCV's ``warpPerspective`` does, which
MediaPipe feeds its networks with. Weights are then multiples of 1/1024 and every sum below is exact in f32: a crop
does not depend on the device, on the order of operations, or on what else is in the batch.

Letters: n frames, H W source size, S crop size, P = S * S.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 32  # sampling positions in a pixel
_SLICE = {"cpu": 1}  # frames at a time: what fits the cache
_SLICE_ELSEWHERE = 64  # bounds memory: about 4 MB a frame at S = 256


def crop(frames: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Affine crops, one a frame; outside the frame its border is repeated.

    frames: u8 [n, H, W, 3], H and W at least 2. matrix: f32 [n, 2, 3], from the crop's (column, row, 1) to the
    source's (x, y), in pixels, whole numbers at pixel centres.
    Returns f32 [n, S, S, 3] of whole numbers in 0..255. Raises ``ValueError`` on frames of another kind.
    """
    _check(frames)
    if matrix.shape != (len(frames), 2, 3):
        raise ValueError(f"matrix must be [{len(frames)}, 2, 3], got {list(matrix.shape)}")
    step = _SLICE.get(frames.device.type, _SLICE_ELSEWHERE)
    out = torch.empty(len(frames), size, size, 3, device=frames.device)
    for i in range(0, len(frames), step):
        out[i : i + step] = _crop(frames[i : i + step].contiguous(), matrix[i : i + step], size)
    return out


def letterbox(frames: Tensor, size: int) -> Tensor:
    """Whole frames, each centred in a black square; the outermost pixels fade out over one pixel.

    frames and result as those of ``crop``. Rows are mixed first, then columns: three times as fast as a crop.
    """
    _check(frames)
    height, width = frames.shape[1:3]
    side = max(height, width)
    top, down, rows_there = _letterbox_axis(size, side, height, frames.device)
    left, across, columns_there = _letterbox_axis(size, side, width, frames.device)
    columns = (3 * left[:, None] + torch.arange(3, device=frames.device)).flatten()
    across, columns_there = across.repeat_interleave(3), columns_there.repeat_interleave(3)
    there = rows_there[:, None] * columns_there
    step = _SLICE.get(frames.device.type, _SLICE_ELSEWHERE)
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
    """Of a letterbox: for every row (or column) the first of two source pixels, the share of the second, and how much
    of the sample lies on the frame. ``side``: the longer one of the frame; ``length``: that along the line."""
    at = torch.arange(size, device=device, dtype=torch.float32)
    steps = (at * (_STEPS * side / size) + _STEPS * (length - side) / 2).round_()
    first, share = _split_steps(steps.clamp(0, _STEPS * (length - 1)), length)
    return first.long(), share, _coverage(steps, length)


def _crop(frames: Tensor, matrix: Tensor, size: int) -> Tensor:
    num_frames, height, width, _ = frames.shape
    x, y = _positions(matrix, size)
    sample = _sample_with_grid if frames.device.type == "cpu" and height * width <= size * size else _sample_with_gather
    value = sample(frames, x.clamp_(0, _STEPS * (width - 1)), y.clamp_(0, _STEPS * (height - 1)))
    return value.add_(0.5).floor_().view(3, num_frames, size, size).permute(1, 2, 3, 0)


def _sample_with_gather(frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples [3, n, P] at x, y [n, P], in steps from 0 to the last pixel. Reads no more than it needs."""
    num_frames, height, width, _ = frames.shape
    left, across = _split_steps(x, width)
    top, down = _split_steps(y, height)
    first = torch.arange(num_frames, device=frames.device, dtype=torch.int32) * (height * width)
    index = (top.int() * width).add_(left.int()).add_(first[:, None]).reshape(-1)
    # Two neighbours in a row lie side by side in memory: six bytes from any pixel on, rows that overlap.
    pairs = frames.view(-1).as_strided((frames.numel() // 3 - 1, 6), (3, 1))
    upper = _as_planes(pairs.index_select(0, index))
    lower = _as_planes(pairs.index_select(0, index.add_(width)))
    sides = upper.add_(lower.sub_(upper).mul_(down.reshape(-1)))  # [6, n P]
    return sides[3:].sub_(sides[:3]).mul_(across.reshape(-1)).add_(sides[:3]).view(3, num_frames, -1)


def _sample_with_grid(frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The same by ``grid_sample``: twice as fast on a CPU where most of the picture is sampled anyway.

    It wants places as fractions of the picture's sides. With sides that are powers of two nothing is lost by that.
    """
    num_frames, height, width, _ = frames.shape
    rows, columns = (1 << (side - 1).bit_length() for side in (height, width))
    planes = torch.zeros(num_frames, 3, rows, columns)
    planes[:, :, :height, :width] = frames.permute(0, 3, 1, 2)
    places = [places.mul(2 / _STEPS).add_(1).div_(side).sub_(1) for places, side in ((x, columns), (y, rows))]
    grid = torch.stack(places, 1).transpose(1, 2)[:, None]  # [n, 1, P, 2]; x and y run along memory, each by itself
    return F.grid_sample(planes, grid, align_corners=False)[:, :, 0].transpose(0, 1)


def _positions(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Source x and y of every crop pixel, [n, P] each, in whole steps of 1/32 pixel."""
    at = torch.arange(size, device=matrix.device, dtype=torch.float32)
    m = (matrix * _STEPS)[:, :, :, None, None]
    steps = m[:, :, 0] * at + (m[:, :, 1] * at[:, None] + m[:, :, 2])  # [n, 2, S, S]
    x, y = steps.round_().flatten(2).unbind(1)
    return x, y


def _split_steps(steps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First of the two pixels to mix, and the share of the second (0..1)."""
    pixels = steps / _STEPS
    first = pixels.floor().clamp_(max=size - 2)
    return first, pixels.sub_(first)


def _coverage(steps: Tensor, size: int) -> Tensor:
    """Share of the sample that lies on the frame, 0..1."""
    pixels = steps / _STEPS
    outside = torch.maximum(-pixels, pixels - (size - 1))
    return (1 - outside.clamp_(min=0)).clamp_(min=0)


def _as_planes(pairs: Tensor) -> Tensor:
    """u8 [n P, 6] -> f32 [6, n P]: sums run along memory."""
    return pairs.t().to(torch.float32, memory_format=torch.contiguous_format)
