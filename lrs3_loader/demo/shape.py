"""The demo head as a surface: a function from places on the skin and named amounts to points in space.

The head is an upright body, each level two half ellipses of its own width and depth, to which nose, sockets, lids and
lips are added as smooth bumps. At lids and lips the skin is cut along a line, and each side of the cut moves on its
own. The design is our own; the proportions follow common face measurements.

Units are decimetres; x to the image's right (the subject's left), y up, z towards the camera. An amount is 1 for one
standard deviation of an identity mode, or for the full strength of an expression.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

EYE_LEVEL, NOSE_LEVEL, MOUTH_LEVEL, CHIN_LEVEL = 0.25, -0.22, -0.44, -0.88
EYE_CORNERS = (np.deg2rad(13.0), np.deg2rad(37.5))  # longitudes of inner and outer corner
MOUTH_CORNER = np.deg2rad(24.0)
EYE_CENTRE_X, EYE_RADIUS = 0.305, 0.125
DEPTH_SHIFT = 0.55  # z of the ear plane is minus this: puts the origin a little behind the face

_CROWN, _CROWN_HEIGHT = 0.50, 0.87  # the skull closes as an ellipse above this level
_HINGE_Y, _HINGE_Z, _JAW_ANGLE = 0.0, 0.05, np.deg2rad(15.0)

_WIDTH = PchipInterpolator(
    [-1.10, -1.00, -0.88, -0.66, -0.44, -0.22, 0.0, 0.25, 0.50, 1.40],
    [0.10, 0.30, 0.455, 0.555, 0.615, 0.655, 0.69, 0.72, 0.745, 0.76],
)
_FRONT = PchipInterpolator(
    [-1.10, -1.00, -0.93, -0.86, -0.76, -0.63, -0.53, -0.44, -0.34, -0.22, 0.0, 0.26, 0.46, 0.62, 0.90, 1.40],
    [0.15, 0.45, 0.70, 0.85, 0.935, 0.905, 0.935, 0.945, 0.955, 0.935, 0.915, 0.90, 0.945, 0.955, 0.95, 0.95],
)
_BACK = PchipInterpolator([-1.10, -0.60, 0.0, 0.50, 1.40], [0.15, 0.45, 0.80, 0.98, 0.98])
_NOSE_HEIGHT = PchipInterpolator(
    [-1.20, -0.27, -0.235, -0.20, -0.165, -0.125, -0.06, 0.03, 0.13, 0.22, 0.31, 0.42, 0.60, 1.40],
    [0.0, 0.0, 0.035, 0.12, 0.20, 0.235, 0.215, 0.165, 0.115, 0.07, 0.035, 0.01, 0.0, 0.0],
)
_NOSE_WIDTH = PchipInterpolator([-1.20, -0.2, -0.12, 0.0, 0.2, 1.40], [0.10, 0.10, 0.088, 0.072, 0.058, 0.058])


@dataclass(frozen=True)
class Places:
    """n places on the skin."""

    longitude: np.ndarray  # [n] radians, 0 = front, positive for positive x
    level: np.ndarray  # [n] dm: y before any movement
    over_eye: np.ndarray  # [n] bool: belongs to the upper side of the lids' cut
    over_mouth: np.ndarray  # [n] bool: belongs to the upper side of the lips' cut
    inward: np.ndarray  # [n] dm behind the rim of a cut; 0 on the skin itself


def smoothstep(t: np.ndarray) -> np.ndarray:
    """Return ``3 t^2 - 2 t^3``, with t clipped to 0..1."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bump(offset: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Return ``exp(-offset^2 / 2 width^2)``."""
    return np.exp(-0.5 * (offset / width) ** 2)


def half_width(level: np.ndarray) -> np.ndarray:
    """Return half the breadth of the head at a level, in dm."""
    return _WIDTH(level) * _crown(level)


def longitude_of(x: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return the longitude at which the resting head has this x."""
    return np.arcsin(np.clip(x / half_width(level), -1.0, 1.0))


def lip_thickness(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the red of the upper and lower lip reach from the mouth line, in dm; 0 beyond its corners."""
    corner = np.sin(MOUTH_CORNER) * float(half_width(np.array(MOUTH_LEVEL)))
    t = np.clip(np.abs(x) / corner, 0.0, 1.0)
    arch = np.sqrt(np.clip(1.0 - t * t, 0.0, None))
    upper = 0.072 * arch**1.2 * (1.0 + 0.28 * bump(np.abs(x) - 0.055, 0.03) - 0.05 * bump(x, 0.02))
    return upper, 0.088 * arch


def surface(places: Places, amounts: Mapping[str, float]) -> np.ndarray:
    """Return the points [n, 3] of the skin for the named amounts; absent names are 0."""
    get = defaultdict(float, amounts)
    x0, y0 = half_width(places.level) * np.sin(places.longitude), places.level
    dx, dy, dz = _expression(places, x0, get)
    lids, blink = _lids(places, get)
    dy = dy + lids + blink
    dx, dy = dx + _identity_dx(x0, y0, get), dy + _identity_dy(x0, y0, get)

    cos = np.maximum(np.cos(places.longitude), 0.3)
    longitude = places.longitude + np.where(
        np.abs(places.longitude) < 1.2, dx / (np.maximum(half_width(y0), 0.05) * cos), 0.0
    )
    points = body(longitude, y0 + dy, places.level, get)
    points[:, 2] += _details(x0, y0, places, get) + dz
    points = _wrap_lids(points, places, get)
    rolled = 0.5 * places.inward * (np.abs(places.level - MOUTH_LEVEL) < 1e-9)
    points[:, 1] += np.where(places.over_mouth, rolled, -rolled)  # lips curl in around their rims
    points[:, 2] -= places.inward
    points = rotate_jaw(points, _jaw_weight(places) * get["jaw_open"])
    return proportioned(points, get)


def _crown(level: np.ndarray) -> np.ndarray:
    rise = np.clip((level - _CROWN) / _CROWN_HEIGHT, 0.0, 1.0)
    return np.sqrt(1.0 - rise**2)


def body(longitude: np.ndarray, y: np.ndarray, level: np.ndarray, amounts: Mapping[str, float]) -> np.ndarray:
    """Return points [n, 3] of the head without features; the levels of the jaw rise towards the ears."""
    get = defaultdict(float, amounts)
    crown = _crown(y)
    jaw = smoothstep((0.1 - level) / 0.7)
    width = _WIDTH(y) * crown * (1.0 + 0.06 * get["jaw_width"] * jaw + 0.012 * get["cheek_fullness"] * jaw)
    cos, sin = np.cos(longitude), np.sin(longitude)
    depth = np.where(cos > 0, _FRONT(y), _BACK(y)) * crown
    rise = 0.34 * smoothstep((-0.25 - level) / 0.63) * (1.0 - np.maximum(cos, 0.0))
    return np.stack([width * sin, y + rise, depth * cos], axis=1)


def proportioned(points: np.ndarray, amounts: Mapping[str, float]) -> np.ndarray:
    """Apply the proportions of the whole head to points [n, 3] whose z counts from the ears, and shift z."""
    get = defaultdict(float, amounts)
    x, y, z = points.T
    low = smoothstep((0.1 - y) / 0.9)
    return np.stack(
        [
            x * (1.0 + 0.045 * get["face_width"]),
            y - 0.06 * get["face_length"] * low + 0.06 * get["skull_height"] * smoothstep((y - 0.4) / 0.9),
            z * (1.0 + 0.04 * get["face_depth"]) - DEPTH_SHIFT,
        ],
        axis=1,
    )


def _identity_dx(x: np.ndarray, y: np.ndarray, get: Mapping[str, float]) -> np.ndarray:
    side = np.tanh(x / 0.08)
    eyes = 0.022 * get["eye_distance"] * side * bump(np.abs(x) - 0.3, 0.16) * bump(y - 0.3, 0.16)
    mouth = 0.10 * get["mouth_width"] * x * bump(x, 0.3) * bump(y - MOUTH_LEVEL, 0.14)
    return eyes + mouth


def _identity_dy(x: np.ndarray, y: np.ndarray, get: Mapping[str, float]) -> np.ndarray:
    brow = 0.022 * get["brow_height"] * bump(y - 0.45, 0.07) * bump(np.abs(x) - 0.3, 0.22)
    nose = -0.028 * get["nose_length"] * bump(y + 0.17, 0.09) * bump(x, 0.16)
    upper, lower = lip_thickness(x)
    above, below = y - MOUTH_LEVEL, MOUTH_LEVEL - y
    lips = upper * smoothstep(above / 0.05) * smoothstep((0.22 - above) / 0.16) * (above > 0)
    lips = lips - lower * smoothstep(below / 0.05) * smoothstep((0.22 - below) / 0.16) * (below > 0)
    return brow + nose + 0.16 * get["lip_fullness"] * lips


def _details(x: np.ndarray, y: np.ndarray, places: Places, get: Mapping[str, float]) -> np.ndarray:
    """Depth, in dm, that nose, sockets, brows, lips, cheeks and chin add to the resting surface."""
    front = np.cos(places.longitude) > 0.1
    wide = 1.0 + 0.13 * get["nose_width"]
    across = np.exp(-((np.abs(x) / (_NOSE_WIDTH(y) * wide)) ** 2.4))
    nose = _NOSE_HEIGHT(y) * across * (1.0 + 0.13 * get["nose_size"])
    nose = nose + 0.03 * get["nose_bridge"] * bump(x, 0.05) * bump(y - 0.12, 0.12)
    nose = nose + 0.10 * bump(np.abs(x) - 0.125 * wide, 0.042) * bump(y + 0.165, 0.042)
    ax = np.abs(x)
    eyes = -0.065 * bump(ax - 0.30, 0.15) * bump(y - 0.25, 0.10) - 0.045 * bump(ax - 0.15, 0.05) * bump(y - 0.26, 0.07)
    brows = 0.025 * bump(ax - 0.27, 0.16) * bump(y - 0.42, 0.055)
    fullness = 1.0 + 0.16 * get["lip_fullness"]
    upper, lower = (fullness * thickness for thickness in lip_thickness(x))
    above, below = y - MOUTH_LEVEL, MOUTH_LEVEL - y
    bulge = np.where(places.over_mouth, above / np.maximum(upper, 1e-3), below / np.maximum(lower, 1e-3))
    size = np.where(places.over_mouth, upper * 0.62, lower * 0.62)
    lips = size * np.sin(np.pi * np.clip(0.22 + 0.62 * bulge, 0.0, 1.0)) - 0.5 * size
    lips = lips * (np.abs(y - MOUTH_LEVEL) < 0.2)
    philtrum = -0.012 * bump(x, 0.025) * bump(y + 0.3, 0.04) - 0.02 * bump(ax - 0.27, 0.05) * bump(y + 0.45, 0.06)
    chin = 0.05 * bump(x, 0.13) * bump(y + 0.76, 0.09) + 0.035 * get["chin"] * bump(x, 0.2) * bump(y + 0.8, 0.12)
    cheeks = 0.03 * bump(ax - 0.40, 0.14) * bump(y - 0.02, 0.13)
    cheeks = cheeks + 0.03 * get["cheek_fullness"] * bump(ax - 0.42, 0.16) * bump(y + 0.25, 0.2)
    fold = -0.018 * bump(ax - 0.20 - 0.35 * (-0.15 - y), 0.035) * bump(y + 0.27, 0.10)
    return np.where(front, nose + eyes + brows + lips + philtrum + chin + cheeks + fold, 0.0)


def _lids(places: Places, get: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Shift of the skin around the eyes: the resting opening, and the blink."""
    inner, outer = EYE_CORNERS
    t = np.clip((np.abs(places.longitude) - inner) / (outer - inner), 0.0, 1.0)
    arch, size = 4.0 * t * (1.0 - t), 1.0 + 0.15 * get["eye_size"]
    up = 0.054 * arch**0.62 * (1.08 - 0.16 * t) * size  # of the upper lid above the line between the corners, dm
    low = 0.038 * arch**0.75 * (0.86 + 0.28 * t) * size
    offset = places.level - EYE_LEVEL
    near_up = smoothstep(1.0 - offset / 0.19) * places.over_eye
    near_low = smoothstep(1.0 + offset / 0.15) * ~places.over_eye
    tilt = 0.02 * smoothstep((np.abs(places.longitude) - inner) / 0.4) * bump(offset, 0.08)
    amount = np.where(places.longitude > 0, get["blink_left"], get["blink_right"])
    blink = amount * (-(up + 0.75 * low) * near_up + 0.25 * low * near_low)
    return up * near_up - low * near_low + tilt, blink


def _wrap_lids(points: np.ndarray, places: Places, get: Mapping[str, float]) -> np.ndarray:
    """Lay the lids over the eyeball: where it stands out further than the skin, the skin follows."""
    near = bump(np.abs(points[:, 0]) - EYE_CENTRE_X, 0.13) * bump(points[:, 1] - EYE_LEVEL - 0.01, 0.09) > 0.1
    near &= np.cos(places.longitude) > 0.3
    dome = eyeball_depth(points[:, 0], points[:, 1], get, EYE_RADIUS + 0.014)
    soft = 0.012
    blended = soft * np.logaddexp(points[:, 2] / soft, dome / soft)
    fade = smoothstep((points[:, 1] - EYE_LEVEL + 0.13) / 0.05) * smoothstep((EYE_LEVEL + 0.15 - points[:, 1]) / 0.05)
    points[:, 2] = np.where(near, points[:, 2] + fade * (blended - points[:, 2]), points[:, 2])
    return points


def eyeball_depth(x: np.ndarray, y: np.ndarray, amounts: Mapping[str, float], radius: float) -> np.ndarray:
    """Return z (before the depth shift) of an eyeball's front at x, y; outside of it, z far behind the face."""
    centre = EYE_CENTRE_X + 0.022 * amounts.get("eye_distance", 0.0)
    square = radius**2 - (np.abs(x) - centre) ** 2 - (y - EYE_LEVEL - 0.012) ** 2
    return np.where(square > 0, 0.682 + np.sqrt(np.maximum(square, 0.0)), 0.5)


def _mouth_arch(longitude: np.ndarray) -> np.ndarray:
    """1 at the middle of the lips, falling to 0 at the corners and beyond."""
    t = np.clip(np.abs(longitude) / MOUTH_CORNER, 0.0, 1.0)
    return np.sqrt(1.0 - t**2.2)


def _expression(places: Places, x: np.ndarray, get: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Movement of the skin by the expressions, in the surface (dx, dy) and outwards (dz), dm; the jaw apart."""
    y, ax, side = places.level, np.abs(x), np.tanh(x / 0.06)
    off = y - MOUTH_LEVEL
    ring = bump(off, 0.15) * smoothstep((0.62 - ax) / 0.35)
    lips = bump(off, 0.10) * bump(x, 0.24)
    arch = _mouth_arch(places.longitude)
    upper = np.where(places.over_mouth, smoothstep(1.0 - off / 0.20), 0.0)
    lower = np.where(places.over_mouth, 0.0, smoothstep(1.0 + off / 0.26))
    cheek = bump(ax - 0.40, 0.12) * bump(y + 0.05, 0.11)
    brow = bump(y - 0.46, 0.075) * smoothstep((0.70 - ax) / 0.2)
    smile = np.where(x > 0, get["smile_left"], get["smile_right"]) * smoothstep(ax / 0.12)
    corner = bump(ax - 0.26, 0.11) * bump(off, 0.13)

    dx = 0.055 * get["lip_wide"] * side * smoothstep(ax / 0.26) * ring - 0.38 * get["lip_pucker"] * x * ring
    dx = dx + 0.055 * smile * side * corner - 0.03 * get["brow_down"] * side * brow * bump(ax - 0.12, 0.1)
    dy = 0.075 * smile * corner + 0.03 * smile * cheek - 0.06 * get["frown"] * corner
    dy = dy + 0.075 * get["upper_lip_raise"] * upper * arch**0.7 - 0.085 * get["lower_lip_down"] * lower * arch**0.7
    dy = dy + 0.075 * get["brow_up"] * brow - 0.045 * get["brow_down"] * brow * bump(ax - 0.15, 0.2)
    dy = dy - 0.45 * get["lip_press"] * off * bump(off, 0.09) * smoothstep((0.40 - ax) / 0.2)
    dz = 0.085 * get["lip_pucker"] * lips - 0.02 * get["lip_wide"] * lips - 0.025 * get["lip_press"] * lips
    dz = dz + 0.035 * smile * cheek + 0.07 * get["cheek_puff"] * bump(ax - 0.42, 0.15) * bump(y + 0.38, 0.15)
    return dx, dy, dz


def _jaw_weight(places: Places) -> np.ndarray:
    """Share of the jaw's rotation that a place takes: 1 at the chin, 0 above the mouth, shared at its corners."""
    off = places.level - MOUTH_LEVEL
    share = 0.38
    smooth = smoothstep(0.5 - off / 0.52) * share / 0.5
    smooth = np.where(off < 0, share + (1.0 - share) * smoothstep(-off / 0.30), smooth)
    arch = _mouth_arch(places.longitude)
    over = -share * arch * np.exp(-np.maximum(off, 0.0) / 0.10)
    under = (1.0 - share) * arch * (1.0 - smoothstep(-off / 0.30))
    weight = np.where(places.over_mouth, np.maximum(smooth + over, 0.0), smooth + under)
    return weight * smoothstep((np.cos(places.longitude) - 0.05) / 0.5)


def rotate_jaw(points: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Rotate points (z before the depth shift) about the jaw's hinges, by a share of its full angle."""
    angle = _JAW_ANGLE * np.broadcast_to(np.asarray(amount, dtype=float), points.shape[:1])
    y, z = points[:, 1] - _HINGE_Y, points[:, 2] - _HINGE_Z
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([points[:, 0], _HINGE_Y + cos * y - sin * z, _HINGE_Z + sin * y + cos * z], axis=1)
