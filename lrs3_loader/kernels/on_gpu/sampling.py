"""Kernels that sample video frames: crops, letterboxes, and Pillow's resampling. All arithmetic is in whole numbers.

Each program computes ``BLOCK`` values of one output image, in the order of memory. Coordinates are computed in f32 as
PyTorch does, without fused multiply-adds, so that they are rounded to the same steps.

Letters: n frames, H W source size, S side of the result.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCH: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
BLOCK = 1024
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to whole numbers, ties to even
_STEPS = tl.constexpr(32)  # sampling positions per pixel
_ONE_BITS = tl.constexpr(22)  # a resampling weight of 1 is 2^22
_HALF = tl.constexpr(1 << 21)


@triton.jit
def _split(steps, length):
    """The first of two pixels along an axis, and the second's weight in 0..32, at ``steps`` inside of the frame."""
    first = tl.minimum(steps // _STEPS, length - 2)
    return first, steps - first * _STEPS


@triton.jit
def _bilinear(source, top, down, left, across, width, valid):
    """Value at a position, times 1024; ``source`` points to the channel in the frame's first pixel."""
    at = source + (top * width + left) * 3
    below = at + width * 3
    upper = tl.load(at, mask=valid, other=0).to(tl.int32) * (_STEPS - across)
    upper += tl.load(at + 3, mask=valid, other=0).to(tl.int32) * across
    lower = tl.load(below, mask=valid, other=0).to(tl.int32) * (_STEPS - across)
    lower += tl.load(below + 3, mask=valid, other=0).to(tl.int32) * across
    return upper * (_STEPS - down) + lower * down


@triton.jit
def crop_kernel(frames, matrix, out, height, width, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    frame = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = value < SIZE * SIZE * 3
    pixel, channel = value // 3, value % 3
    column, row = (pixel % SIZE).to(tl.float32), (pixel // SIZE).to(tl.float32)
    m = matrix + frame * 6
    x = tl.load(m) * _STEPS * column + (tl.load(m + 1) * _STEPS * row + tl.load(m + 2) * _STEPS)
    y = tl.load(m + 3) * _STEPS * column + (tl.load(m + 4) * _STEPS * row + tl.load(m + 5) * _STEPS)
    x = tl.minimum(tl.maximum(x, 0.0), ((width - 1) * 32).to(tl.float32))
    y = tl.minimum(tl.maximum(y, 0.0), ((height - 1) * 32).to(tl.float32))
    left, across = _split(((x + _ROUND) - _ROUND).to(tl.int32), width)
    top, down = _split(((y + _ROUND) - _ROUND).to(tl.int32), height)
    source = frames + frame * height * width * 3 + channel
    found = (_bilinear(source, top, down, left, across, width, valid) + 512) >> 10
    tl.store(out + frame * (SIZE * SIZE * 3) + value, found.to(tl.uint8), mask=valid)


@triton.jit
def _letterbox_axis(position, scale, shift, length):
    """First pixel, weight of the second, and share inside of the frame in 0..32."""
    steps = ((position.to(tl.float32) * scale + shift + _ROUND) - _ROUND).to(tl.int32)
    last = (length - 1) * _STEPS
    first, share = _split(tl.minimum(tl.maximum(steps, 0), last), length)
    return first, share, tl.maximum(_STEPS - tl.maximum(tl.maximum(-steps, steps - last), 0), 0)


@triton.jit
def letterbox_kernel(
    frames, out, height, width, scale, shift_rows, shift_columns, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    frame = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = value < SIZE * SIZE * 3
    pixel, channel = value // 3, value % 3
    top, down, rows_inside = _letterbox_axis(pixel // SIZE, scale, shift_rows, height)
    left, across, columns_inside = _letterbox_axis(pixel % SIZE, scale, shift_columns, width)
    source = frames + frame * height * width * 3 + channel
    found = _bilinear(source, top, down, left, across, width, valid) * rows_inside * columns_inside
    found = (found + (1 << 19)) >> 20
    tl.store(out + frame * (SIZE * SIZE * 3) + value, found.to(tl.uint8), mask=valid)


@triton.jit
def resample_kernel(
    frames, first, taps, out, height, width, NUM_TAPS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    frame = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = value < SIZE * SIZE * 3
    pixel, channel = value // 3, value % 3
    column, row = pixel % SIZE, SIZE + pixel // SIZE  # in the tables of both axes
    places = first + frame * (2 * SIZE)
    left = tl.load(places + column, mask=valid, other=0)
    top = tl.load(places + row, mask=valid, other=0)
    weights = taps + frame * (2 * SIZE) * NUM_TAPS
    source = frames + frame * height * width * 3 + channel
    total = tl.full((BLOCK,), 0, tl.int32) + _HALF
    for k in range(NUM_TAPS):
        y = tl.minimum(top + k, height - 1)
        line = tl.full((BLOCK,), 0, tl.int32) + _HALF
        for j in range(NUM_TAPS):
            x = tl.minimum(left + j, width - 1)
            level = tl.load(source + (y * width + x) * 3, mask=valid, other=0).to(tl.int32)
            line += level * tl.load(weights + column * NUM_TAPS + j, mask=valid, other=0)
        line = tl.minimum(tl.maximum(line >> _ONE_BITS, 0), 255)
        total += line * tl.load(weights + row * NUM_TAPS + k, mask=valid, other=0)
    found = tl.minimum(tl.maximum(total >> _ONE_BITS, 0), 255)
    tl.store(out + frame * (SIZE * SIZE * 3) + value, found.to(tl.uint8), mask=valid)


def crop(frames: Tensor, matrix: Tensor, out: Tensor) -> None:
    """Write the crops of ``frames`` u8 [n, H, W, 3] by ``matrix`` f32 [n, 2, 3] into ``out`` u8 [n, S, S, 3]."""
    _launch(crop_kernel, frames, out, frames, matrix.contiguous(), out, *frames.shape[1:3])


def letterbox(frames: Tensor, out: Tensor) -> None:
    """Write the letterboxes of ``frames`` u8 [n, H, W, 3] into ``out`` u8 [n, S, S, 3]."""
    height, width = frames.shape[1:3]
    side = max(height, width)
    shifts = (_STEPS.value * (height - side) / 2, _STEPS.value * (width - side) / 2)
    _launch(letterbox_kernel, frames, out, frames, out, height, width, _STEPS.value * side / out.shape[1], *shifts)


def resample(frames: Tensor, first: Tensor, taps: Tensor, out: Tensor) -> None:
    """Filter ``frames`` u8 [n, H, W, 3] into ``out`` u8 [n, S, S, 3].

    ``first`` i32 [n, 2, S] are the first column of each output column, and the first row of each output row; ``taps``
    i32 [n, 2, S, K] are the weights from there on, in units of 2^-22.
    """
    places = (first.contiguous(), taps.contiguous())
    _launch(resample_kernel, frames, out, frames, *places, out, *frames.shape[1:3], NUM_TAPS=taps.shape[3])


def _launch(kernel: Any, frames: Tensor, out: Tensor, *arguments: Any, **constants: int) -> None:
    assert all(tensor.is_contiguous() for tensor in (frames, out)), "frames must be contiguous"
    assert frames.dtype == out.dtype == torch.uint8
    size = out.shape[1]
    grid = (len(frames), triton.cdiv(size * size * 3, BLOCK))
    if len(frames):
        kernel[grid](*arguments, **constants, SIZE=size, BLOCK=BLOCK, **LAUNCH)
