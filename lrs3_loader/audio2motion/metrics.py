"""Figures that compare a generated motion with the true one. Landmarks are [T, 68, 3] in millimetres, y up.

All are over the mouth, landmarks 48 to 67 of iBUG-68, and over the frames in which a face was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lrs3_loader.stream.tasks import MOUTH

_UPPER_LIP, _LOWER_LIP = 62, 66  # middle of the inner lips
_UP = 1  # axis


def mouth_error_mm(found: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Return the mean distance of the mouth's landmarks from where they truly are."""
    return float(_distances(found, true)[valid].mean())


def centred_mouth_error_mm(found: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Return the mean distance after the clip's mean was taken from both: of the movement, without the face."""
    return mouth_error_mm(found - found[valid].mean(0), true - true[valid].mean(0), valid)


def velocity_error_mm(found: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Return the mean length of the difference of the mouth's velocities, in millimetres per frame (25 fps).

    0 where no two neighbouring frames are valid.
    """
    both = valid[1:] & valid[:-1]
    return float(_distances(np.diff(found, axis=0), np.diff(true, axis=0))[both].mean()) if both.any() else 0.0


def mouth_speed_mm(landmarks: np.ndarray, valid: np.ndarray) -> float:
    """Return the mean speed of the mouth's landmarks, in millimetres per frame (25 fps)."""
    return velocity_error_mm(landmarks, np.zeros_like(landmarks), valid)


def opening_correlation(found: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """Return Pearson's correlation of the heights by which the middles of the inner lips are apart.

    0 where one of the two does not change: a mouth that stands still tells nothing.
    """
    openings = [(each[:, _UPPER_LIP, _UP] - each[:, _LOWER_LIP, _UP])[valid] for each in (found, true)]
    first, second = (opening - opening.mean() for opening in openings)
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 1e-9 else 0.0


def diversity_mm(samples: Sequence[np.ndarray], valid: np.ndarray) -> float:
    """Return the mean distance of the mouth's landmarks between any two of several samples of one clip."""
    pairs = [_distances(first, second)[valid].mean() for first, second in combinations(samples, 2)]
    return float(np.mean(pairs))


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances [T, 20] of the mouth's landmarks."""
    return np.linalg.norm(first[:, MOUTH] - second[:, MOUTH], axis=-1)
