"""A made-up canonical face, the bytes MediaPipe would store it as, and face models that are smooth images of it."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import Delaunay

from lrs3_loader.demo import demo_head
from lrs3_loader.face.geometry.topology import IBUG68
from lrs3_loader.face.model.canonical import MEMBER, CanonicalFace
from lrs3_loader.face.model.morphable import FaceModel

_HALF = np.array([0.75, 1.0])  # of the face, decimetres


def relief(xy: np.ndarray) -> np.ndarray:
    """[n, 3] places on a smooth, mirror-symmetric relief of a face: [n, 2] decimetres."""
    x, y = xy.T
    nose = 0.3 * np.exp(-((x / 0.12) ** 2) - ((y + 0.05) / 0.2) ** 2)
    return np.stack([x, y, 0.5 - 0.5 * x**2 - 0.25 * y**2 + nose], axis=1)


def _triangulated(xy: np.ndarray) -> np.ndarray:
    """Delaunay triangles, counter-clockwise from the front."""
    triangles = Delaunay(xy).simplices
    first, second, third = (xy[triangles[:, corner]] for corner in range(3))
    u, v = second - first, third - first
    turned = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] < 0
    triangles[turned] = triangles[turned][:, [0, 2, 1]]
    return triangles.astype(np.int64)


def made_canonical() -> CanonicalFace:
    """468 points on the relief, in centimetres: landmarks where the demo head has them, the others anywhere."""
    landmarks = demo_head().landmark_mean.numpy()[:, :2].astype(np.float64)
    xy = np.random.default_rng(5).uniform(-0.9 * _HALF, 0.9 * _HALF, (468, 2))
    xy[list(IBUG68)] = 0.8 * landmarks
    xy[list(IBUG68)] += 1e-3 * np.random.default_rng(6).standard_normal((68, 2))  # no two at one place
    return CanonicalFace(10 * relief(xy), _triangulated(xy))


def bent(points: np.ndarray) -> np.ndarray:
    """Another face: wider, longer in the chin, tilted, elsewhere; smooth."""
    x, y, z = points.T
    shifted = np.stack([1.05 * x, y + 0.04 * y**2 * (y < 0), z + 0.03 * x * x], axis=1)
    angle = 0.1
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return shifted @ turn.T + [0.05, 0.1, -0.2]


def bent_model(canonical: CanonicalFace, num_modes: int = 2) -> FaceModel:
    """The bent relief as a face model on a fine grid, its landmarks those of the canonical face; and a patch behind it
    that looks forward too, as eyeballs and teeth do."""
    grid = np.stack(np.meshgrid(*(np.linspace(-half, half, 70) for half in _HALF)), axis=-1).reshape(-1, 2)
    landmarks = canonical.verts[list(IBUG68), :2] / 10
    xy = np.concatenate([grid, landmarks])
    triangles = _triangulated(xy)
    behind = len(xy) + np.array([[0, 1, 2]])
    patch = bent(relief(np.array([[-0.4, -0.4], [0.4, -0.4], [0.0, 0.4]]))) - [0, 0, 0.01]
    verts = np.concatenate([bent(relief(xy)), patch])
    marks = np.arange(len(grid), len(xy))
    modes = 0.05 * np.random.default_rng(8).standard_normal((len(verts), 3, num_modes))
    return FaceModel(
        name="bent",
        licence="CC0-1.0",
        source_sha256="0" * 64,
        mean=torch.tensor(verts - verts[marks].mean(0), dtype=torch.float32),
        id_basis=torch.tensor(modes, dtype=torch.float32),
        exp_basis=torch.tensor(modes[::-1].copy(), dtype=torch.float32),
        id_sigma=torch.ones(num_modes),
        exp_sigma=torch.ones(num_modes),
        triangles=torch.from_numpy(np.concatenate([triangles, behind])),
        landmark_verts=torch.from_numpy(marks),
        id_names=tuple(f"id{n}" for n in range(num_modes)),
        exp_names=tuple(f"exp{n}" for n in range(num_modes)),
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _bytes_field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def metadata_bytes(face: CanonicalFace, packed: bool = False, vertex_type: int = 0) -> bytes:
    """A serialised ``GeometryPipelineMetadata``; ``packed``: numbers in one field, as newer writers do."""
    floats = np.concatenate([face.verts, np.zeros((len(face.verts), 2))], axis=1).ravel().tolist()
    numbers = face.triangles.ravel().tolist()
    mesh = _varint(1 << 3) + _varint(vertex_type) + _varint(2 << 3) + _varint(0)
    if packed:
        mesh += _bytes_field(3, struct.pack(f"<{len(floats)}f", *floats))
        mesh += _bytes_field(4, b"".join(_varint(number) for number in numbers))
    else:
        mesh += b"".join(_varint(3 << 3 | 5) + struct.pack("<f", value) for value in floats)
        mesh += b"".join(_varint(4 << 3) + _varint(number) for number in numbers)
    basis = _varint(1 << 3) + _varint(4) + _varint(2 << 3 | 5) + struct.pack("<f", 0.07)
    other = _varint(9 << 3 | 1) + bytes(8)  # a field of a kind that the message does not have
    return _bytes_field(1, mesh) + _bytes_field(2, basis) + other + _varint(3 << 3) + _varint(1)


def write_task(path: Path, face: CanonicalFace) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("face_detector.tflite", b"TFL3")
        archive.writestr(MEMBER, metadata_bytes(face))
    return path
