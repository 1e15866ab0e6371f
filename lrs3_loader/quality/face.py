"""Figures of the face, from landmarks and pose: size, place, turning, jitter, and whether it stays the same face.

All figures use only the frames in which the face was found. Letters: T such frames, L landmarks, P rigid points.
"""

from __future__ import annotations

import numpy as np
import torch

from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.types import FRAMES_PER_SECOND

SPEED_STEP = 5  # frames between which speeds are measured: 0.2 s
JUMP_WINDOW = 3  # frames before and after a step in the shape of the face
_INNER = slice(17, 68)  # brows, eyes, nose and mouth of the 68 landmarks
_STILL = (*range(27, 31), 36, 39, 42, 45)  # bridge of the nose and corners of the eyes: they hardly move on the face
#: Points of the mesh on bone: corners of the eyes, bridge and sides of the nose, forehead, cheekbones, temples.
RIGID_POINTS = (
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 98, 327, 10, 151, 9, 8, 234, 454, 127, 356, 50, 280, 101, 330,
    117, 346, 21, 251, 54, 284, 67, 297,
)  # fmt: skip


def face_figures(lm68: np.ndarray, pose: np.ndarray, valid: np.ndarray, height: int, width: int) -> dict[str, float]:
    """Compute the figures of size, place and motion of one clip's face.

    Args:
        lm68: f32 [frames, 68, 2], source pixels, y down.
        pose: f32 [frames, 6], Euler angles in radians first.
        valid: bool [frames], at least one true.
        height, width: of the source frame in pixels.
    """
    points, found = lm68.astype(np.float64), np.flatnonzero(valid)
    here = points[found]
    sides = np.ptp(here, axis=1)  # [T, 2]
    size = np.sqrt(sides.prod(1))
    inside = np.all((here >= -0.5) & (here <= np.array([width, height]) - 0.5), axis=2)  # [T, 68]
    share = sides.prod(1) / (height * width)
    low, high = np.percentile(size, (5, 95))
    return {
        "face_side_min_px": sides.min(),
        "face_share_mean": share.mean(),
        "face_share_min": share.min(),
        "face_inside_mean": inside.mean(),
        "face_inside_min": inside.mean(1).min(),
        "features_inside_min": inside[:, _INNER].mean(1).min(),
        "face_size_ratio": high / low if low > 0 else np.nan,
        "landmark_jitter": _jitter(points, valid),
        **_pose_figures(pose.astype(np.float64), valid),
        **_shift_figures(points, valid, min(height, width)),
    }


def _pose_figures(pose: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    angles = np.degrees(pose[:, :3])
    here = angles[valid]
    figures = {
        f"{name}_p{percent:02d}": value
        for axis, name in enumerate(("pitch", "yaw", "roll"))
        for percent, value in zip((5, 50, 95), np.percentile(here[:, axis], (5, 50, 95)), strict=True)
    }
    off_axis = np.linalg.norm(here, axis=1)
    figures |= {"off_axis_mean": off_axis.mean(), "off_axis_max": off_axis.max()}
    first, last, seconds = _pairs(valid, SPEED_STEP)
    if len(first):
        matrices = euler_to_matrix(torch.from_numpy(pose[:, :3])).numpy()
        cosine = (np.einsum("tij,tij->t", matrices[first], matrices[last]) - 1) / 2
        turned = np.degrees(np.arccos(cosine.clip(-1, 1)))
        figures["turn_speed_p95"] = np.percentile(turned / seconds, 95)
    first, last, _ = _pairs(valid, FRAMES_PER_SECOND)
    if len(first):
        turned = np.linalg.norm(angles[last] - angles[first], axis=1)
        figures |= {"turn_1s_mean": turned.mean(), "turn_1s_max": turned.max()}
    return figures


def _shift_figures(points: np.ndarray, valid: np.ndarray, side: int) -> dict[str, float]:
    figures = {}
    size = np.sqrt(np.ptp(points, axis=1).prod(1))
    centre = (points.min(1) + points.max(1)) / 2
    first, last, seconds = _pairs(valid, SPEED_STEP)
    if len(first):
        length = np.maximum((size[first] + size[last]) / 2, 1e-6)
        speed = np.linalg.norm(centre[last] - centre[first], axis=1) / length / seconds
        figures["shift_speed_p95"] = np.percentile(speed, 95)
    first, last, _ = _pairs(valid, FRAMES_PER_SECOND)
    if len(first):
        shift = np.abs(points[last] - points[first]).mean((1, 2)) / side
        figures |= {"shift_1s_mean": shift.mean(), "shift_1s_max": shift.max()}
    return figures


def _pairs(valid: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return all pairs of valid frames that are ``step`` apart (as far as possible in a shorter clip), and the seconds
    between the two."""
    step = min(step, len(valid) - 1)
    if step < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 1.0
    first = np.flatnonzero(valid[:-step] & valid[step:])
    return first, first + step, step / FRAMES_PER_SECOND


def _jitter(points: np.ndarray, valid: np.ndarray) -> float:
    """Standard deviation of the noise of a coordinate, in percent of the size of the face.

    White noise of deviation s has second differences of variance 6 s^2; the median of their squares, which motion
    disturbs little, is 0.455 times their variance for normal noise.
    """
    middle = np.flatnonzero(valid[:-2] & valid[1:-1] & valid[2:]) + 1
    if not len(middle):
        return float("nan")
    still = points[:, _STILL]
    bend = still[middle - 1] - 2 * still[middle] + still[middle + 1]
    size = np.sqrt(np.ptp(points[middle], axis=1).prod(1))
    relative = bend / np.maximum(size, 1e-6)[:, None, None]
    return float(100 * np.sqrt(np.median(np.square(relative)) / 0.4549 / 6))


def identity_figures(mesh: np.ndarray) -> dict[str, float]:
    """Measure how much the shape of the rigid parts of a face changes over a clip.

    Each frame's points are brought to the size, place and rotation of their mean (generalised Procrustes analysis:
    Gower, "Generalized Procrustes analysis", 1975). Distances of shapes are root mean squares over the points, in
    percent of the face's size. ``identity_change`` is the largest distance between the mean shapes before and after any
    frame t, times ``2 sqrt(t (T - t)) / T``, which is 1 in the middle: expression and pose average out, another person
    does not. ``identity_jump`` is the largest distance between the median shapes of the 3 frames before and after any
    moment; ``identity_spread`` is the 95th percentile of the distances from the median shape.

    Args:
        mesh: f32 [T, L, 3], L >= 468, landmarks of the frames in which the face was found, in their order; x, y and z
            in one unit.
    """
    shapes = _aligned(mesh[:, list(RIGID_POINTS)].astype(np.float64))
    if len(shapes) < 2:
        return {}

    def distance(difference: np.ndarray) -> np.ndarray:
        return 100 * np.sqrt(np.square(difference).sum(-1).mean(-1))

    num_frames, before = len(shapes), np.arange(1, len(shapes))
    sums = shapes.cumsum(0)
    first = sums[:-1] / before[:, None, None]
    last = (sums[-1] - sums[:-1]) / (num_frames - before)[:, None, None]
    balance = 2 * np.sqrt(before * (num_frames - before)) / num_frames
    figures = {
        "identity_change": (distance(first - last) * balance).max(),
        "identity_spread": np.percentile(distance(shapes - np.median(shapes, axis=0)), 95),
    }
    window = min(JUMP_WINDOW, len(shapes) // 2)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(shapes, window, axis=0), axis=-1)
    figures["identity_jump"] = distance(medians[window:] - medians[:-window]).max()
    return figures


def _aligned(points: np.ndarray) -> np.ndarray:
    """Align the shapes [T, P, 3] with their mean by similarity transforms; the mean's size (see below) is 1.

    The size of a shape is the geometric mean of its extent in x and y, about that of the 68 landmarks.
    """
    centred = points - points.mean(1, keepdims=True)
    norm = np.sqrt(np.square(centred).sum((1, 2), keepdims=True))
    centred /= np.maximum(norm, 1e-9)
    mean = centred[len(centred) // 2]
    for _ in range(2):
        left, _, right = np.linalg.svd(centred.transpose(0, 2, 1) @ mean)
        flip = np.sign(np.linalg.det(left @ right))
        left[:, :, -1] *= flip[:, None]
        aligned = centred @ (left @ right)
        mean = np.median(aligned, axis=0)
        mean /= np.sqrt(np.square(mean).sum())
    size = np.sqrt(np.ptp(mean[:, :2], axis=0).prod())
    return aligned / max(size, 1e-9)
