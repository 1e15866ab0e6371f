"""The mesh of the demo head: one grid of skin, cut at lids and lips, and sheets for what lies behind or beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np

from lrs3_loader.demo import shape
from lrs3_loader.demo.landmark_places import landmark_places
from lrs3_loader.demo.shape import Places


class Part(IntEnum):
    """A part of the head that a vertex belongs to; each part has its own texture."""

    SKIN = 0
    EYE = 1
    MOUTH = 2
    TEETH = 3
    EAR = 4


@dataclass(frozen=True)
class HeadMesh:
    """The mesh of the demo head; row i of every array is vertex i of ``demo_head()``."""

    triangles: np.ndarray  # [F, 3] i64, counter-clockwise seen from outside
    part: np.ndarray  # [V] i64, a Part
    uv: np.ndarray  # [V, 2] f64 in 0..1: place in the texture of its part, v down
    places: Places  # of the skin's vertices, which come first
    sheets: tuple[Sheet, ...]  # the other parts, in the order of their vertices
    landmark_verts: np.ndarray  # [68] i64


@dataclass(frozen=True)
class Sheet:
    """A patch of n vertices over a rectangle: eyeball, teeth, inside of the mouth, ear."""

    part: Part
    x: np.ndarray  # [n] dm at rest
    y: np.ndarray  # [n]
    depth: str  # which function of _DEPTHS gives its z
    triangles: np.ndarray  # [f, 3] within the patch
    uv: np.ndarray  # [n, 2]


def skin_uv(longitude: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Map places of the skin to texture coordinates [n, 2]; the front gets more room than the back."""
    return np.stack([0.5 + 0.5 * np.sin(longitude / 2), (1.40 - level) / 2.52], axis=-1)


@lru_cache(maxsize=1)
def head_mesh() -> HeadMesh:
    """The mesh all demo heads share."""
    grid = _Grid()
    for sign in (-1, 1):
        ends = sorted(sign * angle for angle in shape.EYE_CORNERS)
        grid.cut(shape.EYE_LEVEL, ends[0], ends[1], "over_eye", rims=(0.04,))
    grid.cut(shape.MOUTH_LEVEL, -shape.MOUTH_CORNER, shape.MOUTH_CORNER, "over_mouth", rims=(0.03, 0.07))
    triangles = [grid.sew()]
    landmarks = _place_landmarks(grid)
    places, sheets = grid.places(), _sheets()
    uv, part, count = [skin_uv(places.longitude, places.level)], [np.full(grid.count, Part.SKIN)], grid.count
    for sheet in sheets:
        triangles.append(sheet.triangles + count)
        uv.append(sheet.uv)
        part.append(np.full(len(sheet.x), sheet.part))
        count += len(sheet.x)
    return HeadMesh(np.concatenate(triangles), np.concatenate(part), np.concatenate(uv), places, sheets, landmarks)


def _spaced(knots: Sequence[float], counts: Sequence[int]) -> np.ndarray:
    """Evenly spaced values between each two knots: ``counts[i]`` steps from knot i to knot i + 1."""
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(knots[:-1], knots[1:], counts, strict=True)]
    return np.append(np.concatenate(pieces), knots[-1])


_LOWER_LEVELS = (-0.55, -0.66, shape.CHIN_LEVEL, -1.06)


def _grid_axes() -> tuple[np.ndarray, np.ndarray]:
    """Levels from the crown down, and longitudes from the back round to the back; knots at every slit's ends."""
    right = _spaced(
        [0.0, *shape.EYE_CORNERS[:1], shape.MOUTH_CORNER, shape.EYE_CORNERS[1], np.deg2rad(60), np.pi / 2, np.pi],
        [7, 5, 6, 7, 6, 6],
    )
    longitudes = np.concatenate([-right[-2:0:-1], right])  # -pi and pi are one column
    crown = 0.5 + 0.87 * np.sin(np.linspace(1.5, 0.45, 8))
    levels = np.concatenate(
        [
            crown[:-1],
            _spaced(
                (crown[-1], 0.55, shape.EYE_LEVEL, 0.02, shape.NOSE_LEVEL, -0.34, shape.MOUTH_LEVEL, *_LOWER_LEVELS),
                (5, 10, 7, 9, 4, 6, 7, 3, 7, 4),
            ),
        ]
    )
    return levels, longitudes


class _Grid:
    """Vertices on levels x longitudes, with a second copy of those inside a slit."""

    def __init__(self) -> None:
        self.levels, self.longitudes = _grid_axes()
        num_rows, num_columns = len(self.levels), len(self.longitudes)
        self.ids = np.arange(num_rows * num_columns).reshape(num_rows, num_columns)
        self.under = self.ids.copy()  # the ids seen from the row below
        self.count = self.ids.size
        self.level = np.repeat(self.levels, num_columns)
        self.longitude = np.tile(self.longitudes, num_rows)
        self.over_eye, self.over_mouth = self.level >= shape.EYE_LEVEL, self.level >= shape.MOUTH_LEVEL
        self.inward = np.zeros(self.count)
        self.triangles: list[np.ndarray] = []

    def row_of(self, level: float) -> int:
        return int(np.argmin(np.abs(self.levels - level)))

    def add(self, like: np.ndarray, inward: float, **sides: bool) -> np.ndarray:
        """New vertices at the places of existing ones, on the given side of a cut; returns their numbers."""
        for name in ("level", "longitude", "over_eye", "over_mouth", "inward"):
            values = getattr(self, name)
            setattr(self, name, np.concatenate([values, values[like]]))
        new = np.arange(self.count, self.count + len(like))
        self.count += len(like)
        self.inward[new] = inward
        for name, value in sides.items():
            getattr(self, name)[new] = value
        return new

    def cut(self, level: float, start: float, stop: float, side: str, rims: Sequence[float]) -> None:
        """Open a slit along a level between two longitudes, and line both its lips with rims behind them."""
        row = self.row_of(level)
        inside = np.flatnonzero((self.longitudes > start + 1e-9) & (self.longitudes < stop - 1e-9))
        self.under[row, inside] = self.add(self.ids[row, inside], 0.0, **{side: False})
        whole = np.arange(inside[0] - 1, inside[-1] + 2)  # with the corners
        for over, edge in ((True, self.ids[row, whole]), (False, self.under[row, whole])):
            for inward in rims:
                behind = self.add(edge, inward, **{side: over})
                self.triangles.append(_strip(edge, behind) if over else _strip(behind, edge))
                edge = behind

    def sew(self) -> np.ndarray:
        """All triangles: the rows joined all the way round, the crown closed, and the rims."""
        wrap = np.arange(len(self.longitudes) + 1) % len(self.longitudes)
        for row in range(len(self.levels) - 1):
            self.triangles.append(_strip(self.under[row, wrap], self.ids[row + 1, wrap]))
        top = self.ids[0]
        pole = self.add(top[:1], 0.0)
        self.level[pole], self.longitude[pole] = 1.37, 0.0
        fan = np.stack([np.broadcast_to(pole, top.shape), top, np.roll(top, -1)], axis=1)
        return np.concatenate([*self.triangles, fan])

    def places(self) -> Places:
        return Places(self.longitude, self.level, self.over_eye, self.over_mouth, self.inward)


def _strip(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Triangles between two rows of vertices, seen from the front: x grows along the rows, ``lower`` is below."""
    a, b, c, d = upper[:-1], upper[1:], lower[:-1], lower[1:]
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])


def _place_landmarks(grid: _Grid) -> np.ndarray:
    """Move the nearest free vertex onto each landmark (on the rim itself for lids and inner lips); their numbers."""
    on_skin = grid.inward == 0
    mouth = (np.abs(grid.level - shape.MOUTH_LEVEL) < 1e-9) & (np.abs(grid.longitude) < shape.MOUTH_CORNER)
    eye = np.abs(grid.level - shape.EYE_LEVEL) < 1e-9
    x0, y0 = shape.half_width(grid.level) * np.sin(grid.longitude), grid.level.copy()
    front = np.abs(grid.longitude) <= np.pi / 2
    chosen: list[int] = []
    for x, level, cut in landmark_places():
        fits = on_skin & front
        if cut:
            rim, upper = (mouth, grid.over_mouth) if level < 0 else (eye, grid.over_eye)
            fits = fits & rim & (upper == (cut == "over"))
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
    triangles = np.concatenate([_strip(ids[row], ids[row + 1]) for row in range(len(y) - 1)])
    xs, ys = np.tile(x, len(y)), np.repeat(y, len(x))
    uv = np.stack([(xs - x[0]) / (x[-1] - x[0]), (y[0] - ys) / (y[0] - y[-1])], axis=1)
    return Sheet(part, xs, ys, depth, triangles, uv)


def _sheets() -> tuple[Sheet, ...]:
    centre, level = shape.EYE_CENTRE_X, shape.EYE_LEVEL + 0.012
    eye_x, eye_y = np.linspace(-0.19, 0.19, 21), np.linspace(0.10, -0.10, 12)
    return (
        _sheet(Part.EYE, "eye", eye_x - centre, eye_y + level),
        _sheet(Part.EYE, "eye", eye_x + centre, eye_y + level),
        _sheet(Part.MOUTH, "mouth", np.linspace(-0.36, 0.36, 9), np.linspace(-0.26, -0.72, 8)),
        _sheet(Part.TEETH, "upper_teeth", np.linspace(-0.22, 0.22, 13), np.linspace(-0.36, -0.462, 3)),
        _sheet(Part.TEETH, "lower_teeth", np.linspace(-0.20, 0.20, 13), np.linspace(-0.478, -0.57, 3)),
        _sheet(Part.EAR, "ear", np.linspace(-0.5, 0.5, 9), np.linspace(1.0, -1.0, 9)),
        _sheet(Part.EAR, "ear_left", np.linspace(-0.5, 0.5, 9), np.linspace(1.0, -1.0, 9)),
    )
