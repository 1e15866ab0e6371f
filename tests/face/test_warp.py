"""Crops against a loop in whole numbers, and their independence of everything around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lrs3_loader.face.image import warp
from lrs3_loader.face.image.warp import crop, letterbox


def slow_crop(frame: np.ndarray, matrix: np.ndarray, size: int, zeros_outside: bool = False) -> np.ndarray:
    """OpenCV's fixed-point bilinear sampling, pixel by pixel."""
    height, width, _ = frame.shape
    out = np.zeros((size, size, 3), np.int64)
    for row in range(size):
        for column in range(size):
            x, y = np.rint(matrix @ [column, row, 1] * 32).astype(int)
            total = np.zeros(3, np.int64)
            for dy, wy in ((0, 32 - y % 32), (1, y % 32)):
                for dx, wx in ((0, 32 - x % 32), (1, x % 32)):
                    py, px = y // 32 + dy, x // 32 + dx
                    if zeros_outside and not (0 <= py < height and 0 <= px < width):
                        continue
                    total += wx * wy * frame[min(max(py, 0), height - 1), min(max(px, 0), width - 1)].astype(int)
            out[row, column] = (total + 512) >> 10
    return out


MATRICES = {
    "inside": [[0.75, 0.125, 1.5], [-0.125, 0.75, 4.0]],
    "turned and partly outside": [[1.5, -1.25, 2.3125], [1.25, 1.5, -6.25]],
    "all outside": [[1.0, 0.0, 100.0], [0.0, 1.0, -50.0]],
    "shrunk": [[2.5, 0.0, -1.75], [0.0, 2.5, -0.25]],
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("height", "width"), [(17, 23), (2, 2), (8, 16), (9, 15)])  # the last three: small frames
def test_crop_is_exact(height: int, width: int, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    matrix = np.float32([MATRICES[name], MATRICES["inside"]])  # multiples of 1/32: nothing is left to rounding
    got = crop(torch.from_numpy(frames), torch.from_numpy(matrix), 12).numpy()
    for i in range(2):
        np.testing.assert_array_equal(got[i], slow_crop(frames[i], matrix[i], 12))


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 13), (7, 16), (2, 2), (40, 2)])
def test_letterbox_is_exact(height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    side = max(height, width)
    matrix = np.array([[side / 8, 0, (width - side) / 2], [0, side / 8, (height - side) / 2]])
    got = letterbox(torch.from_numpy(frames), 8).numpy()
    for i in range(3):
        np.testing.assert_array_equal(got[i], slow_crop(frames[i], matrix, 8, zeros_outside=True))


@pytest.mark.parametrize("many", [0, 1 << 30])  # pixels per sample: the pixels around each are collected, or not
@pytest.mark.parametrize(("height", "width", "size"), [(90, 160, 16), (160, 90, 15), (33, 32, 48), (2, 300, 7)])
def test_cpus_and_other_devices_give_the_same_levels(
    height: int, width: int, size: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warp, "_MANY_PIXELS", many)
    monkeypatch.setattr(warp, "_MANY_COLUMNS", many)
    random = np.random.default_rng(height)
    frames = torch.from_numpy(random.integers(0, 256, (12, height, width, 3), dtype=np.uint8))
    matrix = random.normal(size=(12, 2, 3)) * [2 * height / size, width / size, height]
    matrix[3] = 0
    matrix[4] *= 1000
    matrices = torch.from_numpy(matrix.astype(np.float32))
    assert torch.equal(crop(frames, matrices, size), warp._crop(frames, matrices, size).byte())
    assert torch.equal(letterbox(frames, size), warp._letterbox(frames, size).byte())


def test_pixels_beyond_a_window_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def full_of_nan(*shape: int, dtype: torch.dtype = torch.float32, **settings: Any) -> torch.Tensor:
        made = empty(*shape, dtype=dtype, **settings)
        return made.fill_(torch.nan) if dtype == torch.float32 else made

    frames = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8))
    matrix = torch.tensor([[[1.0, 0, 14], [0, 1.0, 4]], [[1.0, 0, 2], [0, 1.0, 3]]])  # up to the last row and column
    expected = crop(frames, matrix, 16), letterbox(frames, 16)
    monkeypatch.setattr(torch, "empty", full_of_nan)
    assert torch.equal(crop(frames, matrix, 16), expected[0])
    assert torch.equal(letterbox(frames, 16), expected[1])


def test_crops_are_written_where_they_are_wanted() -> None:
    frames = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8))
    matrix = torch.tensor(MATRICES["inside"]).expand(3, 2, 3)
    batch = torch.full((5, 16, 16, 3), 7, dtype=torch.uint8)
    assert crop(frames, matrix, 16, batch[1:4]).data_ptr() == batch[1].data_ptr()
    assert torch.equal(batch[1:4], crop(frames, matrix, 16))
    letterbox(frames, 16, batch[1:4])
    assert torch.equal(batch[1:4], letterbox(frames, 16))
    assert (batch[[0, 4]] == 7).all()
    assert crop(frames[:0], matrix[:0], 16).shape == letterbox(frames[:0], 16).shape == (0, 16, 16, 3)


def test_a_crop_does_not_depend_on_its_neighbours() -> None:
    random = np.random.default_rng(1)
    frames = torch.from_numpy(random.integers(0, 256, (11, 30, 40, 3), dtype=np.uint8))
    matrix = torch.from_numpy(random.normal(size=(11, 2, 3)).astype(np.float32))
    together = crop(frames, matrix, 16)
    apart = torch.cat([crop(frames[i : i + 1], matrix[i : i + 1], 16) for i in range(11)])
    assert torch.equal(together, apart)


def test_frames_need_not_be_contiguous() -> None:
    frames = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (6, 30, 40, 3), dtype=np.uint8))
    matrix = torch.tensor(MATRICES["inside"]).expand(3, 2, 3)
    assert torch.equal(crop(frames[::2, 3:25, 5:], matrix, 16), crop(frames[::2, 3:25, 5:].clone(), matrix, 16))


@pytest.mark.parametrize("shape", [(1, 1, 8, 3), (1, 8, 8, 4), (8, 8, 3)])
def test_other_frames_are_refused(shape: tuple[int, ...]) -> None:
    frames = torch.zeros(shape, dtype=torch.uint8)
    for make in (lambda: crop(frames, torch.zeros(1, 2, 3), 8), lambda: letterbox(frames, 8)):
        with pytest.raises(ValueError, match="frames must be u8"):
            make()


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="frames must be u8"):
        crop(torch.zeros(1, 8, 8, 3), torch.zeros(1, 2, 3), 8)


def test_one_matrix_a_frame() -> None:
    with pytest.raises(ValueError, match=r"matrix must be \[2, 2, 3\], got \[1, 2, 3\]"):
        crop(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 2, 3), 8)


@pytest.mark.gpu
def test_crops_are_the_same_bits_on_a_gpu() -> None:
    random = np.random.default_rng(3)
    frames = torch.from_numpy(random.integers(0, 256, (70, 90, 120, 3), dtype=np.uint8))
    steps = torch.from_numpy(random.integers(-64, 64, (70, 2, 3)).astype(np.float32)) / 32
    assert torch.equal(crop(frames.cuda(), steps.cuda(), 64).cpu(), crop(frames, steps, 64))
    assert torch.equal(letterbox(frames.cuda(), 64).cpu(), letterbox(frames, 64))
