"""Crops of faces: where they lie, what they show, and that long clips do not pile up in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrs3_loader.face.image.crops import CROP_SIZE, MIN_SIDE_PX, FaceCrops, crop_to_landmarks


def landmarks_around(x: float, y: float, size: float) -> torch.Tensor:
    """[1, 68, 2] points that reach over ``size`` pixels in both directions about (x, y)."""
    ramp = torch.linspace(-size / 2, size / 2, 68)
    return torch.stack((x + ramp, y + ramp.flip(0)), 1)[None]


@pytest.mark.parametrize(("height", "width", "size"), [(224, 224, 110.0), (360, 640, 60.0), (120, 90, 300.0)])
def test_a_place_says_where_source_pixels_lie_in_the_crop(height: int, width: int, size: float) -> None:
    """Ramps of grey along x and y are read back at the transforms."""
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    frames = torch.stack((x * 250 // width, y * 250 // height, torch.zeros_like(x)), -1).to(torch.uint8)[None]
    images, transforms = crop_to_landmarks(frames, landmarks_around(width / 2, height / 2, size))
    assert images.shape == (1, CROP_SIZE, CROP_SIZE, 3)
    scale, shift = transforms[0, :2], transforms[0, 2:]
    checked = 0
    for px, py in np.random.default_rng(0).uniform(
        [0.45 * width, 0.45 * height], [0.55 * width, 0.55 * height], (20, 2)
    ):
        column, row = (torch.tensor([px, py]) * scale + shift).round().long().tolist()
        assert 0 <= column < CROP_SIZE
        shown = images[0, row, column, :2].double()
        assert abs(shown[0] - px * 250 / width) < 250 / width / scale[0] + 2
        assert abs(shown[1] - py * 250 / height) < 250 / height / scale[1] + 2
        checked += 1
    assert checked == 20


def test_the_square_holds_the_landmarks_and_is_not_enlarged_without_end() -> None:
    frames = torch.zeros(2, 100, 160, 3, dtype=torch.uint8)
    landmarks = torch.cat((landmarks_around(70, 50, 40), landmarks_around(70, 50, 2)))
    _, transforms = crop_to_landmarks(frames, landmarks)
    moved = landmarks * transforms[:, None, :2] + transforms[:, None, 2:]
    extent = moved.amax(1) - moved.amin(1)
    assert (extent[0] - CROP_SIZE / 1.3).abs().max() < 2
    assert (moved[0] > 10).all()
    assert (moved[0] < CROP_SIZE - 10).all()
    assert (transforms[1, :2] - CROP_SIZE / MIN_SIDE_PX).abs().max() < 0.1


def test_frames_without_a_face_have_no_place() -> None:
    frames = torch.full((3, 64, 64, 3), 200, dtype=torch.uint8)
    landmarks = landmarks_around(32, 32, 30).repeat(3, 1, 1)
    landmarks[1] = torch.nan
    images, transforms = crop_to_landmarks(frames, landmarks)
    assert transforms.isfinite().all(1).tolist() == [True, False, True]
    assert not images[1].any()
    assert images[2].float().mean() > 190
    alone, place = crop_to_landmarks(frames[2:], landmarks[2:])
    assert torch.equal(alone[0], images[2])
    assert torch.equal(place[0], transforms[2])
    with pytest.raises(ValueError, match=r"\[3, 68, 2\]"):
        crop_to_landmarks(frames, landmarks[:2])


@pytest.mark.parametrize("memory_bytes", [1, 100 << 20])
def test_what_was_kept_is_read_back_from_memory_and_from_disk(memory_bytes: int) -> None:
    images = torch.randint(0, 256, (7, CROP_SIZE, CROP_SIZE, 3), generator=torch.Generator().manual_seed(1)).byte()
    crops = FaceCrops(memory_bytes)
    assert len(crops) == 0
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        crops.append(images[part], torch.arange(part.start, part.stop)[:, None].expand(-1, 4).float())
        assert torch.equal(crops.read(torch.tensor([0])), images[:1])
    assert len(crops) == 7
    assert torch.equal(crops.transforms[:, 2], torch.arange(7.0))
    chosen = torch.tensor([6, 0, 3, 3])
    assert torch.equal(crops.read(chosen), images[chosen])
    assert crops._file._rolled is (memory_bytes == 1)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="u8"):
        crops.append(images.float(), torch.zeros(7, 4))
