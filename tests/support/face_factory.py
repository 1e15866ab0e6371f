"""A tiny face model and clips of known truth for tests: 68 points by formula, a few smooth modes, no file needed."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.fit_truth import speaking_clip
from lrs3_loader.face.model.morphable import FaceModel

__all__ = ["EXP_NAMES", "MIRROR", "small_model", "speaking_clip"]

MIRROR = np.array(
    [
        *(*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65),
    ]
)
EXP_NAMES = ("jaw", "smile", "pucker", "brows", "blink", "press")


def _ring(centre: tuple[float, float], radii: tuple[float, float], degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack((centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)), 1)


def _outline() -> np.ndarray:
    """[68, 2] x and y, decimetres, mirror symmetric."""
    jaw = _ring((0, 0.2), (0.72, 0.95), list(np.linspace(180, 360, 17)))
    brow = np.stack((np.linspace(-0.6, -0.15, 5), 0.55 + 0.1 * np.sin(np.linspace(0.3, 2.5, 5))), 1)
    bridge = np.stack((np.zeros(4), np.linspace(0.32, 0.0, 4)), 1)
    base = np.stack((np.linspace(-0.16, 0.16, 5), [-0.12, -0.15, -0.17, -0.15, -0.12]), 1)
    eye = _ring((-0.32, 0.33), (0.14, 0.06), [180, 120, 60, 0, -60, -120])
    other_eye = (eye * [-1, 1])[[3, 2, 1, 0, 5, 4]]
    lips = _ring((0, -0.38), (0.25, 0.11), [180, 150, 115, 90, 65, 30, 0, -30, -65, -90, -115, -150])
    inner = _ring((0, -0.38), (0.18, 0.025), [180, 120, 90, 60, 0, -60, -90, -120])
    other_brow = (brow * [-1, 1])[::-1]
    return np.concatenate((jaw, brow, other_brow, bridge, base, eye, other_eye, lips, inner))


def _expression_modes(points: np.ndarray) -> np.ndarray:
    """[68, 3, 6] offsets, mirror symmetric."""
    x, y, _ = points.T
    modes = np.zeros((68, 3, len(EXP_NAMES)))
    low = np.zeros(68)
    low[5:12], low[55:60], low[65:68] = 0.8, 1.0, 1.0
    modes[:, 1, 0], modes[:, 2, 0] = -0.4 * low, -0.15 * low
    mouth = np.arange(68) >= 48
    modes[mouth, 0, 1], modes[mouth, 1, 1] = 0.5 * x[mouth], 0.8 * np.abs(x[mouth])
    modes[mouth, 0, 2], modes[mouth, 2, 2] = -0.5 * x[mouth], 0.12
    modes[17:27, 1, 3] = 0.15
    eyes = slice(36, 48)
    modes[eyes, 1, 4] = 0.33 - y[eyes]
    modes[mouth, 1, 5] = 0.5 * (-0.38 - y[mouth])
    return modes


def small_model(num_id: int = 8) -> FaceModel:
    """68 vertices that are the landmarks; ``num_id`` smooth identity modes; 6 expressions bounded to 0..1."""
    xy = _outline()
    depth = 0.75 - 0.9 * (xy**2).sum(1) * [1 if k < 17 else 0.8 for k in range(68)]
    depth[28:31] += [0.1, 0.2, 0.3]
    depth[31:36] += 0.12
    points = np.column_stack((xy, depth))
    points -= points.mean(0)
    x, y, z = points.T
    nothing = np.zeros(68)
    fields = [(x, y, z), (x, nothing, nothing), (nothing, y, nothing), (nothing, nothing, z), (nothing, y * y, nothing)]
    fields += [
        (x * y, nothing, nothing),
        (nothing, nothing, y * y),
        (nothing, x * x, nothing),
        (nothing, nothing, x * x),
    ]
    id_basis = 0.08 * np.stack([np.stack(field, 1) for field in fields[:num_id]], 2)
    quads = [(a, a + 1, 27) for a in range(17, 26)]
    return FaceModel(
        name="small",
        licence="CC0-1.0",
        source_sha256="0" * 64,
        mean=torch.tensor(points, dtype=torch.float32),
        id_basis=torch.tensor(id_basis, dtype=torch.float32),
        exp_basis=torch.tensor(_expression_modes(points), dtype=torch.float32),
        id_sigma=torch.ones(num_id),
        exp_sigma=torch.full((len(EXP_NAMES),), 0.3),
        triangles=torch.tensor(quads)[:, [1, 0, 2]],
        landmark_verts=torch.arange(68),
        id_names=tuple(f"mode{number}" for number in range(num_id)),
        exp_names=EXP_NAMES,
        exp_bounds=torch.tensor([[0.0], [1.0]]).repeat(1, len(EXP_NAMES)),
    )
