"""Crops of faces and scores of clips: where the crop lies, smoothing, pieces, and company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.stand_in import Record
from lrs3_loader.audio.mfcc import Mfcc
from lrs3_loader.speaking import SpeakingNetwork
from lrs3_loader.speaking import scorer as scorer_module
from lrs3_loader.speaking.crops import FaceCropper, crop_squares, face_squares
from lrs3_loader.speaking.scorer import ClipFaces, SpeakingScorer
from support.speaking_weights import speaking_weights


def draw_frames(num_frames: int, height: int = 90, width: int = 120, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def draw_points(num_frames: int, seed: int = 0) -> torch.Tensor:
    """Landmarks [n, 468, 3] of a face that wanders and grows."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_frames, 1, 3, generator=generator).cumsum(0)
    return (
        40
        + steps
        + torch.rand(num_frames, 468, 3, generator=generator) * torch.linspace(30, 50, num_frames)[:, None, None]
    )


def ramp(height: int, width: int) -> torch.Tensor:
    """A grey frame [1, H, W, 3] whose level is 2 x + y: bilinear sampling gives it exactly."""
    levels = 2 * torch.arange(width) + torch.arange(height)[:, None]
    return levels.to(torch.uint8)[None, ..., None].expand(-1, -1, -1, 3).contiguous()


def test_the_crop_is_the_middle_half_of_the_demo_crop() -> None:
    # A face 20 wide and 40 high: a square of 40 around (50, 40). The demo's is 56 wide and 8 lower, and its half 28.
    points = torch.zeros(1, 468, 2)
    points[0, 0], points[0, 1:] = torch.tensor([40.0, 20.0]), torch.tensor([60.0, 60.0])
    squares = face_squares(points)
    assert squares.tolist() == [[50, 40, 40]]
    (crop,) = crop_squares(ramp(100, 80), squares).float()
    step = 28 / 112
    at = (torch.arange(112) + 0.5) * step - 14
    expected = 2 * (50 + at) + (48 + at)[:, None]
    assert (crop - expected).abs().max() <= 0.5 + 3 / 64  # whole levels, of positions rounded to 1/32 pixel


def test_grey_is_that_of_opencv() -> None:
    frames = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 90]], dtype=torch.uint8)
    frames = frames[:, None, None].expand(-1, 8, 8, -1).contiguous()
    crops = crop_squares(frames, torch.tensor([[4.0, 4.0, 4.0]]).expand(4, 3))
    assert crops[:, 0, 0].tolist() == [76, 150, 29, 131]  # cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def slow_squares(squares: np.ndarray) -> np.ndarray:
    """Medians over 13 frames, of those that have a face; where none has, the square before."""
    found = []
    for i in range(len(squares)):
        near = squares[max(0, i - 6) : i + 7]
        near = near[~np.isnan(near[:, 0])]
        middle = np.sort(near, 0)[(len(near) - 1) // 2] if len(near) else found[-1]
        found.append(middle)
    return np.array(found)


@pytest.mark.parametrize("span", [1, 5, 6, 7, 13, 50])
def test_crops_are_smoothed_whatever_the_spans(span: int) -> None:
    num_frames = 50
    frames, points = draw_frames(num_frames), draw_points(num_frames)
    points[3:5], points[20:36] = torch.nan, torch.nan
    expected = crop_squares(frames, torch.from_numpy(slow_squares(face_squares(points).numpy())))
    cropper = FaceCropper(num_frames)
    parts = [cropper.append(frames[i : i + span], points[i : i + span]) for i in range(0, num_frames, span)]
    assert torch.equal(torch.cat(parts), expected)
    with pytest.raises(ValueError, match="0 are left"):
        cropper.append(frames[:1], points[:1])


def test_without_any_face_the_middle_of_the_frame_is_taken() -> None:
    frames = draw_frames(3)
    crops = FaceCropper(3).append(frames, torch.full((3, 468, 2), torch.nan))
    assert torch.equal(crops, crop_squares(frames, torch.tensor([[59.5, 44.5, 90.0]]).expand(3, 3)))


@pytest.fixture(scope="module")
def scorer() -> SpeakingScorer:
    return SpeakingScorer(SpeakingNetwork(speaking_weights()), "cpu")


def take(scorer: SpeakingScorer, num_frames: int, span: int, seed: int) -> tuple[ClipFaces, torch.Tensor]:
    """A clip whose frames were taken in spans, and its audio."""
    clip, frames, points = ClipFaces(num_frames), draw_frames(num_frames, seed=seed), draw_points(num_frames, seed)
    for i in range(0, num_frames, span):
        scorer.append(clip, frames[i : i + span], points[i : i + span])
    return clip, 0.1 * torch.randn(640 * num_frames, generator=torch.Generator().manual_seed(seed))


def test_scores_are_those_of_the_network_in_pieces_and_in_any_company(
    scorer: SpeakingScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [45, 8, 30, 31, 1]
    expected = []
    for seed, length in enumerate(lengths):
        clip, waveform = take(scorer, length, length, seed)
        assert not clip.features
        mfcc = Mfcc()([waveform])[0]
        expected.append(scorer.network(torch.cat(clip.crops)[None], mfcc[None])[0])
    monkeypatch.setattr(scorer_module, "PIECE_FRAMES", 12)
    monkeypatch.setitem(scorer_module.BATCH_FRAMES, "cpu", 70)
    monkeypatch.setitem(scorer_module.BATCH_ROWS, "cpu", 64)
    taken = [take(scorer, length, 7, seed) for seed, length in enumerate(lengths)]
    assert len(taken[0][0].features) > 1
    together = scorer([clip for clip, _ in taken], [waveform for _, waveform in taken])
    for found, wanted in zip(together, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert all(not clip.tensors for clip, _ in taken)


def test_few_crops_of_a_long_clip_wait(scorer: SpeakingScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "PIECE_FRAMES", 10)
    clip, frames, points = ClipFaces(60), draw_frames(60), draw_points(60)
    for i in range(0, 60, 4):
        scorer.append(clip, frames[i : i + 4], points[i : i + 4])
        assert sum(map(len, clip.crops)) < 10 + 2 * 9


def test_a_clip_that_is_not_whole_is_refused(scorer: SpeakingScorer) -> None:
    clip = ClipFaces(10)
    scorer.append(clip, draw_frames(9), draw_points(9))
    with pytest.raises(ValueError, match="10 frames"):
        scorer([clip], [torch.zeros(6400)])
    whole, _ = take(scorer, 4, 4, 0)
    with pytest.raises(ValueError, match="3200 samples"):
        scorer([whole], [torch.zeros(3200)])
    assert scorer([], []) == []


@pytest.mark.gpu
def test_gpu_equals_cpu(scorer: SpeakingScorer) -> None:
    on_gpu = SpeakingScorer(SpeakingNetwork(speaking_weights()), "cuda")
    clip, frames, points = ClipFaces(20), draw_frames(20).cuda(), draw_points(20).cuda()
    on_gpu.append(clip, frames, points)
    whole, waveform = take(scorer, 20, 20, 0)
    (found,), (wanted,) = on_gpu([clip], [waveform]), scorer([whole], [waveform])
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-3)


def test_nothing_waits_for_the_device_while_frames_pass(stand_in: Record) -> None:
    on_gpu = SpeakingScorer(SpeakingNetwork(speaking_weights()), "cuda")
    clip, frames, points = ClipFaces(20), draw_frames(20).cuda(), draw_points(20).cuda()
    before = len(stand_in.waits)
    on_gpu.append(clip, frames[:12], points[:12])
    on_gpu.append(clip, frames[12:], points[12:])
    assert stand_in.waits[before:] == []
    assert sum(map(len, clip.crops)) == 20
