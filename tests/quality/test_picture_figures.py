"""Pixel figures on pictures whose cuts, bars, blur and noise are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lrs3_loader.quality.picture import (
    CLIPPED_LEVELS,
    FACE_SIZE,
    GRID,
    PictureMeter,
    black_bar_share,
    cut_strength,
    measure_faces,
    sample_grid,
)

NO_FACE = torch.full((1, 68, 2), torch.nan)


def noise_picture(seed: int, height: int = 96, width: int = 128) -> Tensor:
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(30, 220, (1, 3, 12, 16)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").byte()[0].permute(1, 2, 0)


def measure(frames: Tensor, cuts: tuple[int, ...] = ()) -> tuple[dict[str, float], list[tuple[int, float]]]:
    """Measure a clip whose frames come in parts that end before the frames ``cuts``."""
    meter, bounds = PictureMeter(), [0, *cuts, len(frames)]
    for start, stop in pairwise(bounds):
        meter.add(frames[start:stop], start, NO_FACE.expand(stop - start, -1, -1))
    return meter.finish(12.0)


def slow_strength(frames: Tensor, t: int) -> float:
    grid = sample_grid(frames).double()
    last = len(frames) - 1

    def d(a: int, b: int) -> float | None:
        return float((grid[a] - grid[b]).abs().mean()) if 0 <= a <= last and 0 <= b <= last else None

    lasting = [x for x in (d(t - 1, t), d(t - 2, t), d(t - 1, t + 1)) if x is not None]
    motion = [x for s in range(t - 3, t + 4) if s != t and (x := d(s - 1, s)) is not None]
    return min(lasting) - max(motion, default=0.0)


def test_strength_is_what_the_document_says() -> None:
    frames = torch.stack([noise_picture(seed) for seed in (1, 1, 1, 2, 2, 2, 2, 3, 4)])
    meter = PictureMeter()
    meter.add(frames, 0, NO_FACE.expand(9, -1, -1))
    changes = torch.cat(meter._changes).numpy() / (GRID * GRID * 3)
    expected = [0.0, *(slow_strength(frames, t) for t in range(1, 9))]
    np.testing.assert_allclose(cut_strength(changes), expected, atol=1e-9)


def test_a_cut_is_found_at_its_frame() -> None:
    first, second = noise_picture(1), noise_picture(2)
    figures, cuts = measure(torch.stack([first] * 13 + [second] * 20))
    assert [frame for frame, _ in cuts] == [13]
    expected = (sample_grid(first[None]).double() - sample_grid(second[None]).double()).abs().mean()
    assert figures["scene_cut_strength"] == pytest.approx(float(expected))
    assert figures["scene_cut_frame"] == 13
    assert figures["num_scene_cuts"] == 1


def test_a_flash_and_a_pan_are_no_cuts() -> None:
    still = noise_picture(1)
    flash = torch.stack([still] * 10 + [(still.int() + 90).clamp(max=255).byte()] + [still] * 10)
    assert measure(flash)[1] == []
    assert measure(flash)[0]["scene_cut_strength"] < 1
    wide = noise_picture(3, width=800)
    pan = torch.stack([wide[:, 16 * t : 16 * t + 128] for t in range(40)])
    assert measure(pan)[0]["picture_motion"] > 5
    assert measure(pan)[1] == []
    assert measure(pan[torch.arange(60) * 2 // 3])[1] == []  # with repeated frames


def gradual(first: Tensor, second: Tensor, num_steps: int) -> Tensor:
    """A dissolve in so many equal steps; a single step is a cut."""
    mixed = [first + (second.float() - first) * step / num_steps for step in range(1, num_steps)]
    return torch.stack([first.float()] * 13 + mixed + [second.float()] * 13).round().byte()


@pytest.mark.parametrize("seed", range(0, 20, 2))
def test_hard_cuts_are_found_and_gradual_ones_missed(seed: int) -> None:
    """What the document says of dissolves, of fades, and of a black frame between."""
    first, second = noise_picture(seed), noise_picture(seed + 1)
    assert [frame for frame, _ in measure(gradual(first, second, 1))[1]] == [13]
    for num_steps in (2, 3, 10, 25):
        assert measure(gradual(first, second, num_steps))[1] == []
    black = torch.zeros_like(first)
    for num_steps in (1, 10):
        faded = torch.cat([gradual(first, black, num_steps)[:-12], gradual(black, second, num_steps)[13:]])
        assert measure(faded)[1] == []


def test_parts_of_a_clip_give_what_the_whole_gives() -> None:
    frames = torch.stack([noise_picture(seed // 7) for seed in range(31)])
    whole = measure(frames)
    for parts in ((1,), (2, 3, 4), (6, 7, 8, 30), tuple(range(1, 31))):
        assert measure(frames, parts) == whole


def test_repeated_frames_are_static() -> None:
    figures, _ = measure(torch.stack([noise_picture(t // 4) for t in range(40)]))
    assert figures["static_share"] == pytest.approx(30 / 39)


def test_one_frame_has_no_motion() -> None:
    figures, cuts = measure(noise_picture(1)[None])
    assert cuts == []
    assert figures["scene_cut_strength"] == 0
    assert np.isnan(figures["picture_motion"])


def test_black_bars() -> None:
    frames = torch.stack([noise_picture(seed, 128, 128) for seed in range(4)])
    frames[:, :16] = 16
    frames[:, -16:] = 16
    frames[:, :, :32] = 5
    assert measure(frames)[0]["black_bar_share"] == pytest.approx(1 - 0.75 * 0.75)
    assert measure(frames * 0)[0]["black_bar_share"] == 1
    frames[2, 3:6, 5] = 200  # seen once between two points of the grid, or on one of them
    assert black_bar_share(np.full((GRID, GRID, 3), 200, np.uint8)) == 0


def face_points(low: float, high: float, count: int = 1) -> Tensor:
    corners = torch.tensor([[low, low], [high, low], [low, high], [high, high]])
    return corners.expand(count, -1, -1)


@pytest.mark.parametrize("period", [4.0, 8.0, 16.0])
def test_sharpness_of_a_sine_is_that_of_its_formula(period: float) -> None:
    """A sine of amplitude A and period p has a Laplacian of amplitude A (2 - 2 cos(2 pi / p))."""
    size = 2 * FACE_SIZE
    wave = 127.5 + 100 * np.sin(2 * np.pi * (np.arange(size) + 0.5) / (2 * period))  # p pixels after the reduction by 2
    frame = torch.from_numpy(np.broadcast_to(wave.round()[None, :, None], (size, size, 3)).astype(np.uint8).copy())
    values = measure_faces(frame[None], face_points(-0.5, size - 0.5))[0]
    damped = 100 * np.cos(np.pi / (2 * period))  # mean of two neighbours
    expected = (damped * (2 - 2 * np.cos(2 * np.pi / period))) ** 2 / 2
    assert float(values[0]) == pytest.approx(expected, rel=0.03)
    assert float(values[1]) == pytest.approx(127.5, abs=0.5)
    assert float(values[2]) == pytest.approx(damped / np.sqrt(2), rel=0.02)
    assert float(values[3]) == 0


def test_blur_lowers_sharpness_and_size_does_not_decide() -> None:
    sharp = torch.from_numpy(np.random.default_rng(0).integers(60, 200, (1, 3, 96, 96)).astype(np.float32))
    found = []
    for sigma in (0, 1, 2):
        picture = sharp
        if sigma:
            kernel = torch.exp(-(torch.arange(-6, 7.0) ** 2) / (2 * sigma**2))
            kernel /= kernel.sum()
            picture = torch.nn.functional.conv2d(
                picture, kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), padding="same", groups=3
            )
            picture = torch.nn.functional.conv2d(
                picture, kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1), padding="same", groups=3
            )
        for size in (96, 192, 384):
            frame = torch.nn.functional.interpolate(picture, (size, size), mode="nearest")[0].permute(1, 2, 0).byte()
            found.append(float(measure_faces(frame[None], face_points(-0.5, size - 0.5))[0, 0]))
    by_blur = np.array(found).reshape(3, 3)
    assert (by_blur[0] > 10 * by_blur[1]).all()
    assert (by_blur[1] > 3 * by_blur[2]).all()
    assert (np.ptp(by_blur[:, 1:], axis=1) < 0.2 * by_blur[:, 1]).all()


def test_clipped_and_dark_faces() -> None:
    frame = torch.full((1, 200, 200, 3), 90, dtype=torch.uint8)
    frame[:, 50:100, 50:150] = 255  # the upper half of the face
    values = measure_faces(frame, face_points(49.5, 149.5))[0]
    assert CLIPPED_LEVELS[0] < 90 < CLIPPED_LEVELS[1]
    assert float(values[3]) == pytest.approx(0.5, abs=0.04)
    assert float(values[1]) == pytest.approx((90 + 255) / 2, abs=1.5)


def test_frames_without_a_face_have_no_look() -> None:
    frames = torch.stack([noise_picture(seed) for seed in range(30)])
    points = face_points(20.0, 80.0, 30).clone()
    points[10] = torch.nan
    meter = PictureMeter()
    meter.add(frames, 0, points)
    each = measure_faces(frames[::10], points[::10])
    assert each[:, 0].isnan().tolist() == [False, True, False]
    assert meter.finish(12.0)[0]["face_brightness"] == pytest.approx(float(each[[0, 2], 1].mean()))
    assert "face_brightness" not in measure(frames)[0]
