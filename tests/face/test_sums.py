"""Convolutions that add and activate as they write give what the layers give one after another."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrs3_loader.face.landmarks.convolve import convolve
from lrs3_loader.face.landmarks.steps import note_unused, run_steps, single_step
from lrs3_loader.face.landmarks.tflite import TFLiteModule
from support.network_drawer import Drawer, inverted, separable, unsuited
from support.tflite_writer import random

pytestmark = pytest.mark.smoke


def needed_later(net: Drawer) -> list[int]:
    """Sums whose terms are results, are read again, or share memory with what is."""
    x = net.prelu(net.convolution(0, 8))
    returned = net.relu(net.convolution(x, 8))
    total = net.sum(returned, net.convolution(x, 8))
    read_again = net.sum(total, net.convolution(total, 8))
    height, width, channels = net.shape[x]
    flat = net.add("RESHAPE", [read_again, net.shape_constant(1, -1)], (height * width * channels,))
    viewed = net.sum(read_again, net.convolution(total, 8))
    unlike = net.sum(net.prelu(viewed), net.relu(net.convolution(total, 8)))
    return [returned, net.sum(total, unlike), flat, net.sum(viewed, net.relu(unlike), relu=1)]


@pytest.mark.parametrize(
    ("draw", "size", "num_saved"),
    [
        (inverted, (12, 20, 3), 3),  # three sums
        (separable, (16, 8, 3), 3),  # a sum and its ReLU, and the ReLU of the stem; one sum has a ReLU of its own
        (unsuited, (6, 5, 3), 0),
        (needed_later, (4, 6, 3), 2),  # two ReLUs: no sum may overwrite a term
    ],
)
def test_fused_sums_give_the_same_results(
    draw: Callable[[Drawer], list[int]], size: tuple[int, int, int], num_saved: int
) -> None:
    net = Drawer(*size)
    network = TFLiteModule(net.net.finish(draw(net)))
    assert len(network._layer_steps) - len(network._steps) == num_saved
    check_results(network, rtol=1e-5)


@pytest.mark.parametrize(
    ("member", "num_saved"),
    [("face_detector.tflite", 33), ("face_landmarks_detector.tflite", 34), ("face_blendshapes.tflite", 0)],
)
def test_the_real_networks_are_fused(shared_assets: Path, member: str, num_saved: int) -> None:
    with zipfile.ZipFile(shared_assets / "face_landmarker.task") as task:
        network = TFLiteModule(task.read(member))
    assert len(network._layer_steps) - len(network._steps) >= num_saved
    check_results(network, rtol=1e-5)


@torch.inference_mode()
def check_results(network: TFLiteModule, rtol: float) -> None:
    """Compare with the layers by themselves; the input stays as it was."""
    x = torch.rand(5, *network.input_shape, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    steps = note_unused([single_step(step) for step in network._layer_steps], network._results)
    expected = run_steps(steps, {network._source: x.clone()})
    for result, number in zip(network(x), network._results, strict=True):
        scale = float(expected[number].abs().max())
        torch.testing.assert_close(result, expected[number], rtol=rtol, atol=rtol * scale)
    assert torch.equal(x, before)


@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [
        (1, 1, (0, 0, 0, 0), 1),
        (3, 2, (0, 1, 2, 0), 1),
        (5, 1, (0, 0, 0, 0), 1),  # covers the whole image
        (3, 2, (0, 1, 0, 1), 4),
        (3, 1, (2, 0, 1, 1), 4),
    ],
)
@pytest.mark.parametrize(("adds", "relu", "bias"), [(True, True, True), (True, False, False), (False, True, False)])
def test_convolutions_add_and_activate(
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    groups: int,
    adds: bool,
    relu: bool,
    bias: bool,
    by_onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: by_onednn)
    shapes = (3, 5, 5, 4), (8, 4 // groups, kernel, kernel), (8,)
    x, weight, offset = (torch.from_numpy(random(*shape)) for shape in shapes)
    weight = weight.contiguous(memory_format=torch.channels_last)
    geometry: dict[str, Any] = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1), "groups": groups}
    expected = convolved(x, weight, offset if bias else None, **geometry)
    total = torch.from_numpy(random(*expected.shape, seed=1)) if adds else None
    expected = expected if total is None else expected + total
    with torch.inference_mode():
        found = convolve(x, weight, offset if bias else None, total, relu=relu, **geometry)
    torch.testing.assert_close(found, expected.relu() if relu else expected, rtol=1e-5, atol=1e-5)
    assert total is None or found.data_ptr() == total.data_ptr()


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: Any, **geometry: Any) -> Tensor:
    padded = F.pad(x.permute(0, 3, 1, 2), padding)
    return F.conv2d(padded, weight, bias, **geometry).permute(0, 2, 3, 1).contiguous()


def test_a_kernel_of_the_whole_image_reads_each_image_by_itself() -> None:
    x, weight = torch.from_numpy(random(32, 2, 2, 8)), torch.from_numpy(random(5, 8, 2, 2))
    geometry: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    with torch.inference_mode():
        together = convolve(x, weight, **geometry)
        apart = torch.cat([convolve(image[None], weight, **geometry) for image in x])
    torch.testing.assert_close(together, convolved(x, weight, None, **geometry), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
