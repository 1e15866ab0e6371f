"""A small z-buffered triangle rasteriser in numpy: no GPU, no graphics library, the same image every time.

Triangles are cut into horizontal spans, spans into pixels, all at once with ``np.repeat``: the cost is proportional to
the pixels covered, not to bounding boxes. Values are interpolated linearly in the image, without the perspective
correction that large triangles close to the camera would need.

Pixel convention: pixel (i, j) covers [j, j + 1) x [i, i + 1); a triangle owns the pixels whose centre lies in it.
"""

from __future__ import annotations

import numpy as np

_F32 = np.float32


def rasterize(
    points: np.ndarray, depth: np.ndarray, values: np.ndarray, triangles: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw triangles, and interpolate vertex values at each pixel that they cover.

    Args:
        points: [V, 2] f32, x to the right and y down, in pixels.
        depth: [V] f32, distance from the camera; the nearest surface is seen.
        values: [V, A] f32, what to interpolate.
        triangles: [F, 3], counter-clockwise as seen in the image (with y up); others are culled.

    Returns:
        pixel [P] (row * width + column, ascending, each at most once) and the values there [P, A] f32.
    """
    triangles, row, left, length, weights, slopes = _spans(points, triangles, height, width)
    start, slope = (array[:, 0] for array in _along(depth[:, None], triangles, weights, slopes))
    span, offset = _ranges(length)  # one entry per fragment
    pixel = (row * width + left)[span] + offset
    shown = _nearest(pixel, start[span] + slope[span] * offset.astype(_F32), height * width)
    pixel, span, offset = pixel[shown], span[shown], offset[shown].astype(_F32)

    used = np.zeros(len(row), dtype=bool)
    used[span] = True
    renumbered = np.cumsum(used) - 1  # hidden runs need no values
    start, slope = _along(values, triangles[used], weights[:, used], slopes[:, used])
    span = renumbered[span]
    return pixel, start[span] + slope[span] * offset[:, None]


def _spans(points: np.ndarray, triangles: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Cut the visible triangles into S runs of pixels.

    Returns for each: its triangle's corners [S, 3], row, first column, number of pixels, and the barycentric weights
    [2, S] of the second and third corner at its first pixel, with their growth from pixel to pixel [2, S].
    """
    (x0, x1, x2), (y0, y1, y2) = (points[:, axis][triangles.T] for axis in (0, 1))
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    low, high = np.minimum(np.minimum(y0, y1), y2), np.maximum(np.maximum(y0, y1), y2)
    top = np.ceil(np.clip(low, 0, height) - _F32(0.5)).astype(np.int64)
    bottom = np.minimum(np.floor(np.clip(high, -1, height) - _F32(0.5)).astype(np.int64), height - 1)
    facing = np.flatnonzero((area < -1e-6) & (bottom >= top))  # y points down: counter-clockwise is negative
    owner, offset = _ranges((bottom - top + 1)[facing])
    owner, row = facing[owner], top[facing][owner] + offset

    # Weight i of a point is slope_i x + value_i, with x and y counted from the first corner (small numbers keep
    # float32 exact enough); the run is where all three are at least 0.
    y = (row + 0.5).astype(_F32) - y0[owner]
    scale = 1.0 / area[owner]
    slope1, slope2 = (y2 - y0)[owner] * scale, (y0 - y1)[owner] * scale
    value1, value2 = (x0 - x2)[owner] * scale * y, (x1 - x0)[owner] * scale * y
    first, last = np.full(len(y), -np.inf, dtype=_F32), np.full(len(y), np.inf, dtype=_F32)
    for slope, value in ((slope1, value1), (slope2, value2), (-(slope1 + slope2), 1.0 - value1 - value2)):
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = -value / slope
        first = np.where(slope > 0, np.maximum(first, crossing), first)
        last = np.where(slope < 0, np.minimum(last, crossing), last)
    left = np.ceil(np.clip(first + x0[owner], 0, width) - _F32(0.5)).astype(np.int64)
    right = np.minimum(np.floor(np.clip(last + x0[owner], -1, width) - _F32(0.5)).astype(np.int64), width - 1)

    kept = np.flatnonzero(right >= left)
    owner, left = owner[kept], left[kept]
    x = (left + 0.5).astype(_F32) - x0[owner]
    slopes = np.stack([slope1[kept], slope2[kept]])
    weights = np.stack([value1[kept], value2[kept]]) + slopes * x
    return triangles[owner], row[kept], left, right[kept] - left + 1, weights, slopes


def _along(
    values: np.ndarray, triangles: np.ndarray, weights: np.ndarray, slopes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertex values [V, A] at the first pixel of each run, and their growth from pixel to pixel; both [S, A]."""
    origin = values[triangles[:, 0]]
    second, third = values[triangles[:, 1]] - origin, values[triangles[:, 2]] - origin
    start = origin + weights[0, :, None] * second + weights[1, :, None] * third
    return start, slopes[0, :, None] * second + slopes[1, :, None] * third


def _ranges(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For lengths [n] above 0, entry numbers ``0 0 0 1 1 ...`` and the count ``0 1 2 0 1 ...`` within each."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]


def _nearest(pixel: np.ndarray, z: np.ndarray, num_pixels: int) -> np.ndarray:
    """Return the indices of the visible fragments: the nearest of each pixel, the last of equally near ones."""
    nearest = np.full(num_pixels, np.inf, dtype=_F32)
    np.minimum.at(nearest, pixel, z)
    seen = np.full(num_pixels, -1, dtype=np.int64)
    front = np.flatnonzero(z <= nearest[pixel])
    seen[pixel[front]] = front
    return seen[seen >= 0]
