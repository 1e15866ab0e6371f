"""Where MediaPipe sees the landmarks of ICT-FaceKit's face.

The release names a vertex for each of iBUG's 68 landmarks, but MediaPipe's points of these names lie elsewhere: 3.4 mm
from them in the mean, 7 mm on the contour, 5 mm on the brows, 1.6 mm on the lips and 1 mm on the eyes. A fit to the
vertices explains that by the identity: all people get much the same one, of two and a half times the model's variety.

So the model's landmarks are points of their own, next to those vertices, that move as these do; their distances from
them grow and shrink with the face (if they did not, a fit would turn small and large faces by a degree and more). They
were measured in 1,902 frames of seven people: the mean difference between MediaPipe's landmarks and the fitted ones, in
the face's own axes, every person counted once and left and right together, repeated until it vanished; with a narrow
prior of the identity and of the expression about its blendshape scores, so that neither explains it.
"""

from __future__ import annotations

import numpy as np

from lrs3_loader.face.geometry.topology import IBUG68_MIRROR

#: Millimetres to the left of the person and upwards, from the vertex to the landmark; of the right side and the middle.
OFFSETS_MM: dict[int, tuple[float, float]] = {
    0: (-0.5, -14.3), 1: (-0.5, -7.2), 2: (-1.0, -2.3), 3: (-1.6, 1.2), 4: (-4.9, 7.1),
    5: (-4.6, 3.9), 6: (-7.3, 6.1), 7: (-6.0, 2.5), 8: (0.0, 1.3),  # contour
    17: (-1.8, -3.8), 18: (-3.7, -4.1), 19: (-5.3, -2.4), 20: (-6.1, -1.6), 21: (-3.5, -0.3),  # brow
    27: (0.0, 0.5), 28: (0.0, -3.0), 29: (0.0, -4.1), 30: (0.0, 1.7), 31: (1.1, 3.4),
    32: (-1.2, 1.5), 33: (0.0, 2.0),  # nose
    36: (-0.9, -0.2), 37: (0.1, 1.4), 38: (-0.7, 0.9), 39: (0.1, -0.8), 40: (-0.8, -0.7),
    41: (1.0, -0.5),  # eye
    48: (1.0, -0.2), 49: (-1.3, -1.3), 50: (0.4, 0.2), 51: (0.0, -0.5), 55: (0.8, -0.6),
    56: (-3.5, -3.5), 57: (0.0, -2.5),  # outer lips
    60: (0.1, -0.6), 61: (-0.6, 0.7), 62: (0.0, 0.8), 65: (-0.2, -2.0), 66: (0.0, -1.9),  # inner lips
}  # fmt: skip
_DECIMETRES_PER_MM = 0.01


def landmark_offsets() -> np.ndarray:
    """Offsets [68, 3] f64 in decimetres of the landmarks from the release's vertices; 0 in depth."""
    offsets = np.zeros((len(IBUG68_MIRROR), 3))
    for landmark, (aside, upwards) in OFFSETS_MM.items():
        offsets[landmark, :2] = aside, upwards
        offsets[IBUG68_MIRROR[landmark], :2] = -aside, upwards
    return _DECIMETRES_PER_MM * offsets


def size_changes(points: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Relative change [I] of the size of ``points`` [K, 3] by each of ``modes`` [K, 3, I], to first order.

    The size is the root mean square distance from the centroid.
    """
    points = points - points.mean(0)
    return np.einsum("kc,kci->i", points, modes) / np.square(points).sum()
