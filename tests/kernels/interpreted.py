"""Triton's kernels against their definitions, interpreted on the host: run by ``test_kernels.py`` in a process apart.

Values are small whole numbers, of which f32 holds every sum, so that results must be equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lrs3_loader.kernels import convolution
from lrs3_loader.kernels.on_gpu import convolution as on_gpu


def whole(*shape: int, seed: int) -> Tensor:
    """Whole numbers from -3 to 3."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def following(num_channels: int, num_next: int) -> list[Tensor | None]:
    """Weight, bias and slope of the next convolution, if it has channels."""
    if not num_next:
        return [None, None, None]
    return [whole(num_channels, num_next, seed=5), whole(num_next, seed=6), whole(num_next, seed=7)]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("shape", "num_channels", "num_next", "kernel", "stride", "padding"),
    [
        ((2, 9, 7, 3), 16, 8, 3, 2, (0, 1, 0, 1)),
        ((1, 5, 6, 3), 24, 0, 5, 2, (1, 2, 1, 2)),
        ((3, 6, 6, 16), 16, 0, 2, 2, (0, 0, 0, 0)),
        ((3, 2, 2, 20), 150, 0, 2, 1, (0, 0, 0, 0)),
        ((1, 3, 5, 33), 48, 33, 1, 1, (0, 0, 0, 0)),
        ((1, 1, 1, 1), 1, 1, 1, 1, (0, 0, 0, 0)),
    ],
)
def test_convolution_prelu(
    shape: tuple[int, ...], num_channels: int, num_next: int, kernel: int, stride: int, padding: Sequence[int]
) -> None:
    weight = whole(kernel, kernel, shape[3], num_channels, seed=1)
    rest = (whole(num_channels, seed=2), whole(num_channels, seed=3), *following(num_channels, num_next))
    for x in (whole(*shape, seed=4), whole(*shape, seed=4).add(3).to(torch.uint8)):
        arguments = (x, weight, *rest, stride, list(padding), 0.5, 1.0)
        expected = convolution.convolution_prelu(*arguments)
        assert_equal(on_gpu.convolution_prelu(*arguments), expected)


@pytest.mark.parametrize(
    ("shape", "num_channels", "num_shortcut", "scale", "num_next", "stride", "padding"),
    [
        ((2, 9, 7, 8), 16, 16, 1, 8, 1, (1, 1, 1, 1)),
        ((1, 6, 6, 16), 32, 16, 2, 16, 1, (1, 1, 1, 1)),
        ((3, 8, 8, 28), 32, 28, 2, 0, 2, (0, 1, 0, 1)),
        ((1, 5, 5, 88), 96, 0, 1, 0, 1, (1, 1, 1, 1)),
        ((2, 3, 5, 64), 128, 100, 1, 64, 1, (1, 1, 1, 1)),
        ((1, 1, 1, 1), 1, 1, 2, 1, 1, (1, 1, 1, 1)),
    ],
)
def test_residual_block(
    shape: tuple[int, ...],
    num_channels: int,
    num_shortcut: int,
    scale: int,
    num_next: int,
    stride: int,
    padding: Sequence[int],
) -> None:
    x, channels = whole(*shape, seed=1), shape[3]
    _, height, width, _ = convolution.out_shape(x, 3, num_channels, stride, padding)
    shortcut = whole(shape[0], scale * height, scale * width, num_shortcut, seed=8) if num_shortcut else None
    arguments = (
        x,
        whole(3, 3, channels, seed=2),
        whole(channels, seed=3),
        whole(channels, num_channels, seed=4),
        whole(num_channels, seed=9),
        shortcut,
        whole(num_channels, seed=10),
        *following(num_channels, num_next),
        stride,
        list(padding),
    )
    assert_equal(on_gpu.residual_block(*arguments), convolution.residual_block(*arguments))


def test_not_a_number_stays_one() -> None:
    x, shortcut = torch.zeros(1, 4, 4, 4), torch.zeros(1, 8, 8, 4)
    x[0, 0, 0, 0] = shortcut[0, 7, 7, 3] = torch.nan
    weights = (whole(3, 3, 4, seed=1), whole(4, seed=2), whole(4, 4, seed=3), whole(4, seed=4))
    arguments = (x, *weights, shortcut, whole(4, seed=5), None, None, None, 1, [1, 1, 1, 1])
    (found,), (expected,) = on_gpu.residual_block(*arguments), convolution.residual_block(*arguments)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()
