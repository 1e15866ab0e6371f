"""Aligned faces and mouths: against a slow version of the convention, and what the crops show."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from lrs3_loader.face.image import alignment
from lrs3_loader.face.image.alignment import FaceAligner, cut, oversampling_of
from lrs3_loader.face.image.colour import to_grey, to_yuv420

pytestmark = pytest.mark.smoke
STABLE = [28, 33, 36, 39, 42, 45, 48, 54]
NUM_FRAMES = 20


def moving_face(num_frames: int = NUM_FRAMES, seed: int = 0) -> np.ndarray:
    """Landmarks [T, 68, 2] of a face that drifts, turns and grows, with a mouth that opens and noise."""
    random = np.random.default_rng(seed)
    shape = random.uniform(80, 180, (68, 2))
    shape[STABLE] = list(alignment._MEAN_FACE.values())
    shape[48:68] = np.array([129, 158]) + random.normal(0, 8, (20, 2))
    shape[[48, 54]] = [[106.5, 157], [151.5, 157]]
    faces = []
    for t in range(num_frames):
        angle, size = 0.02 * t - 0.1, 0.8 + 0.01 * t
        turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = (shape + np.array([0, np.sin(t)])) @ turn.T + np.array([20 + 1.5 * t, 30 - t])
        faces.append(moved + random.normal(0, 0.4, (68, 2)))
    return np.round(np.array(faces) * 32) / 32


def slow_transform(landmarks: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """The convention of the module, for one frame: the similarity frame -> picture [2, 3], and the mouth's corner."""
    reach = min(6, t, len(landmarks) - 1 - t)
    smooth = landmarks[t - reach : t + reach + 1].mean(0)
    smooth = smooth + landmarks[t].mean(0) - smooth.mean(0)
    rows, wanted = [], []
    for (x, y), (u, v) in zip(smooth[STABLE], alignment._MEAN_FACE.values(), strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        wanted += [u, v]
    (a, b, c, d), *_ = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)
    matrix = np.array([[a, -b, c], [b, a, d]])
    mouth = smooth[48:68] @ matrix[:, :2].T + matrix[:, 2]
    return matrix, np.round(mouth.mean(0) - 48)


def test_transforms_are_those_of_the_slow_version() -> None:
    landmarks = moving_face()
    frames = torch.zeros(NUM_FRAMES, 300, 300, 3, dtype=torch.uint8)
    _, faces = FaceAligner(NUM_FRAMES).append(frames, torch.from_numpy(landmarks).float())
    for t in range(NUM_FRAMES):
        matrix, corner = slow_transform(landmarks, t)
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
        np.testing.assert_allclose(faces.to_frame[t].numpy(), inverse, atol=1e-9)
        np.testing.assert_array_equal(faces.mouth_corner[t].numpy(), corner)
        mouth = inverse @ np.array([corner[0] + 10, corner[1] + 20, 1])
        np.testing.assert_allclose(faces.mouth()[t].double().numpy() @ [10, 20, 1], mouth, atol=1e-3)
        middle = inverse @ [129, 137, 1]
        np.testing.assert_allclose(faces.face(64)[t].double().numpy() @ [31.5, 31.5, 1], middle, atol=1e-3)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (7, 13), (19,)])
def test_bits_do_not_depend_on_how_frames_are_divided(cuts: tuple[int, ...]) -> None:
    points = torch.from_numpy(moving_face()).float()
    points[[0, 1, 9, 10]] = torch.nan
    frames = torch.arange(NUM_FRAMES, dtype=torch.uint8)[:, None, None, None].expand(-1, 40, 50, 3).contiguous()
    whole_frames, whole = FaceAligner(NUM_FRAMES).append(frames, points)
    assert torch.equal(whole_frames, frames)
    aligner, bounds = FaceAligner(NUM_FRAMES), [0, *cuts, NUM_FRAMES]
    parts = [aligner.append(frames[a:b], points[a:b]) for a, b in pairwise(bounds)]
    assert torch.equal(torch.cat([part[0] for part in parts]), frames)
    assert torch.equal(torch.cat([part[1].to_frame for part in parts]), whole.to_frame)
    assert torch.equal(torch.cat([part[1].mouth_corner for part in parts]), whole.mouth_corner)


def test_frames_without_a_face_follow_those_around_them() -> None:
    points = torch.from_numpy(moving_face(40)).float()
    frames = torch.zeros(40, 200, 300, 3, dtype=torch.uint8)
    _, known = FaceAligner(40).append(frames, points)
    points[:10], points[18:22], points[33:] = torch.nan, torch.nan, torch.nan
    _, faces = FaceAligner(40).append(frames, points)
    assert faces.to_frame.isfinite().all()
    assert (faces.to_frame[:4] == faces.to_frame[0]).all()  # no face within 6 frames yet: the middle of the frame
    np.testing.assert_allclose(faces.to_frame[0].numpy() @ [127.5, 127.5, 1], [149.5, 99.5])
    near = faces.to_frame[18:22] @ torch.tensor([129.0, 137, 1]).double()
    true = known.to_frame[18:22] @ torch.tensor([129.0, 137, 1]).double()
    assert (near - true).abs().max() < 6
    aligner = FaceAligner(1)
    aligner.append(frames[:1], points[:1])
    with pytest.raises(ValueError, match="1 frames with 1 faces come where 0 are left"):
        aligner.append(frames[:1], points[:1])


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_a_crop_shows_what_its_transform_says(samples: int) -> None:
    """Ramps of red along x and green along y are read back."""
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    frames = torch.stack([x, y, torch.zeros_like(x)], -1).to(torch.uint8)[None]
    transforms = torch.tensor([[[2.0, 0.25, 30], [-0.25, 2.0, 40]]])
    found = cut(frames, transforms, 50, samples)
    row, column = torch.meshgrid(torch.arange(50), torch.arange(50), indexing="ij")
    expected = torch.stack([2 * column + 0.25 * row + 30, -0.25 * column + 2 * row + 40], -1)
    assert (found[0, ..., :2] - expected).abs().max() <= 1
    assert (found[..., :2].mean() - expected.mean()).abs() < 0.5


def test_large_faces_are_averaged_down() -> None:
    checks = (torch.arange(160)[:, None] + torch.arange(160)).remainder(2).mul(255).to(torch.uint8)
    frames = checks[None, :, :, None].expand(1, -1, -1, 3).contiguous()
    transforms = torch.tensor([[[4.0, 0, 0], [0, 4.0, 0]]])
    assert oversampling_of(transforms).tolist() == [4]
    assert oversampling_of(transforms / 4).tolist() == [1]
    assert oversampling_of(transforms * 9).tolist() == [4]
    assert cut(frames, transforms, 38)[:, 1:].std() > 100 or cut(frames, transforms, 38).unique().numel() == 1
    assert (cut(frames, transforms, 38, 4)[:, 1:, 1:] - 127.5).abs().max() <= 1


def test_colours_are_those_of_jpeg() -> None:
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))).float()
    planes = to_yuv420(random)
    red, green, blue = random.double().unbind(-1)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    assert torch.equal(planes[:, :8], to_grey(random))
    assert (planes[:, :8] - bright).abs().max() <= 0.51
    pooled = random.double().view(3, 4, 2, 4, 2, 3).mean((2, 4))
    red, green, blue = pooled.unbind(-1)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    for part, expected in ((planes[:, 8:10], (blue - bright) / 1.772), (planes[:, 10:], (red - bright) / 1.402)):
        assert (part.reshape(3, 4, 4) - (128 + expected)).abs().max() <= 1.0
    greys = torch.full((1, 4, 4, 3), 77.0)
    assert to_yuv420(greys).flatten().tolist() == [77] * 16 + [128] * 8
