"""Chooses 25 frames per second by the timestamps of a video's frames, and tells where frames were lost.

All times are compared in integers, in units in which both the timestamps and the 25 frames of a second are whole
numbers, so that a video of 25 frames per second gives every frame once.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lrs3_loader.types import FRAMES_PER_SECOND

MIN_STEPS = 10  # between frames, before a rate counts as constant
STEP_TOLERANCE = 0.02  # of a step: containers round timestamps
MAX_GAP_SHARE = 0.05  # of the steps; with more gaps the rate varies
TIE_SECONDS = Fraction(6, 1000)  # two frames whose distances from a time differ by no more are about equally near


def _scaled(pts: np.ndarray, time_base: Fraction) -> tuple[np.ndarray, int]:
    """Return times after the first timestamp, and the length of a frame at 25 fps, in a common unit (integers)."""
    ratio = FRAMES_PER_SECOND * time_base
    return (pts.astype(np.int64) - int(pts[0])) * ratio.numerator, ratio.denominator


def resample_to_25fps(pts: np.ndarray, end_pts: int, time_base: Fraction) -> np.ndarray:
    """Choose a source frame for each frame at 25 fps: the one whose timestamp is nearest.

    Frame k at 25 fps stands for the time ``k / 25`` s after the first source frame; ``T = floor(25 t_end + 1/2)``, at
    least 1. Where two source frames are about equally near (``TIE_SECONDS``), the one is taken that brings the mean
    error of all frames closer to zero. So frames are neither early nor late on average, whatever the rate; those that
    are shown in the middle of each 1/25 s would be 10 ms late at 60 fps, and 20 ms early at 12.5 fps.

    Args:
        pts: [n] i64, ascending, in units of ``time_base`` (seconds).
        end_pts: when the last source frame ends.

    Returns:
        [T] i64, non-decreasing indices into ``pts``.
    """
    times, frame = _scaled(np.append(pts, end_pts), time_base)
    times, end = times[:-1], int(times[-1])
    wanted = np.arange(max(1, (2 * end + frame) // (2 * frame)), dtype=np.int64) * frame
    earlier = np.searchsorted(times, wanted, side="right") - 1
    later = np.minimum(earlier + 1, len(times) - 1)  # after the last frame, both are that one
    past, ahead = times[earlier] - wanted, times[later] - wanted  # errors: at most 0, and above 0 but at the end
    is_tie = np.abs(past + ahead) <= int(TIE_SECONDS * FRAMES_PER_SECOND * frame)
    takes_later = past + ahead < 0
    errors = np.where(takes_later, ahead, past) / frame
    total = errors[~is_tie].sum()
    for tie in np.flatnonzero(is_tie):
        takes_later[tie] = total <= 0
        total += (ahead if takes_later[tie] else past)[tie] / frame
    return np.where(takes_later, later, earlier)


def lost_25fps(pts: np.ndarray, num_frames: int, time_base: Fraction) -> np.ndarray:
    """Tell at which of the times ``k / 25`` s a lost frame should be shown; see :func:`is_after_loss`.

    A source frame stands for itself as long as others are shown.

    Args:
        pts: [n] i64, ascending, in units of ``time_base`` (seconds).
        num_frames: T.

    Returns:
        [T] bool.
    """
    times, frame = _scaled(pts, time_base)
    wanted = np.arange(num_frames, dtype=np.int64) * frame
    shown = np.searchsorted(times, wanted, side="right") - 1
    step = np.median(np.diff(times)) if len(times) > 1 else 0
    return is_after_loss(pts)[shown] & (wanted - times[shown] >= step)


def is_after_loss(pts: np.ndarray) -> np.ndarray:
    """Tell after which frames others are missing.

    That is known at a constant rate only: all frames are equally far apart, but for a few gaps of several frames. Where
    timestamps count frames, as in AVI, a gap is a frame that is to be shown for longer.

    Args:
        pts: [n] i64, ascending.

    Returns:
        [n] bool.
    """
    lost = np.zeros(len(pts), dtype=bool)
    steps = np.diff(pts)
    if len(steps) < MIN_STEPS:
        return lost
    usual = np.median(steps)
    if usual < 2:
        return lost
    counts = np.rint(steps / usual)
    is_regular = np.abs(steps - counts * usual) <= np.maximum(1, STEP_TOLERANCE * usual) * np.maximum(counts, 1)
    gaps = counts > 1
    if is_regular.all() and (counts > 0).all() and gaps.mean() <= MAX_GAP_SHARE:
        lost[:-1] = gaps
    return lost
