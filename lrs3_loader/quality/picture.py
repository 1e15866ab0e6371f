"""Figures that are measured on pixels: scene cuts, static picture and black bars, and the look of the face.

All sums are over whole numbers, exact in any order, so figures do not depend on the batch or the device.

Letters: n frames of a span, T frames of a clip, H W source size, G = 64 points of the grid, S = 96 pixels of the face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lrs3_loader.face.image.warp import crop
from lrs3_loader.runtime.transfer import copy_to_host, to_device

GRID = 64
FACE_SIZE = 96
FACE_STEP = 10  # the look of the face is measured in every tenth frame
STATIC_LEVELS = 0.1  # a frame that differs by less from its predecessor repeats it
MOTION_STEPS = 3  # changes on either side that a scene cut must exceed
BLACK_LEVEL = 24  # luma; black is 16 in limited range, and compression rings
CLIPPED_LEVELS = (4.0, 251.0)
_SAMPLES_PER_PIXEL = 2  # along each axis: faces of up to 400 pixels are reduced without aliasing
_LUMA = (299, 587, 114)  # thousandths; ITU-R BT.601


@dataclass
class PictureMeter:
    """Measures the pixels of one clip, whose frames are given in order."""

    black: int = BLACK_LEVEL
    _last: Tensor | None = None  # u8 [up to 2, G, G, 3], the last frames of the previous span
    _brightest: Tensor | None = None  # u8 [G, G, 3], over all frames so far
    _changes: list[Tensor] = field(default_factory=list)  # i32 [n, 2]
    _faces: list[Tensor] = field(default_factory=list)  # f64 [frames measured, 4]

    def add(self, frames: Tensor, start: int, points: Tensor) -> None:
        """Measure the next frames of the clip, without waiting for the device.

        Args:
            frames: u8 [n, H, W, 3].
            start: index of the first of them in the clip.
            points: f32 [n, L, 2 or more], landmarks in source pixels, NaN where no face was found.
        """
        grid = sample_grid(frames)
        self._changes.append(_changes(grid, self._last))
        self._last = (grid if self._last is None else torch.cat([self._last, grid]))[-2:]
        brightest = grid.amax(0)
        self._brightest = brightest if self._brightest is None else torch.maximum(self._brightest, brightest)
        first = -start % FACE_STEP
        if first < len(frames):
            self._faces.append(measure_faces(frames[first::FACE_STEP], points[first::FACE_STEP]))

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that this object keeps on the device, for whoever hands it to another stream."""
        kept = [self._last, self._brightest, *self._changes, *self._faces]
        return [tensor for tensor in kept if tensor is not None]

    def finish(self, min_cut_strength: float) -> tuple[dict[str, float], list[tuple[int, float]]]:
        """Return what :meth:`MeasuredPixels.figures` does, of this clip alone."""
        [measured] = measured_pixels([self])
        return measured.figures(min_cut_strength)


@dataclass(frozen=True)
class MeasuredPixels:
    """The measurements of a :class:`PictureMeter`, copied to the host."""

    changes: np.ndarray  # f64 [T, 2], sums of differences
    brightest: np.ndarray  # f64 [G, G, 3]
    faces: np.ndarray  # f64 [frames measured, 4]
    black: int

    def figures(self, min_cut_strength: float) -> tuple[dict[str, float], list[tuple[int, float]]]:
        """Return the figures of the clip, and (first frame after it, strength) of each scene cut."""
        changes = self.changes / (GRID * GRID * 3)
        steps = changes[1:, 0]
        strength = cut_strength(changes)
        cuts = [(int(frame), float(strength[frame])) for frame in np.flatnonzero(strength >= min_cut_strength)]
        strongest = int(strength.argmax())
        figures = {
            "num_scene_cuts": len(cuts),
            "scene_cut_strength": max(float(strength[strongest]), 0.0),
            "scene_cut_frame": strongest,
            "picture_motion": float(np.median(steps)) if len(steps) else np.nan,
            "static_share": float((steps < STATIC_LEVELS).mean()) if len(steps) else np.nan,
            "black_bar_share": black_bar_share(self.brightest, self.black),
        }
        faces = self.faces[np.isfinite(self.faces[:, 0])]
        if len(faces):
            sharpness, brightness, contrast, clipped = faces.T
            figures |= {
                "face_sharpness": np.median(sharpness),
                "face_brightness": np.median(brightness),
                "face_contrast": np.median(contrast),
                "face_clipped_share": clipped.mean(),
            }
        return figures, cuts


def measured_pixels(meters: Sequence[PictureMeter]) -> list[MeasuredPixels]:
    """Copy what was measured of many clips to the host, in one copy."""
    if not meters:
        return []
    changes = [torch.cat(meter._changes) for meter in meters]
    brightest = [meter._brightest for meter in meters if meter._brightest is not None]
    assert len(brightest) == len(meters), "a clip has frames"
    faces = [torch.cat(meter._faces) for meter in meters]
    kinds = [torch.cat(changes), torch.stack(brightest), torch.cat(faces)]
    [host] = copy_to_host([torch.cat([kind.flatten().double() for kind in kinds])])
    flat = np.split(host.numpy(), np.cumsum([kind.numel() for kind in kinds])[:-1])
    all_changes, all_brightest, all_faces = (part.reshape(kind.shape) for part, kind in zip(flat, kinds, strict=True))
    changes_of = np.split(all_changes, np.cumsum([len(part) for part in changes])[:-1])
    faces_of = np.split(all_faces, np.cumsum([len(part) for part in faces])[:-1])
    return [
        MeasuredPixels(*measured)
        for measured in zip(changes_of, all_brightest, faces_of, [meter.black for meter in meters], strict=True)
    ]


def sample_grid(frames: Tensor) -> Tensor:
    """Return the pixels u8 [n, G, G, 3] of frames u8 [n, H, W, 3] at equal distances."""
    rows, columns = (
        to_device(((torch.arange(GRID) * 2 + 1) * size).div(2 * GRID, rounding_mode="floor"), frames.device)
        for size in frames.shape[1:3]
    )
    return frames.index_select(1, rows).index_select(2, columns)


def _changes(grid: Tensor, last: Tensor | None) -> Tensor:
    """Sum the absolute differences of each frame from the one before and the one before that: i32 [n, 2].

    Args:
        grid: u8 [n, G, G, 3].
        last: u8 [m, G, G, 3], up to two frames that precede them.
    """
    before = 0 if last is None else len(last)
    values = (grid if last is None else torch.cat([last, grid])).flatten(1).short()
    sums = torch.zeros(len(grid), 2, dtype=torch.int32, device=grid.device)
    for lag in (1, 2):
        skipped = max(lag - before, 0)  # frames without a frame so far back
        if skipped < len(grid):
            now = values[before + skipped :]
            then = values[before + skipped - lag :][: len(now)]
            sums[skipped:, lag - 1] = (now - then).abs_().sum(1, dtype=torch.int32)
    return sums


def cut_strength(changes: np.ndarray) -> np.ndarray:
    """Compute how much more than motion the picture changes before each frame, and stays changed.

    With d(a, b) the mean absolute difference of frames a and b, the strength of a cut before frame t is
    ``min(d(t-1, t), d(t-2, t), d(t-1, t+1)) - max of d(s-1, s) over 0 < |s - t| <= 3``: a flash goes away again, and
    motion has neighbours that change as well (the next but one, where frames are repeated). Terms beyond the ends of
    the clip are left out.

    Args:
        changes: [T, 2], d(t-1, t) and d(t-2, t) in levels.

    Returns:
        [T] levels, 0 for frame 0; below 0 where neighbours change more.
    """
    num_frames = len(changes)
    missing = np.full(MOTION_STEPS, np.nan)
    step = np.concatenate([[np.nan], changes[1:, 0], missing])  # step[t] = d(t-1, t); step[-k] is beyond the start
    double = np.concatenate([[np.nan, np.nan], changes[2:, 1], missing])[: num_frames + 1]  # double[t] = d(t-2, t)
    at = np.arange(1, num_frames)
    strength = np.zeros(num_frames)
    if len(at):
        lasting = np.fmin.reduce([step[at], double[at], double[at + 1]])
        around = [step[at + k] for k in range(-MOTION_STEPS, MOTION_STEPS + 1) if k]
        motion = np.fmax.reduce([*around, np.zeros(len(at))])
        strength[1:] = lasting - motion
    return strength


def black_bar_share(brightest: np.ndarray, black: int = BLACK_LEVEL) -> float:
    """Return the share of the picture outside of the smallest box that holds all of its points that are ever bright.

    Args:
        brightest: [G, G, 3], the largest value over the clip at each point of the grid.
        black: largest value of a black point.
    """
    bright = (brightest > black).any(-1)
    if not bright.any():
        return 1.0
    rows, columns = np.nonzero(bright)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return float(1 - height * width / bright.size)


def measure_faces(frames: Tensor, points: Tensor) -> Tensor:
    """Measure the square around the face, reduced (or enlarged) to S x S pixels.

    Args:
        frames: u8 [n, H, W, 3].
        points: f32 [n, L, 2 or more], landmarks in source pixels, NaN where no face was found.

    Returns:
        f64 [n, 4]: variance of the Laplacian (4-neighbour), mean, standard deviation, and share of clipped pixels of
        the luma; NaN where no face was found.
    """
    low, high = points[..., :2].amin(1), points[..., :2].amax(1)
    found = (low + high).isfinite().all(1)
    size = FACE_SIZE * _SAMPLES_PER_PIXEL
    step = ((high - low).amax(1) / size).clamp(min=1 / 64)  # source pixels between samples
    corner = (low + high) / 2 - step[:, None] * (size - 1) / 2
    zero = torch.zeros_like(step)
    matrix = torch.stack([step, zero, corner[:, 0], zero, step, corner[:, 1]], 1).view(-1, 2, 3)
    samples = crop(frames, matrix.where(found[:, None, None], 0.0), size).float()
    # Sums of whole numbers below 2^24 are exact in f32.
    colours = samples[:, ::2].add_(samples[:, 1::2])
    colours = colours[:, :, ::2] + colours[:, :, 1::2]  # [n, S, S, 3], sums of 2 x 2 samples
    red, green, blue = (colours[..., channel] * weight for channel, weight in enumerate(_LUMA))
    pixels = red.add_(green).add_(blue)  # [n, S, S], whole thousandths
    inner = pixels[:, 1:-1, 1:-1]
    around = pixels[:, :-2, 1:-1] + pixels[:, 2:, 1:-1] + pixels[:, 1:-1, :-2] + pixels[:, 1:-1, 2:]
    scale = 1 / (1000 * _SAMPLES_PER_PIXEL**2)  # to levels
    laplacian = (4 * inner - around).flatten(1).double() * scale
    levels = pixels.flatten(1).double() * scale
    clipped = (levels <= CLIPPED_LEVELS[0]) | (levels >= CLIPPED_LEVELS[1])
    values = [laplacian.var(1, correction=0), levels.mean(1), levels.std(1, correction=0), clipped.double().mean(1)]
    return torch.stack(values, 1).masked_fill(~found[:, None], torch.nan)
