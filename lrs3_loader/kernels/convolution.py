"""Convolutions with all that follows them pixel by pixel, each as one operator.

PyTorch runs a convolution, its bias, the sum with a shortcut and the activation as kernels of their own, which read and
write every value again; in small networks that is most of their time on a GPU. Here one kernel computes

    y = prelu(convolution(x) + shortcut),  z = prelu(y @ next_weight + next_bias),

where z, the 1 x 1 convolution that opens the next block, is optional. Products are summed in f32, in an order of the
kernel's own; on a GPU they are computed by tensor cores, as three products in TF32 whose sum has f32's digits
("3xTF32"). Same card and same shapes: same bits.

Letters: N images, H W height and width, C channels in, O channels out, Z channels of the next convolution, K kernel
size. Padding is left, right, top, bottom. A PReLU with slopes of 0 is a ReLU, with slopes of 1 it does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_CHANNELS = 128  # O of ``residual_block``, Z, and O of ``convolution_prelu`` where z is asked for


def plain_convolution_prelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    next_weight: Tensor | None,
    next_bias: Tensor | None,
    next_slope: Tensor | None,
    stride: int,
    padding: Sequence[int],
    divisor: float,
    offset: float,
) -> list[Tensor]:
    """Convolve ``x / divisor - offset`` with zeros around it.

    Args:
        x: f32 or u8 [N, H, W, C], contiguous.
        weight: f32 [K, K, C, O].
        bias, slope: f32 [O].
        next_weight: f32 [O, Z]; None: z is not computed.
        next_bias, next_slope: f32 [Z].
        stride: in both directions.
        padding: see the module docstring.
        divisor, offset: 1 and 0 leave x as it is.

    Returns:
        y f32 [N, H', W', O], and z f32 [N, H', W', Z] if there is one.
    """
    y = F.pad(x.float() / divisor - offset, (0, 0, *padding)).permute(0, 3, 1, 2)
    y = F.conv2d(y, weight.permute(3, 2, 0, 1), bias, stride).permute(0, 2, 3, 1).contiguous()
    return _with_next(_prelu(y, slope), next_weight, next_bias, next_slope)


def plain_residual_block(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    slope: Tensor,
    next_weight: Tensor | None,
    next_bias: Tensor | None,
    next_slope: Tensor | None,
    stride: int,
    padding: Sequence[int],
) -> list[Tensor]:
    """A depthwise convolution, a 1 x 1 convolution and the sum with a shortcut: the block of MobileNet and BlazeFace.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.

    Args:
        x: f32 [N, H, W, C], contiguous.
        depthwise_weight: f32 [K, K, C].
        depthwise_bias: f32 [C].
        weight: f32 [C, O].
        bias, slope: f32 [O].
        shortcut: f32 [N, H', W', R], contiguous, with R <= O: channels beyond R are zeros; or of twice the height and
            width: the largest value of each 2 x 2 pixels counts; None: nothing is added.
        next_weight, next_bias, next_slope, stride, padding: those of ``plain_convolution_prelu``.

    Returns:
        y f32 [N, H', W', O], and z f32 [N, H', W', Z] if there is one.
    """
    channels = x.shape[3]
    kernels = depthwise_weight.permute(2, 0, 1).unsqueeze(1)
    images = F.pad(x, (0, 0, *padding)).permute(0, 3, 1, 2)
    y = F.conv2d(images, kernels, depthwise_bias, stride, groups=channels).permute(0, 2, 3, 1) @ weight + bias
    if shortcut is not None:
        if is_pooled(shortcut, y.shape):
            shortcut = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        y = y + F.pad(shortcut, (0, y.shape[3] - shortcut.shape[3]))
    return _with_next(_prelu(y, slope), next_weight, next_bias, next_slope)


def is_pooled(shortcut: Tensor, out_shape: Sequence[int]) -> bool:
    """Return whether a shortcut has twice the height and width of the block's result [N, H', W', O]."""
    return tuple(shortcut.shape[1:3]) != tuple(out_shape[1:3])


def out_size(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """Return the number of outputs of a convolution along one axis."""
    return (size + before + after - kernel) // stride + 1


def out_shape(x: Tensor, kernel: int, channels: int, stride: int, padding: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the shape of y."""
    left, right, top, bottom = padding
    height, width = out_size(x.shape[1], kernel, stride, top, bottom), out_size(x.shape[2], kernel, stride, left, right)
    return len(x), height, width, channels


def new_results(x: Tensor, shape: Sequence[int], next_weight: Tensor | None) -> list[Tensor]:
    """Allocate y and, if it is asked for, z."""
    y = x.new_empty(shape, dtype=torch.float32)
    return [y] if next_weight is None else [y, y.new_empty(*shape[:3], next_weight.shape[1])]


def _prelu(y: Tensor, slope: Tensor) -> Tensor:
    return torch.where(y > 0, y, y * slope)


def _with_next(y: Tensor, weight: Tensor | None, bias: Tensor | None, slope: Tensor | None) -> list[Tensor]:
    if weight is None or bias is None or slope is None:
        return [y]
    return [y, _prelu(y @ weight + bias, slope)]


# The schemas are spelt out because torch 2.6 cannot infer results of type list[Tensor].
_NEXT = "Tensor? next_weight, Tensor? next_bias, Tensor? next_slope, SymInt stride, SymInt[] padding"
convolution_prelu = torch.library.custom_op(
    "lrs3_loader::convolution_prelu",
    plain_convolution_prelu,
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor bias, Tensor slope, {_NEXT}, float divisor, float offset) -> Tensor[]",
)
residual_block = torch.library.custom_op(
    "lrs3_loader::residual_block",
    plain_residual_block,
    mutates_args=(),
    schema="(Tensor x, Tensor depthwise_weight, Tensor depthwise_bias, Tensor weight, Tensor bias, Tensor? shortcut, "
    f"Tensor slope, {_NEXT}) -> Tensor[]",
)


@convolution_prelu.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, weight, _, _, next_weight, _, _, stride, padding, _, _ = arguments
    return new_results(x, out_shape(x, weight.shape[0], weight.shape[3], stride, padding), next_weight)


@residual_block.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, kernels, _, weight, _, _, _, next_weight, _, _, stride, padding = arguments
    return new_results(x, out_shape(x, kernels.shape[0], weight.shape[1], stride, padding), next_weight)


@convolution_prelu.register_kernel("cuda")
def _(*arguments: Any) -> list[Tensor]:
    from lrs3_loader.kernels.on_gpu import convolution

    return convolution.convolution_prelu(*arguments)


@residual_block.register_kernel("cuda")
def _(*arguments: Any) -> list[Tensor]:
    from lrs3_loader.kernels.on_gpu import convolution

    return convolution.residual_block(*arguments)
