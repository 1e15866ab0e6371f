"""ResNet's residual block with normalisation folded into its convolutions, each with what follows it in one kernel.

PyTorch runs a convolution, its bias, the residual and the ReLU as kernels of their own on a GPU, which read and write
every value again; cuDNN has one for all of them. Whether that is used is decided once, at start-up (see
``lrs3_loader.kernels.trust``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Largest difference of joined from plain kernels: root mean square over the deviation of the plain results.
MAX_DIFFERENCE = {torch.float16: 0.01, torch.bfloat16: 0.05}


class ConvReLU(nn.Module):
    """A convolution, the sum with a residual if there is one, and ReLU; on a GPU in one kernel if ``is_joined``."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.is_joined = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        conv = self.conv
        if self.is_joined:
            geometry: tuple[Any, ...] = (conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
            if residual is None:
                return torch.cudnn_convolution_relu(x, conv.weight, *geometry)
            return torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, *geometry)
        y: Tensor = conv(x)
        if residual is not None:
            y += residual
        return y.relu_()


class ResidualBlock(nn.Module):
    """Three convolutions and a shortcut: ``relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut(x))``.

    Args:
        block: a torchvision ``Bottleneck`` whose normalisations are folded into its convolutions.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (ConvReLU(conv) for conv in (block.conv1, block.conv2, block.conv3))
        self.shortcut = nn.Identity() if block.downsample is None else block.downsample
        if block.downsample is not None:  # one bias for the sum: on a GPU, a convolution's own is a kernel more
            with torch.no_grad():
                block.conv3.bias += block.downsample.bias
            block.downsample.bias = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.conv2(self.conv1(x)), self.shortcut(x))
        return y


def use_joined_kernels(network: nn.Module, wanted: bool) -> None:
    """Make all ``ConvReLU`` of a network use cuDNN's joined kernels, or PyTorch's own."""
    for module in network.modules():
        if isinstance(module, ConvReLU):
            module.is_joined = wanted
