"""Draws on images: landmarks, lines, wireframes and text, all with smooth edges.

An image is [H, W, 3] f32, RGB in 0..1, and is drawn on in place. Points are (x, y) pixels, whole at pixel centres,
y down: (0, 0) is the middle of the top left pixel. torchvision and Pillow draw without smooth edges and at whole
pixels, so shapes are drawn ``SUPERSAMPLING`` times as large and averaged down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import avg_pool2d
from torchvision.utils import draw_keypoints

Colour = tuple[float, float, float]

SUPERSAMPLING = 3
WIRE_SUPERSAMPLING = 2  # a wire is one pixel wide in the larger drawing
FONT_PX = 13
LINE_PX = 14  # from one line of text to the next
TEXT_SHADE = 0.5  # factor on what lies below text

#: The iBUG-68 landmarks of each feature in order; those of a closed feature end with its first.
LANDMARK_LINES = (
    [*range(17)],  # contour
    [*range(17, 22)],  # brows
    [*range(22, 27)],
    [*range(27, 31)],  # nose
    [*range(31, 36)],
    [*range(36, 42), 36],  # eyes
    [*range(42, 48), 42],
    [*range(48, 60), 48],  # lips
    [*range(60, 68), 60],
)


def draw_dots(image: np.ndarray, points: np.ndarray, colour: Colour, diameter_px: float = 3.0) -> None:
    """Draw round dots at ``points`` [n, 2]; those that are not finite are left out."""
    _draw(image, points, colour, diameter_px=diameter_px)


def draw_line(image: np.ndarray, points: np.ndarray, colour: Colour, width_px: float = 1.5) -> None:
    """Draw a line through ``points`` [n, 2]; it has a gap at those that are not finite."""
    _draw(image, points, colour, [range(len(points))], width_px=width_px)


def draw_landmarks(
    image: np.ndarray, points: np.ndarray, colour: Colour, *, diameter_px: float = 3.0, width_px: float = 1.0
) -> None:
    """Draw the 68 iBUG landmarks ``points`` [68, 2]: half-transparent lines along the features, and a dot on each."""
    if points.shape != (68, 2):
        raise ValueError(f"points must be [68, 2], got {list(points.shape)}")
    _draw(image, points, colour, LANDMARK_LINES, width_px=width_px, opacity=0.6)
    _draw(image, points, colour, diameter_px=diameter_px)


def _draw(
    image: np.ndarray,
    points: np.ndarray,
    colour: Colour,
    lines: Sequence[Sequence[int]] = (),
    *,
    diameter_px: float = 0.0,
    width_px: float = 0.0,
    opacity: float = 1.0,
) -> None:
    """Draw dots at ``points``, or ``lines`` between those of the given numbers."""
    height, width = image.shape[:2]
    fine = (torch.from_numpy(np.asarray(points, dtype=np.float64)) + 0.5) * SUPERSAMPLING - 0.5
    drawn = draw_keypoints(
        torch.zeros(3, SUPERSAMPLING * height, SUPERSAMPLING * width, dtype=torch.uint8),
        fine.nan_to_num().round()[None],
        connectivity=[pair for line in lines for pair in pairwise(line)],
        colors="white",
        radius=max(1, round(SUPERSAMPLING * diameter_px / 2)) if diameter_px else 0,
        width=max(1, round(SUPERSAMPLING * width_px)),
        visibility=torch.isfinite(fine).all(dim=1)[None],
    )
    blend(image, avg_pool2d(drawn[:1] / 255, SUPERSAMPLING)[0].numpy(), colour, opacity)


def blend(image: np.ndarray, coverage: np.ndarray, colour: Colour, opacity: float = 1.0) -> None:
    """Lay ``colour`` over ``image`` where ``coverage`` [H, W], the share of each pixel in 0..1, says."""
    share = (opacity * coverage)[..., None].astype(np.float32)
    image += share * (np.asarray(colour, dtype=np.float32) - image)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image from f32 in 0..1 to u8 in 0..255."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def wireframe_coverage(points: np.ndarray, depth: np.ndarray, triangles: np.ndarray, size: int) -> np.ndarray:
    """Share of each pixel that the visible wires of a mesh cover, [size, size] f32 in 0..1.

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
    shown = (area < 0) & (corners.max(1) >= -1).all(1) & (corners.min(1) <= size).all(1)  # y is down; nan is false
    order = np.argsort(-depth[triangles[shown]].mean(1), kind="stable")
    fine = (corners[shown][order].reshape(-1, 6) + 0.5) * WIRE_SUPERSAMPLING - 0.5
    layer = Image.new("L", (WIRE_SUPERSAMPLING * size, WIRE_SUPERSAMPLING * size))
    draw = ImageDraw.Draw(layer)
    for triangle in fine.tolist():
        draw.polygon(triangle, fill=0, outline=255)
    return np.asarray(layer.reduce(WIRE_SUPERSAMPLING), dtype=np.float32) / 255


def text_width(text: str) -> int:
    """Pixels that a line drawn by ``draw_text`` takes."""
    return math.ceil(_font().getlength(text)) + 4


def draw_text(image: np.ndarray, corner: tuple[int, int], text: str, colour: Colour) -> None:
    """Write one line with its top left at ``corner`` (x, y), over a darker ground; what does not fit is cut."""
    x, y = corner
    mask = _text_mask(text)
    target = image[y : y + mask.shape[0], x : x + mask.shape[1]]
    target *= TEXT_SHADE
    blend(target, mask[: target.shape[0], : target.shape[1]], colour)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)


@lru_cache(maxsize=256)
def _text_mask(text: str) -> np.ndarray:
    """Share of each pixel that the line covers, [h, w] f32 in 0..1."""
    layer = Image.new("L", (text_width(text), LINE_PX))
    ImageDraw.Draw(layer).text((2, -1), text, fill=255, font=_font())
    return np.asarray(layer, dtype=np.float32) / 255
