"""Triton's kernels equal their definitions, compile for every GPU that is served, and count as one kernel each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.stand_in import Record
from lrs3_loader.kernels.convolution import convolution_prelu, residual_block
from support.paths import REPO

pytest.importorskip("triton", reason="Triton comes with torch on Linux, except with the CPU's own wheels")

ARCHITECTURES = (80, 89, 90, 100)  # A100, L40S and RTX 4090, H100 and H200, B200
TYPES = {"x": "*fp32", "divisor": "fp32", "offset": "fp32", "epsilon": "fp32"}
POINTERS = ("weight", "bias", "slope", "shortcut", "y", "z")  # how their names end


def test_interpreted_kernels_equal_their_definitions() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "tests/kernels/interpreted.py",
    ]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


#: The kernels of the landmark networks, by channels and those of the next convolution.
CONVOLUTIONS = [(16, 8, 3, 2), (24, 0, 5, 5), (64, 0, 2, 32)]
BLOCKS = [(16, 8, 1, 1), (32, 16, 1, 2), (64, 32, 2, 1), (128, 64, 4, 1), (128, 64, 4, 2), (96, 0, 6, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_convolutions_compile_without_spilling(
    architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrs3_loader.kernels.on_gpu import convolution as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for num_channels, num_next, kernel, num_steps in CONVOLUTIONS:
        settings = _settings(num_channels, num_next) | {"KERNEL": kernel, "NUM_STEPS": num_steps}
        _compile(kernels.convolution_kernel, settings, architecture)
    for num_channels, num_next, num_steps, shortcut in BLOCKS:
        settings = _settings(num_channels, num_next) | {"KERNEL": 3, "NUM_STEPS": num_steps, "SHORTCUT": shortcut}
        _compile(kernels.residual_kernel, settings, architecture)


def _settings(num_channels: int, num_next: int) -> dict[str, Any]:
    from lrs3_loader.kernels.on_gpu.convolution import block_sizes

    absent = {} if num_next else dict.fromkeys(("next_weight", "next_bias", "next_slope"))
    return {**block_sizes(num_channels, num_next), **absent, "HAS_NEXT": num_next > 0}


def _compile(kernel: Any, settings: dict[str, Any], architecture: int) -> None:
    from support.triton_compiler import compile_kernel

    pointers = (name for name in kernel.arg_names if name.endswith(POINTERS) and not name.startswith("num_"))
    types = TYPES | dict.fromkeys(pointers, "*fp32")
    made = compile_kernel(kernel, types, settings, architecture)
    assert made.stack_bytes == 0, f"{kernel.__name__} {settings} spills on sm_{architecture}: {made}"
    assert made.shared_bytes <= 99 << 10, f"{kernel.__name__} {settings}: {made}"  # the least of these GPUs


def block(device: str) -> tuple[Any, ...]:
    """Arguments of a block of 8 channels between 16."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    weights = (random(3, 3, 8), random(8), random(8, 16), random(16))
    following = (random(16, 8), random(8), random(8))
    return (random(2, 6, 5, 8), *weights, random(2, 6, 5, 16), random(16), *following, 1, [1, 1, 1, 1])


def test_operators_keep_the_rules_of_pytorch() -> None:
    arguments = block("cpu")
    torch.library.opcheck(residual_block, arguments, test_utils=("test_schema", "test_faketensor"))
    x = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8)
    weights = (torch.randn(3, 3, 3, 8), torch.randn(8), torch.randn(8))
    convolution = (x, *weights, None, None, None, 2, [0, 1, 0, 1], 127.5, 1.0)
    torch.library.opcheck(convolution_prelu, convolution, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.gpu
def test_a_block_on_the_gpu_gives_the_cpus_numbers() -> None:
    for found, expected in zip(residual_block(*block("cuda")), residual_block(*block("cpu")), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_the_stand_in_counts_an_operator_as_one_kernel_with_its_bytes(stand_in: Record) -> None:
    arguments = block("cuda")
    stand_in.clear()
    y, z = residual_block(*arguments)
    (kernel,) = stand_in.kernels
    tensors = [one for one in (*arguments, y, z) if isinstance(one, Tensor)]
    assert kernel.num_bytes == 4 * sum(tensor.numel() for tensor in tensors)
    pixels = 2 * 6 * 5
    assert kernel.num_flops == 2 * pixels * (9 * 8 + 8 * 16 + 16 * 8)
    assert kernel.is_product
    # x as its own shortcut is read once
    stand_in.clear()
    x = arguments[5]
    residual_block(x, *(torch.ones(shape).cuda() for shape in ((3, 3, 16), (16,), (16, 16), (16,))), x, *arguments[6:])
    assert stand_in.kernels[-1].op == "residual_block"
    assert stand_in.kernels[-1].num_bytes < 4 * (4 * x.numel() + 2000)
