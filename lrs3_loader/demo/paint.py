"""The colours of a demo speaker, and the textures painted from them.

A texture is painted in decimetres on the skin of the resting head, so that it moves with the face. All random numbers
come from the speaker's generator. Textures are [rows, columns, 3] f32 RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from lrs3_loader.demo import shape
from lrs3_loader.demo.shape import bump, smoothstep

SKIN_SIZE = (640, 768)  # rows, columns
EYE_SIZE = (128, 224)


@dataclass(frozen=True)
class Look:
    """Appearance of one speaker."""

    skin: np.ndarray  # colours are [3] f64 RGB in 0..1
    hair: np.ndarray
    iris: np.ndarray
    cloth: np.ndarray
    wall: tuple[np.ndarray, np.ndarray]  # of the background, top and bottom
    lips: float  # how much redder than the skin, 0..1
    hair_volume: float  # dm
    hairline: float  # dm above the usual one
    long_hair: bool
    beard: float  # 0..1
    brow_weight: float  # thickness, 1 is usual


# Skin, hair, iris, cloth and wall; speaker number n takes row n modulo 5.
_COLOURS = np.array(
    [
        [(0.90, 0.71, 0.60), (0.25, 0.16, 0.10), (0.30, 0.44, 0.50), (0.20, 0.29, 0.42), (0.72, 0.76, 0.79)],
        [(0.55, 0.37, 0.27), (0.06, 0.05, 0.05), (0.20, 0.11, 0.06), (0.72, 0.66, 0.55), (0.55, 0.62, 0.66)],
        [(0.80, 0.60, 0.45), (0.10, 0.07, 0.06), (0.24, 0.14, 0.08), (0.42, 0.17, 0.19), (0.78, 0.74, 0.67)],
        [(0.69, 0.48, 0.35), (0.14, 0.09, 0.07), (0.30, 0.24, 0.12), (0.20, 0.34, 0.29), (0.48, 0.50, 0.56)],
        [(0.93, 0.76, 0.67), (0.62, 0.45, 0.24), (0.34, 0.46, 0.36), (0.30, 0.30, 0.34), (0.66, 0.72, 0.66)],
    ]
)


def make_look(number: int, generator: np.random.Generator) -> Look:
    """Draw the look of speaker ``number``: neighbours differ in colouring, hair and beard."""
    kind = number % 4
    wall, skin, hair, iris, cloth = (
        np.clip(_COLOURS[number % 5, column] + generator.normal(0.0, spread, 3), 0.02, 0.98)
        for column, spread in ((4, 0.02), (0, 0.008), (1, 0.01), (2, 0.02), (3, 0.03))
    )
    return Look(
        skin=skin,
        hair=hair,
        iris=iris,
        cloth=cloth,
        wall=(wall, 0.62 * wall),
        lips=(0.75, 0.45, 0.9, 0.4)[kind],
        hair_volume=(0.10, 0.05, 0.13, 0.08)[kind] + float(generator.uniform(-0.015, 0.015)),
        hairline=(0.0, 0.06, -0.03, 0.03)[kind],
        long_hair=kind in (0, 2),
        beard=(0.0, 0.55, 0.0, 0.25)[kind],
        brow_weight=(0.8, 1.25, 0.85, 1.1)[kind],
    )


def hair_edge(longitude: np.ndarray, hairline: float) -> np.ndarray:
    """Return the level above which hair grows, in dm."""
    away = np.abs(np.rad2deg(longitude))
    degrees = [0, 20, 40, 55, 68, 80, 95, 110, 130, 180]
    levels = [0.90, 0.90, 0.83, 0.66, 0.44, 0.20, 0.14, 0.06, -0.25, -0.4]
    return np.interp(away, degrees, levels) + hairline * smoothstep((75 - away) / 30)


def _noise(generator: np.random.Generator, size: tuple[int, int], sigma: float | tuple[float, float]) -> np.ndarray:
    """Smooth noise of unit deviation, ``sigma`` texels wide."""
    smooth = gaussian_filter(generator.standard_normal(size), sigma, mode="wrap")
    return smooth / smooth.std()


def paint_skin(look: Look, generator: np.random.Generator) -> np.ndarray:
    """Paint the skin; its layout is ``HeadMesh.uv``."""
    rows, columns = SKIN_SIZE
    u, v = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    longitude = np.broadcast_to(2 * np.arcsin(2 * u - 1), SKIN_SIZE)
    y = np.broadcast_to((1.40 - 2.52 * v)[:, None], SKIN_SIZE)
    x = shape.half_width(np.minimum(y, 1.36)) * np.sin(longitude)
    front = smoothstep((np.cos(longitude) - 0.05) / 0.3)

    colour = look.skin * np.ones((*SKIN_SIZE, 1))
    mottle = 0.018 * _noise(generator, SKIN_SIZE, 14) + 0.012 * _noise(generator, SKIN_SIZE, 1.5)
    colour = colour * (1.0 + mottle[..., None])
    colour = _blush(colour, x, y, front)
    colour = colour * _shade(x, y, front)[..., None]
    if look.beard > 0:
        colour = _blend(colour, look.hair, look.beard * _beard(x, y, longitude, generator))
    colour = _lips(colour, x, y, front, look)
    colour = _eyelids(colour, longitude, y, look)
    colour = _blend(colour, look.hair, _brows(x, y, front, look, generator))
    edge = hair_edge(longitude, look.hairline) + 0.02 * _noise(generator, SKIN_SIZE, (6, 2))
    colour = _blend(colour, 0.7 * look.hair, smoothstep((y - edge + 0.02) / 0.05))
    return np.clip(colour, 0.0, 1.0).astype(np.float32)


def _blend(colour: np.ndarray, other: ArrayLike, amount: np.ndarray) -> np.ndarray:
    amount = np.clip(amount, 0.0, 1.0)[..., None]
    return colour * (1.0 - amount) + np.asarray(other) * amount


def _blush(colour: np.ndarray, x: np.ndarray, y: np.ndarray, front: np.ndarray) -> np.ndarray:
    ax = np.abs(x)
    warm = 0.9 * bump(ax - 0.36, 0.13) * bump(y + 0.06, 0.12) + 0.7 * bump(x, 0.09) * bump(y + 0.12, 0.08)
    warm = warm + 0.4 * bump(x, 0.14) * bump(y + 0.76, 0.10)
    return colour * (1.0 + front[..., None] * warm[..., None] * np.array([0.03, -0.07, -0.06]))


def _shade(x: np.ndarray, y: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Occlusion, as a factor of the light."""
    ax = np.abs(x)
    nostril = 0.55 * np.exp(-((((ax - 0.068) / 0.036) ** 2 + ((y + 0.207) / 0.017) ** 2) ** 2))
    under_nose = 0.10 * bump(x, 0.12) * bump(y + 0.232, 0.022) + 0.16 * bump(ax - 0.185, 0.018) * bump(y + 0.155, 0.045)
    bridge = 0.10 * bump(ax - 0.125, 0.035) * bump(y - 0.13, 0.12) + 0.16 * bump(ax - 0.14, 0.05) * bump(y - 0.29, 0.06)
    socket = 0.10 * bump(ax - 0.30, 0.13) * bump(y - 0.33, 0.035) + 0.07 * bump(ax - 0.29, 0.12) * bump(y - 0.15, 0.03)
    lip = 0.16 * bump(x, 0.13) * bump(y + 0.575, 0.028) + 0.12 * bump(ax - 0.265, 0.03) * bump(y + 0.445, 0.04)
    fold = 0.09 * bump(ax - 0.215 - 0.30 * (-0.18 - y), 0.022) * bump(y + 0.27, 0.09)
    philtrum = 0.05 * bump(x, 0.02) * bump(y + 0.30, 0.04)
    chin = 0.30 * smoothstep((-0.90 - y) / 0.12)
    return 1.0 - front * (nostril + under_nose + bridge + socket + lip + fold + philtrum) - chin


def _lips(colour: np.ndarray, x: np.ndarray, y: np.ndarray, front: np.ndarray, look: Look) -> np.ndarray:
    upper, lower = shape.lip_thickness(x)
    off = y - shape.MOUTH_LEVEL
    corner = np.sin(shape.MOUTH_CORNER) * float(shape.half_width(np.array(shape.MOUTH_LEVEL)))
    inside = np.where(np.abs(x) < corner, np.where(off >= 0, upper - off, lower + off), -1.0)
    red = smoothstep((inside + 0.006) / 0.014) * front * (np.abs(off) < 0.15)
    tone = look.skin * np.array([0.92, 0.62, 0.62]) * (1 - 0.5 * look.lips)
    tone = tone + 0.5 * look.lips * np.array([0.72, 0.30, 0.32]) * (0.45 + 0.55 * look.skin[0])
    tone = tone * np.where(off >= 0, 0.86, 1.0)[..., None]
    colour = _blend(colour, tone, 0.9 * red)
    line = np.exp(-((off / 0.009) ** 2)) * (np.abs(x) < corner + 0.01) * front
    return colour * (1.0 - 0.5 * line[..., None])


def _eyelids(colour: np.ndarray, longitude: np.ndarray, y: np.ndarray, look: Look) -> np.ndarray:
    """Lashes along the rims of the lids, and the crease above the upper one."""
    inner, outer = shape.EYE_CORNERS
    t = (np.abs(longitude) - inner) / (outer - inner)
    along = smoothstep((t + 0.03) / 0.12) * smoothstep((1.08 - t) / 0.1)
    off = y - shape.EYE_LEVEL
    dark = np.minimum(0.35 * look.hair, 0.12)
    upper = np.where(off >= 0, np.exp(-((off / (0.008 + 0.008 * np.clip(t, 0, 1))) ** 2)), 0.0)
    lower = np.where(off < 0, 0.45 * np.exp(-((off / 0.008) ** 2)), 0.0)
    colour = _blend(colour, dark, along * (0.92 * upper + lower))
    crease = 0.30 * along * np.exp(-(((off - 0.052) / 0.010) ** 2))
    return colour * (1.0 - crease[..., None])


def _brows(x: np.ndarray, y: np.ndarray, front: np.ndarray, look: Look, generator: np.random.Generator) -> np.ndarray:
    ax = np.abs(x)
    middle = np.interp(ax, [0.08, 0.20, 0.30, 0.41, 0.54], [0.40, 0.435, 0.452, 0.445, 0.40])
    thick = look.brow_weight * np.interp(ax, [0.06, 0.14, 0.30, 0.56], [0.026, 0.036, 0.030, 0.010])
    body = smoothstep((thick - np.abs(y - middle)) / 0.016)
    ends = smoothstep((ax - 0.075) / 0.04) * smoothstep((0.565 - ax) / 0.06)
    hairs = 0.80 + 0.16 * _noise(generator, SKIN_SIZE, (2.5, 1.0))
    return body * ends * hairs * front


def _beard(x: np.ndarray, y: np.ndarray, longitude: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    ax, away = np.abs(x), np.abs(longitude)
    line = np.interp(away, [0.0, 0.35, 0.6, 1.0, 1.35, 1.6], [-0.64, -0.62, -0.50, -0.34, 0.02, 0.20])
    jaw = smoothstep((line - y) / 0.16) * smoothstep((1.62 - away) / 0.15)
    lip = smoothstep((0.33 - ax) / 0.10) * smoothstep((-0.245 - y) / 0.05) * smoothstep((y + 0.40) / 0.05)
    sides = bump(ax - 0.30, 0.06) * smoothstep((-0.36 - y) / 0.1) * 0.8
    bare = 0.6 * bump(x, 0.06) * bump(y + 0.585, 0.03)
    grain = 0.85 + 0.22 * _noise(generator, SKIN_SIZE, 0.9)
    return np.maximum(np.maximum(jaw, sides), 0.5 * lip) * grain * (1.0 - bare)


def paint_eye(look: Look, generator: np.random.Generator) -> np.ndarray:
    """Paint the eyeball, a sheet of 0.38 x 0.20 dm around the centre of the eye."""
    rows, columns = EYE_SIZE
    x = (((np.arange(columns) + 0.5) / columns - 0.5) * 0.38)[None, :]
    y = ((0.5 - (np.arange(rows) + 0.5) / rows) * 0.20)[:, None]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    white = (
        np.array([0.90, 0.885, 0.87])
        * (1.0 - 0.35 * smoothstep((y - 0.005) / 0.07) - 0.9 * np.maximum(np.abs(x) - 0.07, 0))[..., None]
    )
    pink = smoothstep((np.abs(x) - 0.115) / 0.03) * np.ones(EYE_SIZE)
    colour = _blend(white, (0.72, 0.45, 0.42), 0.8 * pink)
    spokes = 1.0 + 0.16 * np.sin(angle * 23 + 3 * _noise(generator, EYE_SIZE, 6)) * smoothstep((radius - 0.02) / 0.02)
    light = 0.85 + 0.45 * bump(y + 0.03, 0.03) - 0.35 * smoothstep((y - 0.01) / 0.05)
    iris = look.iris * (spokes * light)[..., None]
    colour = colour + (iris - colour) * smoothstep((0.056 - radius) / 0.005)[..., None]
    ring = np.exp(-(((radius - 0.054) / 0.006) ** 2))
    colour = colour * (1.0 - 0.6 * ring[..., None])
    colour = _blend(colour, (0.02, 0.02, 0.02), smoothstep((0.025 - radius) / 0.005))
    glint = np.exp(-(((x + 0.022) / 0.011) ** 2 + ((y - 0.020) / 0.010) ** 2))
    return np.clip(_blend(colour, (1.0, 1.0, 1.0), 0.95 * glint), 0, 1).astype(np.float32)


def paint_mouth() -> np.ndarray:
    """Paint the inside of the mouth: dark, with a tongue below."""
    y, x = np.mgrid[0:64, 0:64] / 63.0
    tongue = smoothstep((y - 0.52) / 0.2) * smoothstep((0.36 - np.abs(x - 0.5)) / 0.12)
    base = np.array([0.10, 0.03, 0.03]) * np.ones((64, 64, 1))
    return _blend(base, (0.42, 0.17, 0.16), tongue).astype(np.float32)


def paint_teeth() -> np.ndarray:
    """Paint a row of teeth."""
    x = np.tile(np.linspace(0.0, 1.0, 128), (32, 1))
    gap = np.exp(-((np.sin(np.pi * (x * 8)) / 0.16) ** 2))
    away = smoothstep((np.abs(x - 0.5) - 0.1) / 0.4)
    return (np.array([0.86, 0.83, 0.77]) * ((1 - 0.22 * gap) * (1 - 0.6 * away))[..., None]).astype(np.float32)


def paint_hair(look: Look, generator: np.random.Generator) -> np.ndarray:
    """Paint strands of hair that run down the texture."""
    size = (128, 512)
    strands = 0.16 * _noise(generator, size, (30, 0.8)) + 0.10 * _noise(generator, size, (40, 5))
    return np.clip(look.hair * (1.12 + strands)[..., None], 0, 1).astype(np.float32)
