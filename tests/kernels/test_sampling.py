"""The kernels that sample frames: equal to their definitions, compiled for every GPU that is served, one count each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.stand_in import Record
from lrs3_loader.face.image import spans
from lrs3_loader.face.image.resample import resample_spans
from lrs3_loader.face.image.spans import SpanSampler, crop_spans, letterbox_spans
from support.paths import REPO

ARCHITECTURES = (80, 89, 90, 100)  # A100, L40S and RTX 4090, H100 and H200, B200


def frames_of_two_sizes(device: str = "cpu") -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((3, 30, 40, 3), (2, 25, 20, 3))
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=random).to(device) for shape in shapes]


def test_interpreted_kernels_equal_their_definitions() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch on Linux, except with the CPU's own wheels")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command.append("tests/kernels/interpreted_sampling.py")
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spilling(architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton comes with torch on Linux, except with the CPU's own wheels")
    from lrs3_loader.kernels.on_gpu import sampling
    from support.triton_compiler import compile_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"frames": "*u8", "out": "*u8", "matrix": "*fp32", "first": "*i32", "taps": "*i32"}
    types |= dict.fromkeys(("scale", "shift_rows", "shift_columns"), "fp32")
    sizes = [(sampling.crop_kernel, {"SIZE": 256}), (sampling.letterbox_kernel, {"SIZE": 128})]
    sizes += [(sampling.resample_kernel, {"SIZE": 224, "NUM_TAPS": number}) for number in (5, 21)]
    for kernel, size in sizes:
        settings = {**size, "BLOCK": sampling.BLOCK, **sampling.LAUNCH}
        made = compile_kernel(kernel, types, settings, architecture)
        assert made.stack_bytes == 0, f"{kernel.__name__} spills on sm_{architecture}: {made}"
        assert made.registers <= 128, f"{kernel.__name__}: {made}"  # for 512 threads at once on each processor


def test_operators_keep_the_rules_of_pytorch() -> None:
    frames = frames_of_two_sizes()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(crop_spans, (frames, torch.ones(5, 2, 3), 8, 7), test_utils=checks)
    torch.library.opcheck(letterbox_spans, (frames, 8, 7), test_utils=checks)
    taps = torch.ones(5, 2, 8, 3, dtype=torch.int32)
    torch.library.opcheck(resample_spans, (frames, taps[..., 0].contiguous(), taps), test_utils=checks)


@pytest.mark.smoke
def test_definitions_equal_pytorchs_own_operations() -> None:
    frames = frames_of_two_sizes()
    plain, fused = (SpanSampler(torch.device("cpu")) for _ in range(2))
    fused.fast_path().use(True)
    matrix = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 1.0, 20.0])
    assert torch.equal(plain.crop(frames, matrix, 16, 6), fused.crop(frames, matrix, 16, 6))
    assert (plain.crop(frames, matrix, 16, 6)[5] == 0).all()
    assert torch.equal(plain.letterbox(frames, 16, 5), fused.letterbox(frames, 16, 5))
    places = torch.tensor([[50, 44]] * 3 + [[9, 8]] * 2), torch.tensor([[20, -3]] * 3 + [[-1, 0]] * 2)
    assert torch.equal(plain.resize_crop(frames, *places, 16), fused.resize_crop(frames, *places, 16))


def test_the_stand_in_counts_an_operator_as_one_kernel_with_its_bytes(stand_in: Record) -> None:
    frames = frames_of_two_sizes("cuda")
    matrix = torch.ones(5, 2, 3).cuda()
    stand_in.clear()
    crop_spans(frames, matrix, 16, 5)
    (kernel,) = stand_in.kernels
    assert kernel.num_bytes == sum(part.nbytes for part in frames) + 4 * matrix.numel() + 5 * 16 * 16 * 3
    assert not stand_in.waits


@pytest.mark.gpu
def test_kernels_are_trusted_if_they_give_the_same_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SpanSampler(torch.device("cuda"))
    assert sampler.fast_path().problem() == ""
    assert not sampler.is_fused

    def other(frames: list[torch.Tensor], size: int, batch: int) -> torch.Tensor:
        levels = spans.plain_letterbox_spans(frames, size, batch)
        levels[0, 30, 30] ^= 1
        return levels

    monkeypatch.setattr(spans, "letterbox_spans", other)
    assert "sampling of frames: results are off" in sampler.fast_path().problem()
