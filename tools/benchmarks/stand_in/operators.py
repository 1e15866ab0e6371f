"""The package's own operators on the stand-in device: one kernel each, whose products are priced as float32's.

On a GPU they are three products in TF32 each (see ``lrs3_loader.kernels.convolution``), which take less time there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from lrs3_loader.kernels import convolution  # defines the operators

OPERATORS = frozenset({"convolution_prelu", "residual_block"})
assert convolution is not None


@register_flop_formula(torch.ops.lrs3_loader.convolution_prelu)
def _convolution_flops(x: Any, weight: Any, bias: Any, slope: Any, *rest: Any, out_shape: Any, **_: Any) -> int:
    num_pixels, taps = _num_pixels(out_shape), weight[0] * weight[1] * weight[2]
    return 2 * num_pixels * (taps * weight[3] + _product(rest[0]))


@register_flop_formula(torch.ops.lrs3_loader.residual_block)
def _block_flops(x: Any, kernels: Any, bias: Any, weight: Any, *rest: Any, out_shape: Any, **_: Any) -> int:
    num_pixels, taps = _num_pixels(out_shape), kernels[0] * kernels[1] * kernels[2]
    return 2 * num_pixels * (taps + _product(weight) + _product(rest[3]))


def _num_pixels(out_shape: Any) -> int:
    """Pixels of y [N, H', W', O]; for one result, its shape is given, for several a list of them."""
    shape = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return int(shape[0] * shape[1] * shape[2])


def _product(weight: Any) -> int:
    """Multiplications of a 1 x 1 convolution for each pixel; none without weight."""
    return 0 if weight is None else int(weight[0] * weight[1])
