"""Where the 68 iBUG landmarks lie on the demo head at rest."""

from __future__ import annotations

import numpy as np

from lrs3_loader.demo import shape
from lrs3_loader.face.geometry.topology import IBUG68_MIRROR

# Where the points of ``face.topology.IBUG68`` come to lie on these heads: (x, level), from the middle outwards.
_CONTOUR = (
    (0.0, -0.85), (0.215, -0.83), (0.367, -0.76), (0.452, -0.70), (0.597, -0.42), (0.65, -0.19), (0.69, -0.025),
    (0.705, 0.12), (0.70, 0.245),
)  # fmt: skip
_BROW = ((0.137, 0.453), (0.28, 0.472), (0.404, 0.479), (0.498, 0.451), (0.561, 0.407))
_BRIDGE = (0.278, 0.12, -0.018, -0.102)  # levels


def landmark_places() -> list[tuple[float, float, str]]:
    """(x, level, cut) of the 68 landmarks in iBUG's order; cut names the rim it lies on: "", "over" or "under"."""
    corner = float(np.sin(shape.MOUTH_CORNER) * shape.half_width(np.array(shape.MOUTH_LEVEL)))

    def red(x: float, lip: int) -> float:
        """Height of the red of the upper (0) or lower (1) lip."""
        return float(shape.lip_thickness(np.array(x))[lip])

    half: dict[int, tuple[float, float, str]] = {}  # the landmarks with x >= 0, by their number
    half |= {8 + i: (x, level, "") for i, (x, level) in enumerate(_CONTOUR)}
    half |= {22 + i: (x, level, "") for i, (x, level) in enumerate(_BROW)}
    half |= {27 + i: (0.0, level, "") for i, level in enumerate(_BRIDGE)}
    half |= {33: (0.0, -0.215, ""), 34: (0.078, -0.205, ""), 35: (0.125, -0.185, "")}
    half |= {51: (0.0, shape.MOUTH_LEVEL + red(0.0, 0), "")}
    half |= {n: (x, shape.MOUTH_LEVEL + red(x, 0), "") for n, x in ((52, 0.075), (53, 0.20))}
    half |= {54: (corner, shape.MOUTH_LEVEL, "")}
    half |= {n: (x, shape.MOUTH_LEVEL - red(x, 1), "") for n, x in ((55, 0.20), (56, 0.075), (57, 0.0))}
    half |= {62: (0.0, shape.MOUTH_LEVEL, "over"), 63: (0.115, shape.MOUTH_LEVEL, "over")}
    half |= {64: (corner * 0.9, shape.MOUTH_LEVEL, "over")}
    half |= {65: (0.115, shape.MOUTH_LEVEL, "under"), 66: (0.0, shape.MOUTH_LEVEL, "under")}
    width = float(shape.half_width(np.array(shape.EYE_LEVEL)))
    inner, outer = (float(np.sin(angle)) * width for angle in shape.EYE_CORNERS)
    at = [inner + t * (outer - inner) for t in (0.0, 0.34, 0.72, 1.0)]
    eye = shape.EYE_LEVEL
    half |= {42: (at[0], eye, ""), 43: (at[1], eye, "over"), 44: (at[2], eye, "over"), 45: (at[3], eye, "")}
    half |= {46: (at[2], eye, "under"), 47: (at[1], eye, "under")}
    return [half[i] if i in half else _mirrored(half[IBUG68_MIRROR[i]]) for i in range(68)]


def _mirrored(place: tuple[float, float, str]) -> tuple[float, float, str]:
    return (-place[0], *place[1:])
