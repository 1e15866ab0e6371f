"""The demo face model: a procedural head with named modes and the 68 iBUG landmarks.

``demo_head`` is a linearisation of ``shape.surface``: a mode is the difference that one named amount makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from lrs3_loader.demo import shape
from lrs3_loader.demo.mesh import Sheet, head_mesh
from lrs3_loader.face.model.morphable import FaceModel

IDENTITY_MODES = (
    "face_width",
    "face_length",
    "face_depth",
    "jaw_width",
    "chin",
    "cheek_fullness",
    "skull_height",
    "nose_size",
    "nose_width",
    "nose_length",
    "nose_bridge",
    "eye_distance",
    "eye_size",
    "brow_height",
    "mouth_width",
    "lip_fullness",
)
# Mode -> root mean square over the default demo corpus, at least 0.1; modes that it does not use have 0.2.
_EXPRESSION_SIGMA = {
    "jaw_open": 0.29,
    "lip_wide": 0.29,
    "lip_pucker": 0.27,
    "lip_press": 0.12,
    "upper_lip_raise": 0.10,
    "lower_lip_down": 0.10,
    "smile_left": 0.2,
    "smile_right": 0.2,
    "frown": 0.2,
    "brow_up": 0.2,
    "brow_down": 0.2,
    "blink_left": 0.2,
    "blink_right": 0.2,
    "cheek_puff": 0.2,
}
EXPRESSION_MODES = tuple(_EXPRESSION_SIGMA)


def _head_points(amounts: Mapping[str, float]) -> np.ndarray:
    """All vertices [V, 3] of the head before linearisation and centring, decimetres."""
    mesh = head_mesh()
    return np.concatenate([shape.surface(mesh.places, amounts), *(_sheet_points(s, amounts) for s in mesh.sheets)])


@lru_cache(maxsize=1)
def demo_head() -> FaceModel:
    """Return the procedural head as a linear model: about 6200 vertices, 16 identity and 14 expression modes.

    Identity coefficients are standard deviations; expression coefficients lie in 0..1. Machines differ in the last bits
    of their floating point libraries only.
    """
    mesh = head_mesh()
    mean = _head_points({})
    mean = mean - mean[mesh.landmark_verts].mean(0)
    id_basis = [(_head_points({name: 1.0}) - _head_points({name: -1.0})) / 2 for name in IDENTITY_MODES]
    exp_basis = [_head_points({name: 1.0}) - _head_points({}) for name in EXPRESSION_MODES]
    rounded = np.round(np.stack([mean, *id_basis, *exp_basis]), 4)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    return FaceModel(
        name="demo",
        licence="as lrs3_loader",
        source_sha256=hashlib.sha256(rounded.tobytes()).hexdigest(),
        mean=tensor(mean),
        id_basis=tensor(np.stack(id_basis, axis=2)),
        exp_basis=tensor(np.stack(exp_basis, axis=2)),
        id_sigma=torch.ones(len(IDENTITY_MODES)),
        exp_sigma=torch.tensor(list(_EXPRESSION_SIGMA.values())),
        triangles=torch.from_numpy(mesh.triangles),
        landmark_verts=torch.from_numpy(mesh.landmark_verts),
        id_names=IDENTITY_MODES,
        exp_names=EXPRESSION_MODES,
        exp_bounds=torch.stack([torch.zeros(len(EXPRESSION_MODES)), torch.ones(len(EXPRESSION_MODES))]),
    )


def _sheet_points(sheet: Sheet, amounts: Mapping[str, float]) -> np.ndarray:
    """Vertices [n, 3] of a sheet for the named amounts."""
    x, y = sheet.x, sheet.y
    if sheet.depth == "eye":
        x = x + np.sign(x) * 0.022 * amounts.get("eye_distance", 0.0)
        socket = shape.body(shape.longitude_of(x, y), y, y, {})[:, 2] - 0.13
        ball = shape.eyeball_depth(x, y, amounts, shape.EYE_RADIUS)
        return shape.proportioned(np.stack([x, y, np.maximum(ball, socket)], axis=1), amounts)
    if sheet.depth.startswith("ear"):
        side = 1.0 if sheet.depth == "ear_left" else -1.0
        return shape.proportioned(_ear(x, y, side), amounts)
    flat = {"mouth": 0.72, "upper_teeth": 0.88, "lower_teeth": 0.865}[sheet.depth]
    points = np.stack([x, y, flat - 0.9 * x**2], axis=1)
    lower = sheet.depth == "lower_teeth"
    jaw = 1.0 if lower else shape.smoothstep((shape.MOUTH_LEVEL - y) / 0.2) * (sheet.depth == "mouth")
    return shape.proportioned(shape.rotate_jaw(points, jaw * amounts.get("jaw_open", 0.0)), amounts)


def _ear(s: np.ndarray, t: np.ndarray, side: float) -> np.ndarray:
    """A shell-shaped ear from s in -0.5..0.5 (front to back on the image's right) and t in -1..1 (bottom to top)."""
    around = side * s  # -0.5 at the front edge of the ear, 0.5 at its back
    half = 0.30 * np.sqrt(np.clip(1.0 - t**2, 0.0, None)) * (1.0 + 0.25 * t)
    back = (around + 0.5) * half * 1.1
    rim = np.exp(-(((np.hypot(2 * around, t) - 0.8) / 0.16) ** 2))
    out = 0.05 + 0.45 * back + 0.035 * rim - 0.03 * np.exp(-((around / 0.25) ** 2 + (t / 0.5) ** 2))
    return np.stack([side * (0.632 + out), 0.09 + 0.29 * t, 0.05 - back], axis=1)
