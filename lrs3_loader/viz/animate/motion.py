"""From what a generator made to faces: coefficients for the mesh, and landmarks.

A generator of ``exp`` gives a face model's expression as it is. One of ``idexp_lm3d`` gives 68 points, and the mesh is
the most likely face of the model that has them (``lrs3_loader.face.fit.offsets``).

Letters: T frames, I identity modes, E expression modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lrs3_loader.face.fit.offsets import coefficients_of_offsets
from lrs3_loader.face.model.morphable import IDEXP_SCALE, FaceModel

_UPPER_LIP, _LOWER_LIP = 62, 66  # middles of the inner lips
_MILLIMETRES = 100  # in a decimetre


@dataclass(frozen=True)
class FaceMotion:
    """A face that moves, without the movement of its head."""

    id: torch.Tensor  # [I] f32
    exp: torch.Tensor  # [T, E] f32
    landmarks: torch.Tensor  # [T, 68, 3] f32, decimetres in the face model's axes

    @property
    def num_frames(self) -> int:
        return len(self.exp)

    @property
    def mouth_opening(self) -> np.ndarray:
        """Distance [T] of the inner lips in millimetres."""
        return opening_of(self.landmarks)

    @classmethod
    def of_exp(cls, model: FaceModel, exp: torch.Tensor, id: torch.Tensor | None) -> FaceMotion:
        """The motion of expression coefficients [T, E]; without an identity [I], of the model's mean face."""
        id = torch.zeros(model.num_id) if id is None else id
        return cls(id, exp, model.landmarks(id, exp))

    @classmethod
    def of_landmarks(cls, model: FaceModel, idexp_lm3d: torch.Tensor, id: torch.Tensor | None) -> FaceMotion:
        """The motion of landmark offsets [T, 204] (``idexp_lm3d``); without an identity [I], it is estimated."""
        offsets = idexp_lm3d.unflatten(-1, (-1, 3)) / IDEXP_SCALE
        id, exp = coefficients_of_offsets(model, offsets, id)
        return cls(id, exp, model.landmark_mean + offsets)


#: The face of each target of a generator.
FACE_OF = {"idexp_lm3d": FaceMotion.of_landmarks, "exp": FaceMotion.of_exp}


def opening_of(landmarks: torch.Tensor) -> np.ndarray:
    """Distance [T] of the inner lips in millimetres, for landmarks [T, 68, 3] in decimetres."""
    gap = landmarks[:, _UPPER_LIP] - landmarks[:, _LOWER_LIP]
    return (_MILLIMETRES * gap.norm(dim=-1)).numpy()
