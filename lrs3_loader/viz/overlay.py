"""Draws on pictures, with numpy and Pillow alone: anti-aliased dots and lines, the 68 landmarks, wireframes.

A picture is [H, W, 3] f32, RGB in 0..1, and is drawn on in place. Points are (x, y) pixels, whole at pixel centres,
y down: (0, 0) is the middle of the top left pixel.

A stroke covers a pixel by ``clip(width / 2 + 1/2 - distance, 0, 1)``, the distance from the pixel's centre to the
segment: a line of ``width`` pixels with round ends and edges one pixel soft. A dot is a segment without length.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]

WIRE_FINENESS = 2  # wires are one pixel wide in a drawing this much finer in both directions
PIECE_PX = 4.0  # strokes are drawn in pieces of at most this length, each in a window of a fixed size

#: Runs of the iBUG-68 landmarks that lie on one line: (first, past the last, closed).
LANDMARK_LINES = (
    (0, 17, False),  # contour
    (17, 22, False),  # brows
    (22, 27, False),
    (27, 31, False),  # nose
    (31, 36, False),
    (36, 42, True),  # eyes
    (42, 48, True),
    (48, 60, True),  # lips
    (60, 68, True),
)


def stroke_coverage(starts: np.ndarray, ends: np.ndarray, width_px: float, height: int, width: int) -> np.ndarray:
    """How far each pixel is covered by the strokes together, [height, width] f32 in 0..1.

    Args:
        starts, ends: [S, 2] pixels; segments with an end that is not finite are left out.
        width_px: of the strokes, above 0.
    """
    if starts.shape != ends.shape or starts.ndim != 2 or starts.shape[1] != 2:
        raise ValueError(f"starts and ends must be [S, 2], got {list(starts.shape)} and {list(ends.shape)}")
    if not width_px > 0:
        raise ValueError(f"width_px must be above 0, got {width_px}")
    coverage = np.zeros(height * width, dtype=np.float32)
    starts, ends = _near(starts.astype(np.float64), ends.astype(np.float64), width_px, height, width)
    along = ends - starts
    length = np.linalg.norm(along, axis=1)
    num_pieces = np.maximum(np.ceil(length / PIECE_PX), 1).astype(np.int64)
    owner = np.repeat(np.arange(len(starts)), num_pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    middle = starts[owner] + along[owner] * ((number + 0.5) / num_pieces[owner])[:, None]

    reach = math.ceil(PIECE_PX / 2 + width_px / 2 + 1)
    steps = np.arange(-reach, reach + 1)
    column = np.rint(middle[:, :1]).astype(np.int64) + np.tile(steps, len(steps))
    row = np.rint(middle[:, 1:]).astype(np.int64) + np.repeat(steps, len(steps))
    x, y = column - starts[owner, :1], row - starts[owner, 1:]
    dx, dy = along[owner].T[..., None]
    share = np.clip((x * dx + y * dy) / np.maximum(length[owner, None] ** 2, 1e-12), 0, 1)
    covered = np.clip(width_px / 2 + 0.5 - np.hypot(x - share * dx, y - share * dy), 0, 1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (covered > 0)
    np.maximum.at(coverage, (row * width + column)[inside], covered[inside].astype(np.float32))
    return coverage.reshape(height, width)


def _near(
    starts: np.ndarray, ends: np.ndarray, width_px: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The finite segments whose bounding box comes near the picture."""
    low, high = np.minimum(starts, ends) - width_px, np.maximum(starts, ends) + width_px
    kept = np.isfinite(low + high).all(1) & (high >= 0).all(1) & (low <= (width, height)).all(1)
    return starts[kept], ends[kept]


def blend(picture: np.ndarray, coverage: np.ndarray, colour: Colour, opacity: float = 1.0) -> None:
    """Lay ``colour`` (RGB in 0..1) over ``picture`` where ``coverage`` [H, W] says."""
    share = (opacity * coverage)[..., None].astype(np.float32)
    picture += share * (np.asarray(colour, dtype=np.float32) - picture)


def draw_dots(picture: np.ndarray, points: np.ndarray, colour: Colour, diameter_px: float = 3.0) -> None:
    """Round dots at ``points`` [n, 2]; those that are not finite are left out."""
    blend(picture, stroke_coverage(points, points, diameter_px, *picture.shape[:2]), colour)


def draw_line(picture: np.ndarray, points: np.ndarray, colour: Colour, width_px: float = 1.5) -> None:
    """A line through ``points`` [n, 2]; it has a gap at those that are not finite."""
    blend(picture, stroke_coverage(points[:-1], points[1:], width_px, *picture.shape[:2]), colour)


def draw_landmarks(
    picture: np.ndarray, points: np.ndarray, colour: Colour, *, diameter_px: float = 3.0, width_px: float = 1.0
) -> None:
    """The 68 iBUG landmarks ``points`` [68, 2]: thin half-transparent lines along the features, and a dot on each."""
    starts, ends = landmark_segments(points)
    blend(picture, stroke_coverage(starts, ends, width_px, *picture.shape[:2]), colour, opacity=0.6)
    draw_dots(picture, points, colour, diameter_px)


def landmark_lines() -> list[list[int]]:
    """The landmarks of each feature in order; those of a closed feature end with its first."""
    return [[*range(first, stop), *([first] if closed else [])] for first, stop, closed in LANDMARK_LINES]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image from f32 in 0..1 to u8 in 0..255."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def landmark_segments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends, both [63, 2], of the lines that join the landmarks ``points`` [68, 2]."""
    if points.shape != (68, 2):
        raise ValueError(f"points must be [68, 2], got {list(points.shape)}")
    pairs = []
    for first, stop, closed in LANDMARK_LINES:
        pairs += [(index, index + 1) for index in range(first, stop - 1)]
        pairs += [(stop - 1, first)] if closed else []
    start, end = np.array(pairs).T
    return points[start], points[end]


def wireframe_coverage(
    points: np.ndarray, depth: np.ndarray, triangles: np.ndarray, height: int, width: int
) -> np.ndarray:
    """How far each pixel is covered by a mesh's wires, [height, width] f32 in 0..1, hidden ones left out.

    The painter's algorithm: triangles from the farthest to the nearest, each wiping out what lies behind it before its
    three edges are drawn.

    Args:
        points: [V, 2] pixels.
        depth: [V] distance from the camera.
        triangles: [F, 3], counter-clockwise as seen (with y up); others are left out, and those not finite.
    """
    corners = points[triangles].astype(np.float64)  # [F, 3, 2]
    (x0, y0), (x1, y1), (x2, y2) = np.moveaxis(corners, 0, -1)
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    low, high = corners.min(1), corners.max(1)
    shown = (area < 0) & (high >= -1).all(1) & (low <= (width, height)).all(1)  # y points down; nan is false
    corners, order = corners[shown], np.argsort(-depth[triangles[shown]].mean(1), kind="stable")
    fine = (corners[order].reshape(-1, 6) + 0.5) * WIRE_FINENESS - 0.5
    layer = Image.new("L", (WIRE_FINENESS * width, WIRE_FINENESS * height))
    draw = ImageDraw.Draw(layer)
    for triangle in fine.tolist():
        draw.polygon(triangle, fill=0, outline=255)
    drawn = np.asarray(layer, dtype=np.float32) / 255
    return drawn.reshape(height, WIRE_FINENESS, width, WIRE_FINENESS).mean(axis=(1, 3))
