"""What is generated, and where it puts the 68 landmarks.

Shape letters: T frames, E expression modes, C numbers per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrs3_loader.face.model.morphable import IDEXP_SCALE, NUM_LANDMARKS, FaceModel

TARGETS = ("idexp_lm3d", "exp")
_MILLIMETRES = 10.0  # in a centimetre, which is the unit of idexp_lm3d: decimetres x 10


@dataclass(frozen=True)
class Target:
    """The motion that is generated: ``idexp_lm3d`` [T, 204], or ``exp`` [T, E] with the face model that it belongs to.

    Raises ``ValueError`` for another name, or for ``exp`` without its face model.
    """

    name: str
    face_model: FaceModel | None = None

    def __post_init__(self) -> None:
        if self.name not in TARGETS:
            raise ValueError(f"the target must be one of {', '.join(TARGETS)}, got {self.name!r}")
        if self.name == "exp" and self.face_model is None:
            raise ValueError("target exp needs the face model of the run, to tell where the landmarks are")

    def landmark_offsets_mm(self, motion: np.ndarray) -> np.ndarray:
        """Return the offsets of the landmarks [T, 68, 3] in millimetres, for a motion [T, C].

        They are offsets from the mean face (``idexp_lm3d``), or from the same face at rest (``exp``). Axes as in
        ``face.model.morphable``: y up.
        """
        if self.face_model is not None and self.name == "exp":
            basis = IDEXP_SCALE * self.face_model.landmark_exp_basis.cpu().numpy().astype(np.float64)
            return _MILLIMETRES * np.einsum("lde,te->tld", basis, motion.astype(np.float64))
        return _MILLIMETRES * motion.astype(np.float64).reshape(len(motion), NUM_LANDMARKS, 3)
