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
from support.tflite_writer import SAME, VALID, Writer, random

pytestmark = pytest.mark.smoke


class Drawer:
    """Draws a network layer by layer; tensors are their numbers and shapes [H, W, C]."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.net = Writer((1, height, width, channels))
        self.shape = {0: (height, width, channels)}
        self.seed = 0

    def constant(self, *shape: int) -> int:
        self.seed += 1
        return self.net.constant(random(*shape, seed=self.seed))

    def add(self, name: str, inputs: list[int], shape: tuple[int, ...], options: dict | None = None) -> int:
        made = self.net.op(name, inputs, (1, *shape), options)
        self.shape[made] = shape
        return made

    def convolution(
        self,
        x: int,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        relu: int = 0,
        bias: bool = True,
        same: bool = True,
    ) -> int:
        height, width, before = self.shape[x]
        shape = [(size if same else size - kernel + 1) for size in (height, width)]
        options = {0: SAME if same else VALID, 1: ("i", stride), 2: ("i", stride), 3: ("b", relu)}
        inputs = [x, self.constant(channels, kernel, kernel, before), *([self.constant(channels)] if bias else [])]
        return self.add("CONV_2D", inputs, (-(-shape[0] // stride), -(-shape[1] // stride), channels), options)

    def depthwise(self, x: int, stride: int = 1, multiplier: int = 1) -> int:
        height, width, before = self.shape[x]
        channels = before * multiplier
        options = {0: SAME, 1: ("i", stride), 2: ("i", stride), 3: ("i", multiplier)}
        inputs = [x, self.constant(1, 3, 3, channels), self.constant(channels)]
        return self.add("DEPTHWISE_CONV_2D", inputs, (-(-height // stride), -(-width // stride), channels), options)

    def prelu(self, x: int) -> int:
        return self.add("PRELU", [x, self.constant(1, 1, self.shape[x][2])], self.shape[x])

    def relu(self, x: int) -> int:
        return self.add("RELU", [x], self.shape[x])

    def sum(self, a: int, b: int, relu: int = 0) -> int:
        return self.add("ADD", [a, b], self.shape[a], {0: ("b", relu)})

    def halved(self, x: int) -> int:
        height, width, channels = self.shape[x]
        options = {0: VALID, 1: ("i", 2), 2: ("i", 2), 3: ("i", 2), 4: ("i", 2)}
        return self.add("MAX_POOL_2D", [x], (height // 2, width // 2, channels), options)

    def padded(self, x: int, channels: int, rows: int = 0) -> int:
        height, width, before = self.shape[x]
        amounts = self.net.constant(np.int32([[0, 0], [0, rows], [0, 0], [0, channels - before]]))
        return self.add("PAD", [x, amounts], (height + rows, width, channels))


def inverted(net: Drawer) -> list[int]:
    """The blocks of the network of 478 points: stem, two blocks, and one at half the size."""
    x = net.prelu(net.convolution(0, 16, kernel=3, stride=2))
    for _ in range(2):
        narrow = net.prelu(net.convolution(x, 8))
        x = net.prelu(net.sum(x, net.convolution(net.depthwise(narrow), 16)))
    narrow = net.prelu(net.convolution(x, 16, kernel=2, stride=2))
    x = net.prelu(net.sum(net.padded(net.halved(x), 32), net.convolution(net.depthwise(narrow), 32)))
    return [net.convolution(x, 150, kernel=3, same=False), net.convolution(x, 1, kernel=3, same=False)]


def separable(net: Drawer) -> list[int]:
    """The blocks of BlazeFace, whose shortcut is the block's own input; two heads on one tensor."""
    x = net.relu(net.convolution(0, 24, kernel=5, stride=2))
    x = net.relu(net.sum(net.padded(x, 28), net.convolution(net.depthwise(x), 28)))
    x = net.sum(net.padded(net.halved(x), 32), net.convolution(net.depthwise(x, stride=2), 32), relu=1)
    return [net.convolution(x, 2), net.convolution(x, 32)]


def unsuited(net: Drawer) -> list[int]:
    """What the operators cannot compute, or what is needed elsewhere, too."""
    x = net.convolution(0, 4, kernel=3, bias=False)
    x = net.convolution(net.depthwise(x, multiplier=2), 4, relu=3)  # RELU6
    filtered = net.depthwise(x)
    wide = net.convolution(filtered, 4)
    total = net.sum(wide, filtered)
    high = net.padded(net.sum(wide, total), 4, rows=2)
    return [net.sum(high, net.relu(high)), net.relu(x), net.sum(x, x)]


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
