"""Small square crops of video frames by bilinear sampling, reproducible bit for bit.

Coordinates are rounded to 1/32 pixel and results to whole levels, as in OpenCV's ``warpPerspective``, which MediaPipe
uses. Weights are then multiples of 1/1024 and every sum below is exact in f32: a crop does not depend on the device, on
the order of operations, or on the rest of the batch.

On a CPU, frames are sampled one by one by ``image.bilinear``, in memory that stays in the cache.

Letters: n frames, H W source size, S crop size, P = S * S; R C rows and columns of a crop that show the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrs3_loader.face.image.bilinear import Bilinear, pixel_pairs, write_levels

_STEPS = 32  # sampling positions per pixel
_ROUND = 1.5 * 2**23  # adding it rounds numbers of 0..2^22 to whole ones, ties to even
_SLICE = 64  # frames at a time, except on a CPU: 4 MB each at S = 256
#: On a CPU, pixels of the frame per sample, and columns of it per column of a letterbox, beyond which only the pixels
#: around each sample are converted to f32. Measured with frames of 224 x 224 to 3840 x 2160.
_MANY_PIXELS, _MANY_COLUMNS = 16, 4


def crop(frames: Tensor, matrix: Tensor, size: int, out: Tensor | None = None) -> Tensor:
    """Compute one affine crop per frame; outside the frame, its border is repeated.

    Args:
        frames: u8 [n, H, W, 3], H and W at least 2.
        matrix: f32 [n, 2, 3], from (column, row, 1) of the crop to (x, y) of the source, in pixels with whole numbers
            at their centres.
        size: S.
        out: u8 [n, S, S, 3], where the crops are written. A new tensor by default.

    Returns:
        u8 [n, S, S, 3].

    Raises:
        ValueError: an argument has another shape or type.
    """
    _check(frames)
    if matrix.shape != (len(frames), 2, 3):
        raise ValueError(f"matrix must be [{len(frames)}, 2, 3], got {list(matrix.shape)}")
    out = _empty(frames, size) if out is None else out
    if frames.device.type == "cpu":
        _crop_on_cpu(frames, matrix, out)
        return out
    for i in range(0, len(frames), _SLICE):
        out[i : i + _SLICE] = _crop(frames[i : i + _SLICE].contiguous(), matrix[i : i + _SLICE], size)
    return out


def letterbox(frames: Tensor, size: int, out: Tensor | None = None) -> Tensor:
    """Resize whole frames, each centred in a black square; the outermost pixels fade to black over one pixel.

    Arguments and result are those of ``crop``.
    """
    _check(frames)
    out = _empty(frames, size) if out is None else out
    if frames.device.type == "cpu":
        _letterbox_on_cpu(frames, out)
        return out
    for i in range(0, len(frames), _SLICE):
        out[i : i + _SLICE] = _letterbox(frames[i : i + _SLICE], size)
    return out


def _check(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or min(frames.shape[1:3]) < 2:
        raise ValueError(f"frames must be u8 [n, H, W, 3], at least 2 x 2, got {frames.dtype} {list(frames.shape)}")


def _empty(frames: Tensor, size: int) -> Tensor:
    return torch.empty(len(frames), size, size, 3, dtype=torch.uint8, device=frames.device)


def _letterbox(frames: Tensor, size: int) -> Tensor:
    """Compute letterboxes f32 [n, S, S, 3] on any device. Rows are interpolated first, then columns."""
    (top, down, rows_there), (left, across, columns_there) = _letterbox_axes(frames, size)
    columns = (3 * left[:, None] + torch.arange(3, device=frames.device)).flatten()
    across, columns_there = across.repeat_interleave(3), columns_there.repeat_interleave(3)
    lines = frames.flatten(2)
    upper, lower = lines.index_select(1, top).float(), lines.index_select(1, top + 1).float()
    mixed = upper.add_(lower.sub_(upper).mul_(down[:, None]))
    first, second = mixed.index_select(2, columns), mixed.index_select(2, columns + 3)
    value = first.add_(second.sub_(first).mul_(across)).mul_(rows_there[:, None] * columns_there)
    return value.add_(0.5).floor_().view(-1, size, size, 3)


def _letterbox_on_cpu(frames: Tensor, out: Tensor) -> None:
    """Write letterboxes to ``out`` u8 [n, S, S, 3]. All frames have the same grid of positions."""
    height, width = frames.shape[1:3]
    axes = _letterbox_axes(frames, out.shape[1])
    vertical, horizontal = (_visible(there) for _, _, there in axes)
    top, down, rows_there = (values[vertical] for values in axes[0])
    left, across, columns_there = (values[horizontal] for values in axes[1])
    there = rows_there[:, None] * columns_there  # [R, C]
    out.zero_()
    if there.numel() == 0:
        return
    collect_rows, collect_columns = 2 * len(top) < height, width > _MANY_COLUMNS * len(left)
    rows = torch.stack([top, top + 1], 1).view(-1) if collect_rows else torch.arange(height)
    pairs = (rows[:, None] * width + left).int()
    y = (2 * torch.arange(len(top)) if collect_rows else top) + down
    x = (2 * torch.arange(len(left)) if collect_columns else left) + across
    bilinear = Bilinear(max(height, width, *(2 * number for number in there.shape)))
    grid = torch.stack([x.expand_as(there), y[:, None].expand_as(there)]).mul_(bilinear.pixel).sub_(1)
    for frame, levels in zip(frames, out[:, vertical, horizontal], strict=True):
        if collect_columns:
            frame = pixel_pairs(frame.contiguous(), pairs)
        elif collect_rows:
            frame = frame.index_select(0, rows)
        write_levels(bilinear.sample(frame, grid).mul_(there), levels)


def _letterbox_axes(frames: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Compute, for rows and for columns, the first of two source pixels, the second's weight, and the share inside."""
    side, axes = max(frames.shape[1:3]), []
    at = torch.arange(size, device=frames.device, dtype=torch.float32)
    for length in frames.shape[1:3]:
        steps = (at * (_STEPS * side / size) + _STEPS * (length - side) / 2).round_()
        first, share = _split_steps(steps.clamp(0, _STEPS * (length - 1)), length)
        pixels = steps / _STEPS
        outside = torch.maximum(-pixels, pixels - (length - 1))
        axes.append((first.long(), share, (1 - outside.clamp_(min=0)).clamp_(min=0)))
    return axes


def _visible(there: Tensor) -> slice:
    """Return the range of the rows (or columns) that show something of the frame."""
    places = there.nonzero()[:, 0].tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0)


def _crop_on_cpu(frames: Tensor, matrix: Tensor, out: Tensor) -> None:
    """Write crops to ``out`` u8 [n, S, S, 3]. Of each frame, the smallest window is sampled that holds its crop."""
    if len(frames) == 0:
        return
    size = out.shape[1]
    across, down = _step_terms(matrix, size)
    last = torch.tensor([frames.shape[2] - 1.0, frames.shape[1] - 1.0])
    # The sums only grow, or only fall, along rows and along columns: their extremes are in the corners.
    corners = (across[..., [0, -1]] + down[:, :, [0, -1]]).flatten(2).round_().div_(_STEPS)
    low, high = corners.amin(2), corners.amax(2)
    is_inside = ((low >= 0) & (high <= last)).all(1).tolist()
    low, high = (pixels.clamp_(min=0).minimum(last) for pixels in (low.floor_(), high.ceil_()))
    sides = high - low + 1
    collect = sides.prod(1) > _MANY_PIXELS * size * size
    bilinear = Bilinear(int(sides.masked_fill(collect[:, None], 2 * size).max()))
    collects = collect.tolist()
    windows = torch.cat([low, high + 1], 1).int().tolist()
    limits = (last * bilinear.pixel).tolist()
    step = bilinear.pixel / _STEPS
    across, down, rounding = across * step, down * step, _ROUND * step
    origin = (low * bilinear.pixel + (rounding + 1))[:, :, None, None]
    grid = torch.empty(2, size, size)
    for i, (x0, y0, x1, y1) in enumerate(windows):
        torch.add(across[i], down[i], out=grid)
        if not is_inside[i]:
            for axis, limit in zip(grid, limits, strict=True):
                axis.clamp_(0.0, limit)
        grid.add_(rounding)
        if collects[i]:
            image = _collect(frames[i].contiguous(), grid.sub_(rounding), bilinear.pixel)
        else:
            image = frames[i, y0:y1, x0:x1]
            grid.sub_(origin[i])
        write_levels(bilinear.sample(image, grid), out[i])


def _collect(frame: Tensor, grid: Tensor, pixel: float) -> Tensor:
    """Return the four pixels around each position, side by side, u8 [2 S, 2 S, 3].

    Args:
        frame: u8 [H, W, 3], contiguous.
        grid: f32 [2, S, S], x and y in the frame, times ``pixel``. Replaced by the grid for the result.
        pixel: that of ``Bilinear``.
    """
    height, width, _ = frame.shape
    size = grid.shape[1]
    first = grid.div_(pixel).floor().minimum(torch.tensor([width - 2.0, height - 2.0])[:, None, None])
    place = 2.0 * torch.arange(size)
    grid.sub_(first)
    grid[0].add_(place)
    grid[1].add_(place[:, None])
    grid.mul_(pixel).sub_(1)
    left, top = first.int()
    upper = top * width + left
    return pixel_pairs(frame, torch.stack([upper, upper + width], 1).view(-1, size))


def _crop(frames: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Compute crops f32 [n, S, S, 3] on any device. Reads only the pixels that it needs."""
    num_frames, height, width, _ = frames.shape
    across, down = _step_terms(matrix, size)
    x, y = (across + down).round_().flatten(2).unbind(1)
    left, across = _split_steps(x.clamp_(0, _STEPS * (width - 1)), width)
    top, down = _split_steps(y.clamp_(0, _STEPS * (height - 1)), height)
    first = torch.arange(num_frames, device=frames.device, dtype=torch.int32) * (height * width)
    index = (top.int() * width).add_(left.int()).add_(first[:, None]).reshape(-1)
    # Two neighbours in a row are adjacent in memory: six bytes from each pixel, in overlapping rows.
    pairs = frames.view(-1).as_strided((frames.numel() // 3 - 1, 6), (3, 1))
    upper = _as_planes(pairs.index_select(0, index))
    lower = _as_planes(pairs.index_select(0, index.add_(width)))
    sides = upper.add_(lower.sub_(upper).mul_(down.reshape(-1)))  # [6, n P]
    value = sides[3:].sub_(sides[:3]).mul_(across.reshape(-1)).add_(sides[:3])
    return value.add_(0.5).floor_().view(3, num_frames, size, size).permute(1, 2, 3, 0)


def _step_terms(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return f32 [n, 2, 1, S] and [n, 2, S, 1], whose sum is x and y of the crop's pixels in steps, not rounded."""
    at = torch.arange(size, device=matrix.device, dtype=torch.float32)
    m = (matrix * _STEPS)[:, :, :, None, None]
    return m[:, :, 0] * at, m[:, :, 1] * at[:, None] + m[:, :, 2]


def _split_steps(steps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first of the two pixels to interpolate, and the weight of the second (0..1)."""
    pixels = steps / _STEPS
    first = pixels.floor().clamp_(max=size - 2)
    return first, pixels.sub_(first)


def _as_planes(pairs: Tensor) -> Tensor:
    """Convert u8 [n P, 6] to contiguous f32 [6, n P], so that sums run along memory."""
    return pairs.t().to(torch.float32, memory_format=torch.contiguous_format)
