from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.deep3d_files import write_standard_face
from lrs3_loader.errors import RunError
from lrs3_loader.face.deep3d import align
from lrs3_loader.face.image.resample import resize_crop
from support import deep3d_reference as reference
from support.face_factory import small_model, speaking_clip

STANDARD = align.five_points(small_model().landmark_mean)
SIZES = [(224, 224), (96, 300), (300, 96), (37, 100), (512, 400)]  # (H, W)


def noise(seed: int, num_frames: int, height: int, width: int) -> torch.Tensor:
    """White noise: where one pixel or weight is wrong, it shows."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8))


def random_places(seed: int, num_frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes from a fifth to four times the frame's, and crops that often lie partly outside."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.uniform(np.log(0.2), np.log(4), (num_frames, 1)))
    resized = np.maximum((np.array([width, height]) * scale).astype(int), 1)
    corner = random.integers(-60, np.maximum(resized - 20, 1))
    return torch.from_numpy(resized), torch.from_numpy(corner)


def pillow(frames: torch.Tensor, resized: torch.Tensor, corner: torch.Tensor, size: int) -> np.ndarray:
    places = torch.cat([resized, corner], 1).tolist()
    return np.stack([reference.pillow_crop(f, *p, size) for f, p in zip(frames.numpy(), places, strict=True)])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resampling_is_pillows_to_the_last_bit(height: int, width: int) -> None:
    frames = noise(height, 12, height, width)
    resized, corner = random_places(width, 12, height, width)
    resized[0] = torch.tensor([width, height])  # Pillow leaves out passes that change nothing
    resized[1] = torch.tensor([width, 2 * height])
    crops = resize_crop(frames, resized, corner, 64)
    assert np.array_equal(crops.numpy(), pillow(frames, resized, corner, 64))


def test_resampling_does_not_depend_on_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(1, 9, 80, 120)
    resized, corner = random_places(2, 9, 80, 120)
    whole = resize_crop(frames, resized, corner, 48)
    monkeypatch.setitem(resize_crop.__globals__["_SLICE_VALUES"], "cpu", 1)
    assert torch.equal(resize_crop(frames, resized, corner, 48), whole)


def test_a_crop_outside_of_the_frame_is_black() -> None:
    frames = noise(3, 2, 40, 50)
    resized, corner = torch.tensor([[50, 40], [50, 40]]), torch.tensor([[500, 0], [0, -500]])
    assert (resize_crop(frames, resized, corner, 32) == 0).all()


def test_resampling_refuses_what_it_cannot_do() -> None:
    pair = torch.tensor([[10, 10]])
    with pytest.raises(ValueError, match="u8"):
        resize_crop(torch.zeros(1, 8, 8, 3), pair, pair, 8)
    with pytest.raises(ValueError, match="corner must be i64"):
        resize_crop(noise(0, 1, 8, 8), pair, pair.float(), 8)
    with pytest.raises(ValueError, match="cannot be resized to 0"):
        resize_crop(noise(0, 1, 8, 8), pair * 0, pair, 8)


@pytest.mark.gpu
def test_resampling_on_a_gpu_is_pillows_too() -> None:
    for height, width in SIZES:
        frames = noise(height, 8, height, width)
        resized, corner = random_places(width, 8, height, width)
        crops = resize_crop(frames.cuda(), resized, corner, 224).cpu()
        assert np.array_equal(crops.numpy(), pillow(frames, resized, corner, 224))


@pytest.mark.parametrize("size", [(224, 224), (720, 1280), (640, 360)])
def test_alignment_equals_the_steps_of_the_original(size: tuple[int, int]) -> None:
    height, width = size
    clips = [speaking_clip(small_model(), seed, 20, size, depth)[0] for seed, depth in ((0, 10.0), (1, 30.0))]
    landmarks = torch.cat([clip.lm68 for clip in clips])
    found = align.align(align.five_points(landmarks), STANDARD, height, width)
    expected = [reference.placement(frame, STANDARD.numpy(), height, width) for frame in landmarks.numpy()]
    assert torch.cat([found.resized, found.corner], 1).tolist() == [list(place) for place in expected]
    assert found.usable.all()
    assert found.resized[0, 0] != found.resized[30, 0]


def test_the_face_lands_in_the_crop_at_the_size_promised() -> None:
    """A decimetre takes 102 pixels, and the standard face's origin lies in the middle of the crop."""
    height, width, pixels_per_unit, origin = 480, 640, 57.0, (300.0, 200.0)
    x = origin[0] + pixels_per_unit * STANDARD[:, 0]
    y = origin[1] - pixels_per_unit * STANDARD[:, 1]
    found = align.align(torch.stack([x, y], 1)[None], STANDARD, height, width)
    enlarged = found.resized[0] / torch.tensor([width, height])
    assert enlarged.tolist() == pytest.approx([102 / 57] * 2, rel=0.01)
    assert (torch.tensor(origin) * enlarged - found.corner[0]).tolist() == pytest.approx([112, 112], abs=2)


def test_frames_without_usable_landmarks_are_marked_and_left_out() -> None:
    points = align.five_points(speaking_clip(small_model(), 0, 4)[0].lm68).clone()
    points[1] = torch.nan
    points[2] = 100.0  # all in one place
    found = align.align(points, STANDARD, 224, 224)
    assert found.usable.tolist() == [True, False, False, True]
    frames = noise(0, 4, 224, 224)
    crops = align.crop_faces(frames, found)
    alone = align.crop_faces(frames[3:], align.align(points[3:], STANDARD, 224, 224))
    assert len(crops) == 2
    assert torch.equal(crops[1], alone[0])


def test_standard_face_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "similarity_Lm3D_all.mat"
    landmarks = small_model().landmark_mean.numpy()
    write_standard_face(path, landmarks)
    points = align.load_standard_face(path)
    assert points.dtype == torch.float32
    assert np.array_equal(points.numpy(), reference.five_of_68(landmarks))


@pytest.mark.parametrize(
    "content",
    [b"", b"no mat file" * 99, np.zeros((5, 3)), np.ones((68, 3)), np.full((68, 3), np.nan), np.eye(68, 3) * [1, 1, 0]],
)
def test_another_file_is_no_standard_face(tmp_path: Path, content: bytes | np.ndarray) -> None:
    path = tmp_path / "x.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_standard_face(path, content)
    with pytest.raises(RunError, match=r"x\.mat is not Deep3DFaceRecon's similarity_Lm3D_all\.mat"):
        align.load_standard_face(path)


def test_a_standard_face_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere\.mat"):
        align.load_standard_face(tmp_path / "nowhere.mat")
