"""The kernels that sample frames, interpreted on the host, against their definitions: run by ``test_sampling.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lrs3_loader.face.image import resample, spans
from lrs3_loader.kernels.on_gpu import sampling

SIZES = [(17, 23), (2, 2), (8, 16), (40, 3), (64, 61)]  # (H, W)


def noise(num_frames: int, height: int, width: int) -> Tensor:
    random = np.random.default_rng(height)
    return torch.from_numpy(random.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [12, 19])
def test_crop(height: int, width: int, size: int) -> None:
    """Inside, partly and wholly outside of the frame, and at coordinates that any other rounding would move."""
    random = torch.Generator().manual_seed(width)
    matrix = torch.randn(6, 2, 3, generator=random) * torch.tensor([1.5, 1.5, 0.7 * width])
    matrix[4:] *= torch.tensor([0.0, 0.01, 1.0])
    frames, out = noise(6, height, width), torch.empty(6, size, size, 3, dtype=torch.uint8)
    sampling.crop(frames, matrix, out)
    assert torch.equal(out, spans.plain_crop_spans([frames], matrix, size, 6))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [8, 19])
def test_letterbox(height: int, width: int, size: int) -> None:
    frames, out = noise(2, height, width), torch.empty(2, size, size, 3, dtype=torch.uint8)
    sampling.letterbox(frames, out)
    assert torch.equal(out, spans.plain_letterbox_spans([frames], size, 2))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resample(height: int, width: int) -> None:
    """From a fifth to four times the frame's size; the crops lie partly outside."""
    random = np.random.default_rng(width)
    scale = np.exp(random.uniform(np.log(0.2), np.log(4), (3, 1)))
    resized = np.maximum((np.array([width, height]) * scale).astype(int), 1)
    corner = random.integers(-9, np.maximum(resized - 8, 1))
    frames, out = noise(3, height, width), torch.empty(3, 16, 16, 3, dtype=torch.uint8)
    places = torch.tensor([[width, height]] * 3), torch.from_numpy(resized), torch.from_numpy(corner)
    first, weights = resample._integer_weights(*places, 16, 23)
    sampling.resample(frames, first.int(), weights.int(), out)
    assert torch.equal(out, resample.resize_crop(frames, *places[1:], 16))
    assert torch.equal(out, resample.resample_spans([frames], first.int(), weights.int()))
