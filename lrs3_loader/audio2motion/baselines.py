"""The two baselines of the generator, with the same inputs and the same reference on the same clips.

*Mean motion* stands still at the reference. *Ridge regression* predicts a frame's motion about the reference from a
window of normalised speech features and pitch:

    W = argmin sum |x W - y|^2 + ridge |W|^2,    x = [features of frames t - 5 .. t + 5, 1]

(Hoerl and Kennard, 1970; the constant is not penalised.) The ridge is chosen on part of the training speakers.

Shape letters: T frames, D speech features and pitch, K numbers of a window, C of the motion.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lrs3_loader.types import ROWS_PER_FRAME

_REACH_FRAMES = 5  # of a window, to either side
_RIDGES = tuple(10.0**power for power in range(-2, 7))


@dataclass(frozen=True)
class RidgeClip:
    """One training clip."""

    speaker: str
    inputs: np.ndarray  # [2T, D], normalised
    motion: np.ndarray  # [T, C], about the reference
    valid: np.ndarray  # [T] bool


@dataclass(frozen=True)
class Ridge:
    """A fitted regression."""

    weights: np.ndarray  # [K, C]
    ridge: float

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Predict the motion [T, C] about the reference from normalised inputs [2T, D]."""
        return windows(inputs) @ self.weights

    @classmethod
    def fit(cls, clips: Sequence[RidgeClip], ridges: Sequence[float] = _RIDGES) -> Ridge:
        """Fit on all clips with that ridge that has the least error on a fifth of the speakers, fitted on the others.

        Raises:
            ValueError: there are no two speakers.
        """
        speakers = sorted({clip.speaker for clip in clips})
        if len(speakers) < 2:
            raise ValueError(f"the ridge is chosen on other speakers than it is fitted on: need two, got {speakers}")
        asked = set(speakers[::5])
        inside = _Sums.of(clip for clip in clips if clip.speaker not in asked)
        outside = _Sums.of(clip for clip in clips if clip.speaker in asked)
        errors = [outside.error(inside.solve(ridge)) for ridge in ridges]
        best = ridges[int(np.argmin(errors))]
        return cls((inside + outside).solve(best), best)


@dataclass(frozen=True)
class _Sums:
    """The sums over frames that least squares needs: ``X'X`` [K, K], ``X'Y`` [K, C], ``trace(Y'Y)``."""

    inputs: np.ndarray
    products: np.ndarray
    squares: float

    @classmethod
    def of(cls, clips: Iterable[RidgeClip]) -> _Sums:
        parts = ((windows(clip.inputs)[clip.valid], clip.motion[clip.valid].astype(np.float64)) for clip in clips)
        x, y = next(parts)
        inputs, products, squares = x.T @ x, x.T @ y, float((y**2).sum())
        for x, y in parts:
            inputs += x.T @ x
            products += x.T @ y
            squares += float((y**2).sum())
        return cls(inputs, products, squares)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.inputs + other.inputs, self.products + other.products, self.squares + other.squares)

    def solve(self, ridge: float) -> np.ndarray:
        penalty = np.full(len(self.inputs), ridge)
        penalty[-1] = 0.0  # of the constant
        return np.linalg.solve(self.inputs + np.diag(penalty), self.products)

    def error(self, weights: np.ndarray) -> float:
        """Sum of squares of ``X W - Y``."""
        return float((weights * (self.inputs @ weights)).sum() - 2 * (weights * self.products).sum() + self.squares)


def windows(inputs: np.ndarray) -> np.ndarray:
    """Return the regression's inputs [T, K] f64 of rows [2T, D]: means of two rows, of 11 frames, and a constant.

    What lies before and after the clip is 0, the mean.
    """
    frames = inputs.astype(np.float64).reshape(-1, ROWS_PER_FRAME, inputs.shape[1]).mean(1)
    padded = np.pad(frames, ((_REACH_FRAMES, _REACH_FRAMES), (0, 0)))
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH_FRAMES + 1, axis=0)  # [T, D, 11]
    return np.concatenate([around.reshape(len(frames), -1), np.ones((len(frames), 1))], axis=1)
