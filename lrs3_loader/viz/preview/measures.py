"""Computes the curves of a preview: mouth opening, fit error, and the expressions that move most.

Letters: T frames, E expression modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lrs3_loader.face.fit.expression_prior import score_of_mode
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.viz.preview.subject import Subject

NUM_EXPRESSIONS = 6
_UPPER_LIP, _LOWER_LIP = 62, 66  # middles of the inner lips
_MOUTH = slice(48, 68)


@dataclass(frozen=True)
class Measures:
    """Curves over a clip's frames; errors and openings in percent of the face's size."""

    fitted: np.ndarray  # [T, 68, 2] f32, the model's landmarks in source pixels
    error: np.ndarray  # [T], mean distance of the 68 landmarks to the fit; NaN where no face was found
    mouth_error: np.ndarray  # [T], mean over the mouth's 20 landmarks
    opening: np.ndarray  # [T], distance of the inner lips, as detected
    fitted_opening: np.ndarray  # [T], as fitted
    expressions: dict[str, np.ndarray]  # the modes that move the landmarks most in this clip, [T] each
    scores: dict[str, np.ndarray]  # the blendshape scores of these names, 0..1, where there are some, [T] each


def measure(subject: Subject) -> Measures:
    """Measure a clip; the strongest expression comes first.

    The motion of mode e is the standard deviation of its coefficient times the length of its basis at the 68 landmarks.
    """
    arrays, model = subject.arrays, subject.model
    id, exp, pose = (torch.from_numpy(arrays[name]) for name in ("id", "exp", "pose"))
    fitted = project(model.landmarks(id, exp), pose, Camera.for_frame(subject.height, subject.width)).numpy()
    lm68 = arrays["lm68"]
    size = face_size(lm68)
    distance = 100 * np.linalg.norm(fitted - lm68, axis=2) / size[:, None]
    distance[~arrays["valid"]] = np.nan
    motion = arrays["exp"].std(0) * model.landmark_exp_basis.flatten(0, 1).norm(dim=0).numpy()
    strongest = np.argsort(-motion, kind="stable")[:NUM_EXPRESSIONS]
    columns = {model.exp_names[mode]: score_of_mode(model.exp_names[mode]) for mode in strongest}
    stored = arrays.get("blendshapes")
    found = (
        {}
        if stored is None
        else {name: stored[:, at].astype(np.float32) for name, at in columns.items() if at is not None}
    )
    return Measures(
        fitted=fitted,
        error=distance.mean(1),
        mouth_error=distance[:, _MOUTH].mean(1),
        opening=100 * mouth_opening(lm68) / size,
        fitted_opening=100 * mouth_opening(fitted) / size,
        expressions={model.exp_names[mode]: arrays["exp"][:, mode] for mode in strongest},
        scores=found,
    )


def face_size(lm68: np.ndarray) -> np.ndarray:
    """[T] pixels: the geometric mean of the width and height of the landmarks [T, 68, 2]."""
    return np.sqrt(np.ptp(lm68, axis=1).prod(1))


def mouth_opening(lm68: np.ndarray) -> np.ndarray:
    """[T] pixels: the distance of the inner lips."""
    return np.linalg.norm(lm68[:, _UPPER_LIP] - lm68[:, _LOWER_LIP], axis=1)
