"""The kernels of ``kernels.convolution``. Each program computes all channels of P pixels, in the order of memory.

Sums are the same for every P. Loads past the end of a tensor are masked. Loops are not unrolled and loads not started
ahead (``num_stages=1``): otherwise registers would not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrs3_loader.kernels.convolution import is_pooled, new_results, out_shape

PRECISION = tl.constexpr("tf32x3")
STEP = tl.constexpr(16)  # channels, or taps times channels, of one product of blocks
NEXT_STEP = tl.constexpr(32)
NO_SHORTCUT, DIRECT, POOLED = range(3)
SPLIT = 64  # output channels of a program, where there are more than fit
_LARGEST = 128


@triton.jit
def _prelu(values, slope):
    return tl.where(values > 0, values, values * slope)


@triton.jit
def _finish(
    values, p, valid, bias, slope, first, y, num_channels, next_weight, next_bias, next_slope, z, num_next,
    HAS_NEXT: tl.constexpr, P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_Z: tl.constexpr,
):  # fmt: skip
    """Activate and store the channels [P, BLOCK_O] from ``first`` on, and compute and store those of z."""
    o = first + tl.arange(0, BLOCK_O)
    in_o = o < num_channels
    values = _prelu(values, tl.load(slope + o, mask=in_o, other=0.0)[None, :])
    row = y + p.to(tl.int64)[:, None] * num_channels
    tl.store(row + o[None, :], values, mask=valid[:, None] & in_o[None, :])
    if HAS_NEXT:
        q = tl.arange(0, BLOCK_Z)
        in_q = q < num_next
        if BLOCK_O <= NEXT_STEP:
            wide = tl.load(
                next_weight + o[:, None] * num_next + q[None, :], mask=in_o[:, None] & in_q[None, :], other=0.0
            )
            out = tl.dot(values, wide, input_precision=PRECISION)
        else:  # a part of the channels at a time, which this program has just written
            tl.debug_barrier()
            out = tl.zeros((P, BLOCK_Z), tl.float32)
            for start in range(0, BLOCK_O, NEXT_STEP):
                k = start + tl.arange(0, NEXT_STEP)
                in_k = k < num_channels
                own = tl.load(row + k[None, :], mask=valid[:, None] & in_k[None, :], other=0.0)
                wide = tl.load(
                    next_weight + k[:, None] * num_next + q[None, :], mask=in_k[:, None] & in_q[None, :], other=0.0
                )
                out = tl.dot(own, wide, out, input_precision=PRECISION)
        out += tl.load(next_bias + q, mask=in_q, other=0.0)[None, :]
        out = _prelu(out, tl.load(next_slope + q, mask=in_q, other=0.0)[None, :])
        tl.store(z + p.to(tl.int64)[:, None] * num_next + q[None, :], out, mask=valid[:, None] & in_q[None, :])


@triton.jit(do_not_specialize=["num_pixels"])
def convolution_kernel(
    x, weight, bias, slope, next_weight, next_bias, next_slope, y, z,
    num_pixels, height, width, out_height, out_width, channels, num_channels, num_next, left, top, stride,
    divisor, offset,
    KERNEL: tl.constexpr, NUM_STEPS: tl.constexpr, HAS_NEXT: tl.constexpr, P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * P + tl.arange(0, P)
    valid = p < num_pixels
    n, oy, ox = p // (out_height * out_width), (p // out_width) % out_height, p % out_width
    first = tl.program_id(1) * BLOCK_O
    o = first + tl.arange(0, BLOCK_O)
    in_o = o < num_channels
    sums = tl.zeros((P, BLOCK_O), tl.float32)
    for step in range(NUM_STEPS):
        k = step * STEP + tl.arange(0, STEP)
        in_k = k < KERNEL * KERNEL * channels
        tap, c = k // channels, k % channels
        iy = (oy * stride - top)[:, None] + (tap // KERNEL)[None, :]
        ix = (ox * stride - left)[:, None] + (tap % KERNEL)[None, :]
        inside = valid[:, None] & in_k[None, :] & (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width)
        at = ((n[:, None] * height + iy) * width + ix).to(tl.int64) * channels + c[None, :]
        values = tl.load(x + at, mask=inside, other=0).to(tl.float32)
        values = tl.where(inside, tl.div_rn(values, tl.full(values.shape, divisor, tl.float32)) - offset, 0.0)
        taps = tl.load(weight + k[:, None] * num_channels + o[None, :], mask=in_k[:, None] & in_o[None, :], other=0.0)
        sums = tl.dot(values, taps, sums, input_precision=PRECISION)
    sums += tl.load(bias + o, mask=in_o, other=0.0)[None, :]
    _finish(sums, p, valid, bias, slope, first, y, num_channels, next_weight, next_bias, next_slope, z, num_next,
            HAS_NEXT, P, BLOCK_O, BLOCK_Z)  # fmt: skip


@triton.jit(do_not_specialize=["num_pixels"])
def residual_kernel(
    x, depthwise_weight, depthwise_bias, weight, bias, shortcut, slope, next_weight, next_bias, next_slope, y, z,
    num_pixels, height, width, out_height, out_width, channels, num_channels, num_shortcut, num_next,
    left, top, stride,
    KERNEL: tl.constexpr, NUM_STEPS: tl.constexpr, SHORTCUT: tl.constexpr, HAS_NEXT: tl.constexpr, P: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_Z: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * P + tl.arange(0, P)
    valid = p < num_pixels
    n, oy, ox = p // (out_height * out_width), (p // out_width) % out_height, p % out_width
    o = tl.arange(0, BLOCK_O)
    in_o = o < num_channels
    sums = tl.zeros((P, BLOCK_O), tl.float32)
    for step in range(NUM_STEPS):
        c = step * STEP + tl.arange(0, STEP)
        in_c = c < channels
        filtered = tl.zeros((P, STEP), tl.float32) + tl.load(depthwise_bias + c, mask=in_c, other=0.0)[None, :]
        for tap in range(KERNEL * KERNEL):
            iy = oy * stride - top + tap // KERNEL
            ix = ox * stride - left + tap % KERNEL
            inside = valid & (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width)
            at = ((n * height + iy) * width + ix).to(tl.int64) * channels
            values = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & in_c[None, :], other=0.0)
            filtered += values * tl.load(depthwise_weight + tap * channels + c, mask=in_c, other=0.0)[None, :]
        wide = tl.load(weight + c[:, None] * num_channels + o[None, :], mask=in_c[:, None] & in_o[None, :], other=0.0)
        sums = tl.dot(filtered, wide, sums, input_precision=PRECISION)
    sums += tl.load(bias + o, mask=in_o, other=0.0)[None, :]
    there = valid[:, None] & (o < num_shortcut)[None, :]
    if SHORTCUT == 1:
        sums += tl.load(shortcut + p.to(tl.int64)[:, None] * num_shortcut + o[None, :], mask=there, other=0.0)
    if SHORTCUT == 2:
        corner = ((n * out_height + oy) * 2 * (2 * out_width) + 2 * ox).to(tl.int64)
        largest = tl.load(shortcut + corner[:, None] * num_shortcut + o[None, :], mask=there, other=0.0)
        for i in range(1, 4):
            pixel = corner + (i // 2) * (2 * out_width) + i % 2
            other = tl.load(shortcut + pixel[:, None] * num_shortcut + o[None, :], mask=there, other=0.0)
            largest = tl.maximum(largest, other, propagate_nan=tl.PropagateNan.ALL)
        sums += largest
    _finish(sums, p, valid, bias, slope, 0, y, num_channels, next_weight, next_bias, next_slope, z, num_next,
            HAS_NEXT, P, BLOCK_O, BLOCK_Z)  # fmt: skip


def block_sizes(num_channels: int, num_next: int) -> dict[str, int]:
    """Return the sizes of a program's blocks for O and Z channels (Z is 0 where there is no z), and its warps."""
    block_o = max(triton.next_power_of_2(num_channels), 16)
    return {
        "P": 128 if block_o == 16 else 64,
        "BLOCK_O": block_o,
        "BLOCK_Z": max(triton.next_power_of_2(num_next), 16),
        "num_warps": 8 if block_o == _LARGEST else 4,
        "num_stages": 1,
    }


def convolution_prelu(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor,
    next_weight: Tensor | None, next_bias: Tensor | None, next_slope: Tensor | None,
    stride: int, padding: Sequence[int], divisor: float, offset: float,
) -> list[Tensor]:  # fmt: skip
    """Run ``kernels.convolution.convolution_prelu`` on the GPU that the tensors are on."""
    kernel, _, channels, num_channels = weight.shape
    shape = out_shape(x, kernel, num_channels, stride, padding)
    results = new_results(x, shape, next_weight)
    num_next = results[1].shape[3] if next_weight is not None else 0
    is_split = num_channels > _LARGEST
    _check([x, weight], 0 if is_split else num_channels, num_next)
    assert not (is_split and num_next), f"z needs at most {_LARGEST} channels of y, got {num_channels}"
    sizes = block_sizes(SPLIT if is_split else num_channels, num_next)
    num_pixels = results[0].numel() // num_channels
    grid = (triton.cdiv(num_pixels, sizes["P"]), triton.cdiv(num_channels, sizes["BLOCK_O"]))
    with torch.cuda.device_of(x):
        convolution_kernel[grid](
            x, weight, bias, slope, next_weight, next_bias, next_slope, results[0], results[-1],
            num_pixels, *x.shape[1:3], *shape[1:3], channels, num_channels, num_next, padding[0], padding[2], stride,
            divisor, offset,
            KERNEL=kernel, NUM_STEPS=triton.cdiv(kernel * kernel * channels, STEP.value),
            HAS_NEXT=next_weight is not None, **sizes,
        )  # fmt: skip
    return results


def residual_block(
    x: Tensor, depthwise_weight: Tensor, depthwise_bias: Tensor, weight: Tensor, bias: Tensor,
    shortcut: Tensor | None, slope: Tensor,
    next_weight: Tensor | None, next_bias: Tensor | None, next_slope: Tensor | None,
    stride: int, padding: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    """Run ``kernels.convolution.residual_block`` on the GPU that the tensors are on."""
    kernel, (channels, num_channels) = depthwise_weight.shape[0], weight.shape
    shape = out_shape(x, kernel, num_channels, stride, padding)
    results = new_results(x, shape, next_weight)
    num_next = results[1].shape[3] if next_weight is not None else 0
    given = [x, depthwise_weight, weight] if shortcut is None else [x, depthwise_weight, weight, shortcut]
    _check(given, num_channels, num_next)
    num_pixels = results[0].numel() // num_channels
    sizes = block_sizes(num_channels, num_next)
    kind = NO_SHORTCUT if shortcut is None else POOLED if is_pooled(shortcut, shape) else DIRECT
    num_shortcut = 0 if shortcut is None else shortcut.shape[3]
    with torch.cuda.device_of(x):
        residual_kernel[triton.cdiv(num_pixels, sizes["P"]),](
            x, depthwise_weight, depthwise_bias, weight, bias, shortcut, slope, next_weight, next_bias, next_slope,
            results[0], results[-1],
            num_pixels, *x.shape[1:3], *shape[1:3], channels, num_channels, num_shortcut, num_next,
            padding[0], padding[2], stride,
            KERNEL=kernel, NUM_STEPS=triton.cdiv(channels, STEP.value), SHORTCUT=kind,
            HAS_NEXT=next_weight is not None, **sizes,
        )  # fmt: skip
    return results


def _check(tensors: Sequence[Tensor], num_channels: int, num_next: int) -> None:
    """The kernels take contiguous memory and so many channels; the graphs that they serve have no others."""
    assert all(tensor.is_contiguous() for tensor in tensors), "tensors must be contiguous"
    assert max(num_channels, num_next) <= _LARGEST, f"{num_channels} and {num_next} channels are too many"
    assert all(tensor.dtype in (torch.float32, torch.uint8) for tensor in tensors)
