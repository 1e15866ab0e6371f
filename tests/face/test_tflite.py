"""The TensorFlow Lite reader and its operators, against loops that follow the definitions."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrs3_loader.face.landmarks.tflite import MAX_SLICE, TFLiteModule
from lrs3_loader.face.landmarks.tflite_graph import read_graph
from lrs3_loader.face.landmarks.tflite_ops import same_padding
from support.tflite_writer import SAME, VALID, Writer, random, runs_or_is_refused, small_network

pytestmark = pytest.mark.smoke


def run(data: bytes, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        (y,) = TFLiteModule(data)(torch.from_numpy(x))
    return y.numpy()


def window_positions(size: int, kernel: int, stride: int, dilation: int, same: bool) -> list[list[int]]:
    """For each output, the input positions under the kernel; outside ones are negative or too large."""
    reach = (kernel - 1) * dilation + 1
    count = -(-size // stride) if same else (size - reach) // stride + 1
    before = max((count - 1) * stride + reach - size, 0) // 2 if same else 0
    return [[i * stride - before + k * dilation for k in range(kernel)] for i in range(count)]


def windows(
    x: np.ndarray, kernel: tuple[int, int], stride: int, dilation: int, same: bool, outside: float
) -> np.ndarray:
    """[N, H, W, C] -> [N, H', W', K, K, C] by loops."""
    num, height, width, channels = x.shape
    rows = window_positions(height, kernel[0], stride, dilation, same)
    columns = window_positions(width, kernel[1], stride, dilation, same)
    out = np.full((num, len(rows), len(columns), *kernel, channels), outside, np.float64)
    for i, ys in enumerate(rows):
        for j, xs in enumerate(columns):
            for a, y in enumerate(ys):
                for b, column in enumerate(xs):
                    if 0 <= y < height and 0 <= column < width:
                        out[:, i, j, a, b] = x[:, y, column]
    return out


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("height", "width", "kernel"), [(8, 7, 3), (9, 6, 5), (6, 6, 1), (5, 8, 2)])
def test_convolution(height: int, width: int, kernel: int, stride: int, same: bool) -> None:
    weight, bias = random(4, kernel, kernel, 3, seed=1), random(4, seed=2)
    x = random(3, height, width, 3)
    expected = np.einsum("nhwabc,oabc->nhwo", windows(x, (kernel, kernel), stride, 1, same, 0), weight) + bias
    net = Writer((1, height, width, 3))
    options = {0: SAME if same else VALID, 1: ("i", stride), 2: ("i", stride)}
    y = net.op("CONV_2D", [0, net.constant(weight), net.constant(bias)], (1, *expected.shape[1:]), options)
    np.testing.assert_allclose(run(net.finish([y]), x), expected, atol=1e-4)


@pytest.mark.parametrize(("dilation", "multiplier", "relu"), [(1, 1, True), (2, 1, False), (1, 2, False), (2, 3, True)])
def test_depthwise_convolution(dilation: int, multiplier: int, relu: bool) -> None:
    weight, bias = random(1, 3, 3, 4 * multiplier, seed=1), random(4 * multiplier, seed=2)
    x = random(2, 9, 8, 4)
    found = windows(x, (3, 3), 1, dilation, True, 0)
    expected = np.einsum("nhwabc,abcm->nhwcm", found, weight[0].reshape(3, 3, 4, multiplier))
    expected = expected.reshape(2, 9, 8, -1) + bias
    net = Writer((1, 9, 8, 4))
    options = {0: SAME, 1: ("i", 1), 2: ("i", 1), 3: ("i", multiplier), 4: ("b", int(relu))}
    options |= {5: ("i", dilation), 6: ("i", dilation)}
    inputs = [0, net.constant(weight), net.constant(bias)]
    y = net.op("DEPTHWISE_CONV_2D", inputs, (1, *expected.shape[1:]), options)
    np.testing.assert_allclose(run(net.finish([y]), x), np.maximum(expected, 0) if relu else expected, atol=1e-4)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("size", [7, 8])
def test_max_pool(size: int, same: bool) -> None:
    x = random(2, size, size, 3) - 5  # all below 0: padding with zeros would show
    expected = windows(x, (3, 3), 2, 1, same, -np.inf).max((3, 4))
    net = Writer((1, size, size, 3))
    options = {0: SAME if same else VALID, 1: ("i", 2), 2: ("i", 2), 3: ("i", 3), 4: ("i", 3)}
    y = net.op("MAX_POOL_2D", [0], (1, *expected.shape[1:]), options)
    np.testing.assert_array_equal(run(net.finish([y]), x), expected.astype(np.float32))


def test_same_padding_puts_the_odd_pixel_last() -> None:
    assert same_padding(128, 3, 2) == (0, 1)
    assert same_padding(127, 3, 2) == (1, 1)
    assert same_padding(128, 5, 2) == (1, 2)
    assert same_padding(4, 1, 3) == (0, 0)


C = random(3, seed=3)
REST: dict[str, tuple[tuple[int, ...], list[np.ndarray], dict[int, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "PRELU": ((4, 5, 3), [C.reshape(1, 1, 3)], {}, lambda x: np.where(x > 0, x, x * C)),
    "RELU": ((4,), [], {}, lambda x: np.maximum(x, 0)),
    "LOGISTIC": ((4,), [], {}, lambda x: 1 / (1 + np.exp(-x))),
    "NEG": ((4,), [], {}, lambda x: -x),
    "ADD": ((4, 3), [C], {0: ("b", 1)}, lambda x: np.maximum(x + C, 0)),
    "SUB": ((4, 3), [C], {}, lambda x: x - C),
    "MUL": ((4, 3), [C[:1].reshape(())], {}, lambda x: x * C[0]),
    "DIV": ((4, 3), [C], {}, lambda x: x / C),
    "SQUARED_DIFFERENCE": ((4, 3), [C], {}, lambda x: (x - C) ** 2),
    "MEAN": ((4, 3), [np.int32([-2])], {0: ("b", 1)}, lambda x: x.mean(1, keepdims=True)),
    "SUM": ((4, 3), [np.int32([1, 2])], {}, lambda x: x.sum((1, 2))),
    "TRANSPOSE": ((4, 3), [np.int32([0, 2, 1])], {}, lambda x: x.transpose(0, 2, 1)),
    "RESHAPE": ((4, 3), [np.int32([1, -1])], {}, lambda x: x.reshape(len(x), 12)),
    "PAD": (
        (4, 3),
        [np.int32([[0, 0], [1, 2], [0, 3]])],
        {},
        lambda x: np.pad(x, [(0, 0), (1, 2), (0, 3)]),
    ),
    "STRIDED_SLICE": (
        (4, 6),
        [np.int32([0, 1, 0]), np.int32([1, 0, -1]), np.int32([1, 1, 2])],
        {1: ("i", 2)},  # no end on axis 1
        lambda x: x[:, 1:, 0:-1:2],
    ),
}


@pytest.mark.parametrize("name", REST)
def test_other_operators(name: str) -> None:
    shape, constants, options, function = REST[name]
    x = random(3, *shape)
    expected = function(x.astype(np.float64))
    net = Writer((1, *shape))
    y = net.op(name, [0, *map(net.constant, constants)], (1, *expected.shape[1:]), options)
    np.testing.assert_allclose(run(net.finish([y]), x), expected, atol=1e-5)


def test_square_roots() -> None:
    x = np.abs(random(3, 4)) + 0.1
    net = Writer((1, 4))
    y = net.op("RSQRT", [net.op("SQRT", [0], (1, 4))], (1, 4))
    np.testing.assert_allclose(run(net.finish([y]), x), x**-0.25, rtol=1e-5)


def test_constants_are_repeated_over_the_batch() -> None:
    first = random(1, 1, 3, seed=1)
    x = random(5, 2, 3)
    net = Writer((1, 2, 3))
    y = net.op("CONCATENATION", [net.constant(first), 0], (1, 3, 3), {0: ("i", -2)})
    expected = np.concatenate([np.repeat(first, 5, 0), x], 1)
    np.testing.assert_array_equal(run(net.finish([y]), x), expected)


def test_a_dropped_batch_axis_is_kept() -> None:
    net = Writer((1, 4))
    cut = [net.constant(np.int32(v)) for v in ([0, 0], [1, 4], [1, 1])]
    y = net.op("STRIDED_SLICE", [0, *cut], (4,), {0: ("i", 2), 1: ("i", 2), 4: ("i", 1)})
    x = random(5, 4)
    np.testing.assert_array_equal(run(net.finish([y]), x), x)


def test_half_precision_weights_and_shared_tensors() -> None:
    weight = random(3, seed=1).astype(np.float16)
    net = Writer((1, 3))
    full = net.op("DEQUANTIZE", [net.constant(weight)], (3,))
    scaled = net.op("MUL", [0, full], (1, 3))
    y = net.op("ADD", [scaled, 0], (1, 3))
    x = random(2, 3)
    with torch.inference_mode():
        sums, products = TFLiteModule(net.finish([y, scaled]))(torch.from_numpy(x))
    np.testing.assert_allclose(products.numpy(), x * weight.astype(np.float32), rtol=1e-6)
    np.testing.assert_allclose(sums.numpy(), products.numpy() + x, rtol=1e-6)


def test_results_do_not_depend_on_the_batch() -> None:
    network = TFLiteModule(small_network())
    x = torch.from_numpy(random(2 * MAX_SLICE, 6, 6, 3))
    with torch.inference_mode():
        (together,) = network(x)
        (apart,) = network(x[MAX_SLICE:])
        single = torch.cat([network(item[None])[0] for item in x])
    assert torch.equal(together[MAX_SLICE:], apart)
    torch.testing.assert_close(together, single, rtol=0, atol=1e-6)


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input must be \[N, 6, 6, 3\], got \[1, 6, 7, 3\]"):
        TFLiteModule(small_network())(torch.zeros(1, 6, 7, 3))


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        ("SOFTMAX", [], {}, "operator SOFTMAX is not supported; supported are ADD, CONCAT"),
        ("BROADCAST_TO", [], {}, "operator 130 is not supported"),
        ("TRANSPOSE", [np.int32([1, 0, 2])], {}, "moves the batch axis"),
        ("MEAN", [np.int32([0])], {}, "MEAN over axes"),
        ("ADD", [random(3)], {0: ("b", 4)}, "fused activation 4"),
        ("ADD", [np.int8([1, 2, 3])], {}, "integer quantisation"),
        ("ADD", [random(3), random(3)], {}, "ADD with 3 inputs"),
        ("PAD", [np.int32([[1, 0], [0, 0], [0, 0]])], {}, "PAD by"),
    ],
)
def test_what_is_not_supported_is_named(
    name: str, inputs: list[np.ndarray], options: dict[int, Any], message: str
) -> None:
    net = Writer((1, 4, 3))
    y = net.op(name, [0, *map(net.constant, inputs)], (1, 4, 3), options)
    with pytest.raises(ValueError, match=message):
        TFLiteModule(net.finish([y]))


def test_a_shape_that_contradicts_its_operator_is_refused() -> None:
    net = Writer((1, 4, 3))
    y = net.op("ADD", [0, net.constant(random(3))], (1, 4, 4))
    with pytest.raises(ValueError, match=r"has shape \(0, 4, 3\), the file states \(0, 4, 4\)"):
        TFLiteModule(net.finish([y]))


def test_a_tensor_used_before_it_is_written_is_refused() -> None:
    net = Writer((1, 3))
    net.op("NEG", [2], (1, 3))
    y = net.op("NEG", [0], (1, 3))
    with pytest.raises(ValueError, match="nothing has written"):
        TFLiteModule(net.finish([y]))


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 64, b"\xff" * 64, b"\x10\0\0\0TFL3", b"PK\x03\x04" * 99])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="file"):
        TFLiteModule(data)


def test_every_truncation_is_refused() -> None:
    data = small_network()
    assert all(runs_or_is_refused(data[:length]) for length in range(len(data) - 4))


@pytest.mark.slow
def test_damage_anywhere_is_refused_or_harmless() -> None:
    data = small_network()
    refused = 0
    for position in range(len(data)):
        for bit in (position % 8, (position + 3) % 8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            refused += runs_or_is_refused(bytes(damaged))
    assert refused > len(data)  # of twice as many trials; the rest hit weights, paddings and defaults


def read_detector(shared_assets: Path) -> bytes:
    with zipfile.ZipFile(shared_assets / "face_landmarker.task") as task:
        return task.read("face_detector.tflite")


def test_a_real_model_damaged(shared_assets: Path) -> None:
    data = read_detector(shared_assets)
    for length in np.linspace(0, len(data) - 64, 100).astype(int):
        assert runs_or_is_refused(data[:length]), f"cut at {length}"
    random_numbers = np.random.default_rng(0)
    structure = len(data) - 30_000  # tensors and operators lie at the end, behind the weights
    for position in random_numbers.integers(structure, len(data), 120):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(random_numbers.integers(8))
        runs_or_is_refused(bytes(damaged))


def test_a_real_model_is_read_whole(shared_assets: Path) -> None:
    data = read_detector(shared_assets)
    graph = read_graph(data)
    assert (len(graph.tensors), len(graph.operators)) == (250, 164)
    network = TFLiteModule(data)
    assert network.input_shape == (128, 128, 3)
    assert network.output_shapes == ((896, 16), (896, 1))
    assert len(network.layers) == 164 - 74  # 74 weights are made f32 at load
