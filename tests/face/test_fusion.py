"""Networks whose layers are joined give what they give layer by layer."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lrs3_loader.face.landmarks.fusion import JoinedBlock, JoinedConvolution
from lrs3_loader.face.landmarks.tflite import TFLiteModule
from support.network_drawer import Drawer, inverted, separable, unsuited

pytestmark = pytest.mark.smoke


def normalized(net: Drawer) -> list[int]:
    """A layer normalisation, and one whose variance is needed elsewhere, too."""
    shape = net.shape[0]
    one = (*shape[:2], 1)
    x, results = 0, []
    for _ in range(2):
        axis = net.net.constant(np.int32([-1]))
        mean = net.add("MEAN", [x, axis], one, {0: ("b", 1)})
        negated = net.add("NEG", [mean], one)
        variance = net.add("MEAN", [net.add("SQUARED_DIFFERENCE", [x, mean], shape), axis], one, {0: ("b", 1)})
        scale = net.add("RSQRT", [net.add("ADD", [variance, net.net.constant(np.float32([1e-3]))], one)], one)
        scale = net.add("MUL", [scale, net.constant(shape[2])], shape)
        product, shift = (net.add("MUL", [one_of, scale], shape) for one_of in (x, negated))
        x = net.sum(product, shift)
        results = [x, variance]
    return results


@pytest.mark.parametrize(
    ("draw", "size", "num_blocks", "num_convolutions", "num_others"),
    [
        (inverted, (12, 20, 3), 3, 4, 0),
        (separable, (16, 8, 3), 2, 2, 0),
        (unsuited, (6, 5, 3), 0, 1, 11),
        (normalized, (4, 5, 6), 0, 0, 11),
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_joined_layers_give_the_same_results(
    draw: Callable[[Drawer], list[int]],
    size: tuple[int, int, int],
    num_blocks: int,
    num_convolutions: int,
    num_others: int,
    kind: torch.dtype,
) -> None:
    net = Drawer(*size)
    network = TFLiteModule(net.net.finish(draw(net)), divisor=127.5, offset=1.0)
    x = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0)).to(kind)
    expected = compute(network, x)
    network.use_joined_layers(True)
    assert network._joined is not None
    kinds = [type(step.compute) for step in network._joined]
    counted = kinds.count(JoinedBlock), kinds.count(JoinedConvolution)
    assert (*counted, len(kinds) - sum(counted)) == (num_blocks, num_convolutions, num_others)
    for one, other in zip(compute(network, x), expected, strict=True):
        # Where large terms cancel, what is left has the rounding error of the terms.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))
    network.use_joined_layers(False)
    assert all(map(torch.equal, compute(network, x), expected))


@torch.inference_mode()
def compute(network: TFLiteModule, x: Tensor) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = network(x)
    return results


@pytest.mark.parametrize(("member", "most"), [("face_detector.tflite", 25), ("face_landmarks_detector.tflite", 46)])
def test_the_real_networks_are_joined(shared_assets: Path, member: str, most: int) -> None:
    with zipfile.ZipFile(shared_assets / "face_landmarker.task") as task:
        network = TFLiteModule(task.read(member))
    x = torch.rand(2, *network.input_shape, generator=torch.Generator().manual_seed(0))
    expected = compute(network, x)
    network.use_joined_layers(True)
    assert network._joined is not None
    assert len(network._joined) <= most
    for one, other in zip(compute(network, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
