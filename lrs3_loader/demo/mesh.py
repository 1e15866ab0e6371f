"""The mesh of the demo head: one grid of skin, cut at lids and lips, and sheets for what lies behind or beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise

import numpy as np

from lrs3_loader.demo import shape
from lrs3_loader.demo.shape import Places
from lrs3_loader.face.geometry.topology import IBUG68_MIRROR


class Part(IntEnum):
    """A part of the head that a vertex belongs to; each part has its own texture."""

    SKIN = 0
    EYE = 1
    MOUTH = 2
    TEETH = 3
    EAR = 4


@dataclass(frozen=True)
class Sheet:
    """A patch of n vertices over a rectangle: eyeball, teeth, inside of the mouth, ear."""

    part: Part
    depth: str  # how ``head`` computes its z: eye, ear, ear_left, mouth, upper_teeth, lower_teeth
    x: np.ndarray  # [n] dm at rest
    y: np.ndarray  # [n]
    triangles: np.ndarray  # [f, 3] within the patch
    uv: np.ndarray  # [n, 2]


@dataclass(frozen=True)
class HeadMesh:
    """The mesh of the demo head; row i of every array is vertex i of ``demo_head()``."""

    triangles: np.ndarray  # [F, 3] i64, counter-clockwise seen from outside
    part: np.ndarray  # [V] i64, a Part
    uv: np.ndarray  # [V, 2] f64 in 0..1: place in the texture of its part, v down
    places: Places  # of the skin's vertices, which come first
    sheets: tuple[Sheet, ...]  # the other parts, in the order of their vertices
    landmark_verts: np.ndarray  # [68] i64


@lru_cache(maxsize=1)
def head_mesh() -> HeadMesh:
    """Return the mesh that all demo heads share."""
    grid = _Grid()
    for sign in (-1, 1):
        ends = sorted(sign * angle for angle in shape.EYE_CORNERS)
        grid.cut(shape.EYE_LEVEL, ends[0], ends[1], "over_eye", rims=(0.04,))
    grid.cut(shape.MOUTH_LEVEL, -shape.MOUTH_CORNER, shape.MOUTH_CORNER, "over_mouth", rims=(0.03, 0.07))
    triangles, count = [grid.sew()], grid.count
    landmark_verts = _place_landmarks(grid)
    skin_uv = np.stack([0.5 + 0.5 * np.sin(grid.longitude / 2), (1.40 - grid.level) / 2.52], axis=-1)
    sheets = _sheets()
    for sheet in sheets:
        triangles.append(sheet.triangles + count)
        count += len(sheet.x)
    return HeadMesh(
        triangles=np.concatenate(triangles),
        part=np.repeat([Part.SKIN, *(s.part for s in sheets)], [grid.count, *(len(s.x) for s in sheets)]),
        uv=np.concatenate([skin_uv, *(sheet.uv for sheet in sheets)]),
        places=Places(grid.longitude, grid.level, grid.over_eye, grid.over_mouth, grid.inward),
        sheets=sheets,
        landmark_verts=landmark_verts,
    )


def _spaced(knots: Sequence[float], counts: Sequence[int]) -> np.ndarray:
    """Evenly spaced values between each two knots: ``counts[i]`` steps from knot i to knot i + 1."""
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(knots[:-1], knots[1:], counts, strict=True)]
    return np.append(np.concatenate(pieces), knots[-1])


def _grid_axes() -> tuple[np.ndarray, np.ndarray]:
    """Levels from the crown down, and longitudes from the back round to the back; knots at the ends of all cuts."""
    inner, outer = shape.EYE_CORNERS
    knots = [0.0, inner, shape.MOUTH_CORNER, outer, np.deg2rad(60), np.pi / 2, np.pi]
    right = _spaced(knots, [7, 5, 6, 7, 6, 6])
    longitudes = np.concatenate([-right[-2:0:-1], right])  # -pi and pi are one column
    crown = 0.5 + 0.87 * np.sin(np.linspace(1.5, 0.45, 8))
    upper = [crown[-1], 0.55, shape.EYE_LEVEL, 0.02, shape.NOSE_LEVEL, -0.34]
    lower = [shape.MOUTH_LEVEL, -0.55, -0.66, shape.CHIN_LEVEL, -1.06]
    return np.concatenate([crown[:-1], _spaced(upper + lower, [5, 10, 7, 9, 4, 6, 7, 3, 7, 4])]), longitudes


class _Grid:
    """Vertices on levels x longitudes, with a second copy of those inside a cut."""

    def __init__(self) -> None:
        self.levels, self.longitudes = _grid_axes()
        num_rows, num_columns = len(self.levels), len(self.longitudes)
        self.ids = np.arange(num_rows * num_columns).reshape(num_rows, num_columns)
        self.under = self.ids.copy()  # the ids seen from the row below
        self.level = np.repeat(self.levels, num_columns)
        self.longitude = np.tile(self.longitudes, num_rows)
        self.over_eye, self.over_mouth = self.level >= shape.EYE_LEVEL, self.level >= shape.MOUTH_LEVEL
        self.inward = np.zeros(self.count)
        self.triangles: list[np.ndarray] = []

    @property
    def count(self) -> int:
        return len(self.level)

    def add(self, like: np.ndarray, inward: float, **sides: bool) -> np.ndarray:
        """Add vertices at the places of existing ones, on the given side of a cut; returns their numbers."""
        new = np.arange(self.count, self.count + len(like))
        for name in ("level", "longitude", "over_eye", "over_mouth", "inward"):
            values = getattr(self, name)
            setattr(self, name, np.concatenate([values, values[like]]))
        self.inward[new] = inward
        for name, value in sides.items():
            getattr(self, name)[new] = value
        return new

    def cut(self, level: float, start: float, stop: float, side: str, rims: Sequence[float]) -> None:
        """Cut along a level between two longitudes, and line both lips of the cut with rims behind them."""
        row = int(np.argmin(np.abs(self.levels - level)))
        inside = np.flatnonzero((self.longitudes > start + 1e-9) & (self.longitudes < stop - 1e-9))
        self.under[row, inside] = self.add(self.ids[row, inside], 0.0, **{side: False})
        whole = np.arange(inside[0] - 1, inside[-1] + 2)  # with the corners
        for over, edge in ((True, self.ids[row, whole]), (False, self.under[row, whole])):
            for inward in rims:
                behind = self.add(edge, inward, **{side: over})
                self.triangles.append(strip(edge, behind) if over else strip(behind, edge))
                edge = behind

    def sew(self) -> np.ndarray:
        """Return all triangles: the rows joined all the way round, the crown closed, and the rims."""
        wrap = np.arange(len(self.longitudes) + 1) % len(self.longitudes)
        self.triangles += [strip(a[wrap], b[wrap]) for a, b in zip(self.under[:-1], self.ids[1:], strict=True)]
        top = self.ids[0]
        pole = self.add(top[:1], 0.0)
        self.level[pole], self.longitude[pole] = 1.37, 0.0
        fan = np.stack([np.broadcast_to(pole, top.shape), top, np.roll(top, -1)], axis=1)
        return np.concatenate([*self.triangles, fan])


def strip(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return triangles [n, 3] between rows of vertices [..., k], seen from the front: x grows along a row."""
    a, b, c, d = (row.ravel() for row in (upper[..., :-1], upper[..., 1:], lower[..., :-1], lower[..., 1:]))
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])


# Where landmarks lie on the resting head, from the middle outwards: (x, level), and for the bridge the level only.
_CONTOUR = (
    (0.0, -0.85), (0.215, -0.83), (0.367, -0.76), (0.452, -0.70), (0.597, -0.42), (0.65, -0.19), (0.69, -0.025),
    (0.705, 0.12), (0.70, 0.245),
)  # fmt: skip
_BROW = ((0.137, 0.453), (0.28, 0.472), (0.404, 0.479), (0.498, 0.451), (0.561, 0.407))
_BRIDGE = (0.278, 0.12, -0.018, -0.102)


def _landmark_places() -> list[tuple[float, float, str]]:
    """(x, level, cut) of the 68 landmarks in iBUG's order; cut names the rim it lies on: "", "over" or "under"."""
    mouth, eye = shape.MOUTH_LEVEL, shape.EYE_LEVEL
    corner = float(np.sin(shape.MOUTH_CORNER) * shape.half_width(np.array(mouth)))

    def red(x: float, lip: int) -> float:
        """Height of the red of the upper (0) or lower (1) lip."""
        return float(shape.lip_thickness(np.array(x))[lip])

    half: dict[int, tuple[float, float, str]] = {}  # the landmarks with x >= 0, by their number
    half |= {8 + i: (x, level, "") for i, (x, level) in enumerate(_CONTOUR)}
    half |= {22 + i: (x, level, "") for i, (x, level) in enumerate(_BROW)}
    half |= {27 + i: (0.0, level, "") for i, level in enumerate(_BRIDGE)}
    half |= {33: (0.0, -0.215, ""), 34: (0.078, -0.205, ""), 35: (0.125, -0.185, "")}
    half |= {51 + i: (x, mouth + red(x, 0), "") for i, x in enumerate((0.0, 0.075, 0.20))}
    half |= {54: (corner, mouth, "")}
    half |= {55 + i: (x, mouth - red(x, 1), "") for i, x in enumerate((0.20, 0.075, 0.0))}
    half |= {62 + i: (x, mouth, "over") for i, x in enumerate((0.0, 0.115, corner * 0.9))}
    half |= {65: (0.115, mouth, "under"), 66: (0.0, mouth, "under")}
    width = float(shape.half_width(np.array(eye)))
    inner, outer = (float(np.sin(angle)) * width for angle in shape.EYE_CORNERS)
    at = [inner + t * (outer - inner) for t in (0.0, 0.34, 0.72, 1.0)]
    half |= {42: (at[0], eye, ""), 43: (at[1], eye, "over"), 44: (at[2], eye, "over"), 45: (at[3], eye, "")}
    half |= {46: (at[2], eye, "under"), 47: (at[1], eye, "under")}
    mirrored = {IBUG68_MIRROR[i]: (-x, level, cut) for i, (x, level, cut) in half.items()}
    return [(mirrored | half)[i] for i in range(68)]


def _place_landmarks(grid: _Grid) -> np.ndarray:
    """Move the nearest free vertex onto each landmark (on the rim itself for lids and inner lips); their numbers."""
    mouth = (np.abs(grid.level - shape.MOUTH_LEVEL) < 1e-9) & (np.abs(grid.longitude) < shape.MOUTH_CORNER)
    eye = np.abs(grid.level - shape.EYE_LEVEL) < 1e-9
    x0, y0 = shape.half_width(grid.level) * np.sin(grid.longitude), grid.level.copy()
    front = (grid.inward == 0) & (np.abs(grid.longitude) <= np.pi / 2)
    chosen: list[int] = []
    for x, level, cut in _landmark_places():
        fits = front.copy()
        if cut:
            rim, upper = (mouth, grid.over_mouth) if level < 0 else (eye, grid.over_eye)
            fits &= rim & (upper == (cut == "over"))
        fits[chosen] = False
        # Ties between mirrored vertices are broken towards the outside on both sides alike.
        distance = np.hypot(x0 - x * (1 + 1e-6), y0 - level)
        vertex = int(np.argmin(np.where(fits, distance, np.inf)))
        grid.level[vertex] = level
        grid.longitude[vertex] = shape.longitude_of(np.array(x), np.array(level))
        chosen.append(vertex)
    return np.array(chosen)


def _sheet(part: Part, depth: str, x: np.ndarray, y: np.ndarray) -> Sheet:
    """A rectangle of vertices at the given x (left to right) and y (top to bottom)."""
    ids = np.arange(len(y) * len(x)).reshape(len(y), len(x))
    triangles = np.concatenate([strip(upper, lower) for upper, lower in pairwise(ids)])
    xs, ys = np.tile(x, len(y)), np.repeat(y, len(x))
    uv = np.stack([(xs - x[0]) / (x[-1] - x[0]), (y[0] - ys) / (y[0] - y[-1])], axis=1)
    return Sheet(part, depth, xs, ys, triangles, uv)


def _sheets() -> tuple[Sheet, ...]:
    centre, level = shape.EYE_CENTRE_X, shape.EYE_LEVEL + 0.012
    eye_x, eye_y = np.linspace(-0.19, 0.19, 21), np.linspace(0.10, -0.10, 12)
    ear_x, ear_y = np.linspace(-0.5, 0.5, 9), np.linspace(1.0, -1.0, 9)
    return (
        _sheet(Part.EYE, "eye", eye_x - centre, eye_y + level),
        _sheet(Part.EYE, "eye", eye_x + centre, eye_y + level),
        _sheet(Part.MOUTH, "mouth", np.linspace(-0.36, 0.36, 9), np.linspace(-0.26, -0.72, 8)),
        _sheet(Part.TEETH, "upper_teeth", np.linspace(-0.22, 0.22, 13), np.linspace(-0.36, -0.462, 3)),
        _sheet(Part.TEETH, "lower_teeth", np.linspace(-0.20, 0.20, 13), np.linspace(-0.478, -0.57, 3)),
        _sheet(Part.EAR, "ear", ear_x, ear_y),
        _sheet(Part.EAR, "ear_left", ear_x, ear_y),
    )
