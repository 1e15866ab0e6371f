"""Draws TensorFlow Lite networks layer by layer, and those that several tests use."""

from __future__ import annotations

import numpy as np

from support.tflite_writer import SAME, VALID, Writer, random


class Drawer:
    """Draws a network layer by layer; tensors are their numbers and shapes [H, W, C]."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.net = Writer((1, height, width, channels))
        self.shape = {0: (height, width, channels)}
        self.seed = 0

    def constant(self, *shape: int) -> int:
        self.seed += 1
        return self.net.constant(random(*shape, seed=self.seed))

    def shape_constant(self, *sizes: int) -> int:
        return self.net.constant(np.int32(sizes))

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
