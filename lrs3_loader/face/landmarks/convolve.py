"""Convolutions of images N H W C. On a CPU oneDNN computes them, which can add and activate before it writes.

Letters: N images, H W height and width, C channels in, O channels out, K kernel size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]  # along the height and along the width
Sides = tuple[int, int, int, int]  # left, right, top, bottom


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    total: Tensor | None = None,
    *,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    groups: int,
    relu: bool = False,
) -> Tensor:
    """Convolve, add the result to ``total``, and apply a ReLU.

    Args:
        x: f32 [N, H, W, C].
        weight: f32 [O, C / groups, K, K].
        bias: f32 [O].
        total: f32 [N, H', W', O], contiguous; overwritten by the result. None: nothing is added.
        stride, dilation, groups: as in ``torch.nn.functional.conv2d``.
        padding: rows and columns of zeros around x.
        relu: whether negative results become 0.

    Returns:
        f32 [N, H', W', O].
    """
    left, right, top, bottom = padding
    own = (top, left)
    if left != right or top != bottom:
        if x.device.type == "cpu" and groups > 1 and dilation == (1, 1):  # their few weights are padded sooner than x
            own = max(top, bottom), max(left, right)
            weight = F.pad(weight, (own[1] - left, own[1] - right, own[0] - top, own[0] - bottom))
            weight = weight.contiguous(memory_format=torch.channels_last)
        else:
            x, own = _with_zeros_around(x, padding), (0, 0)
    covers_image = weight.shape[2:] == x.shape[1:3] and groups == 1 and dilation == (1, 1) and not any(own)
    if covers_image and total is None and len(x) > 0:
        # oneDNN would read all weights once for each image. Give it one image, whose pixels the images are.
        rows = weight.permute(0, 2, 3, 1).flatten(1)
        x, weight, shape = x.reshape(1, len(x), 1, rows.shape[1]), rows[:, :, None, None], (len(x), 1, 1, len(rows))
        return _convolve_images(x, weight, bias, total, own, (1, 1), dilation, groups, relu).reshape(shape)
    return _convolve_images(x, weight, bias, total, own, stride, dilation, groups, relu)


def _convolve_images(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    total: Tensor | None,
    padding: Pair,
    stride: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
) -> Tensor:
    """See ``convolve``; ``padding`` is the same on both sides."""
    x = x.permute(0, 3, 1, 2)
    total = None if total is None else total.permute(0, 3, 1, 2)
    geometry = padding, stride, dilation, groups
    y: Tensor
    if x.device.type != "cpu" or len(x) == 0 or not torch.backends.mkldnn.is_available():
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        y = y if total is None else total.add_(y)
        y = y.relu_() if relu else y
    elif total is not None:
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        y = add(total, x, weight, bias, *geometry, "add", 1.0, "relu" if relu else None, [], None)
    elif relu:
        y = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "relu", [], "")
    else:
        # conv2d avoids oneDNN for 1x1 kernels in small batches on one thread, and is then half as fast.
        y = torch.mkldnn_convolution(x, weight, bias, *geometry)
    return y.permute(0, 2, 3, 1)


def _with_zeros_around(x: Tensor, sides: Sides) -> Tensor:
    """Pad x [N, H, W, C] with zeros, in half the time of ``torch.nn.functional.pad`` on a CPU."""
    left, right, top, bottom = sides
    num_images, height, width, channels = x.shape
    y = x.new_empty(num_images, top + height + bottom, left + width + right, channels)
    y[:, :top] = 0
    y[:, top + height :] = 0
    y[:, :, :left] = 0
    y[:, :, left + width :] = 0
    y[:, top : top + height, left : left + width] = x
    return y
