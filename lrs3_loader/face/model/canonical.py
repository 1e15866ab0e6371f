"""MediaPipe's canonical face: the metric mesh on which its 468 points are defined.

The ``.task`` file contains it as ``geometry_pipeline_metadata_landmarks.binarypb``, a protocol buffer of the message
``mediapipe.tasks.vision.face_geometry.proto.GeometryPipelineMetadata``; whose fields read here are

    1 canonical_mesh (Mesh3d): 1 vertex_type = 0 (x, y, z, u, v), 2 primitive_type = 0 (triangles),
                               3 vertex_buffer (float), 4 index_buffer (uint32)

Unit: centimetre. Axes as a face model's: x to the person's left, y up, z out of the face. The mesh is mirror symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS
from lrs3_loader.io.zip_files import read_zip

MEMBER = "geometry_pipeline_metadata_landmarks.binarypb"
_CANONICAL_MESH = 1
_VERTEX_TYPE, _PRIMITIVE_TYPE, _VERTEX_BUFFER, _INDEX_BUFFER = 1, 2, 3, 4
_VARINT, _BYTES = 0, 2  # wire types
_FIXED_SIZES = {1: 8, 5: 4}  # wire type -> bytes


@dataclass(frozen=True, eq=False)
class CanonicalFace:
    """Mesh of MediaPipe's face points."""

    verts: np.ndarray  # [468, 3] f64, centimetres
    triangles: np.ndarray  # [F, 3] i64, counter-clockwise seen from outside

    def mirror(self) -> np.ndarray:
        """Return the number of each point's mirror image [468] (its own on the middle line)."""
        gaps = self.verts[:, None] - self.verts[None] * [-1.0, 1.0, 1.0]
        return np.square(gaps).sum(-1).argmin(1)


def has_canonical_face(task: Path) -> bool:
    """Return whether a file is a ``.task`` with the canonical face."""
    try:
        return bool(read_zip(task, (MEMBER,)))
    except (OSError, ValueError):
        return False


def load_canonical_face(task: Path) -> CanonicalFace:
    """Read the canonical face from a ``face_landmarker.task``; raises ``RunError`` if it does not contain one."""
    try:
        return parse_metadata(read_zip(task, (MEMBER,))[MEMBER])
    except (OSError, ValueError) as error:
        raise RunError(f"{task} is not a face_landmarker.task file with the canonical face: {error}") from error


def parse_metadata(data: bytes) -> CanonicalFace:
    """Parse a serialised ``GeometryPipelineMetadata``; raises ``ValueError`` for damaged data or another mesh."""
    mesh = [value for number, value in _fields(data) if number == _CANONICAL_MESH]
    if not mesh or not isinstance(mesh[-1], bytes):
        raise ValueError("no canonical mesh in the geometry metadata")
    types, floats, indices = {_VERTEX_TYPE: 0, _PRIMITIVE_TYPE: 0}, [], []
    for number, value in _fields(mesh[-1]):
        if number in types and isinstance(value, int):
            types[number] = value
        elif number == _VERTEX_BUFFER and isinstance(value, bytes):
            floats.append(value)  # four bytes each, or all of them packed
        elif number == _INDEX_BUFFER and isinstance(value, bytes):
            at = 0
            while at < len(value):
                index, at = _varint(value, at)
                indices.append(index)
        elif number == _INDEX_BUFFER and isinstance(value, int):
            indices.append(value)
    if any(types.values()):
        raise ValueError(f"the canonical mesh is of another type: {types}")
    buffer = np.frombuffer(b"".join(floats), dtype="<f4").astype(np.float64)
    if buffer.size != NUM_MESH_POINTS * 5 or not np.isfinite(buffer).all():
        raise ValueError(f"the canonical mesh holds {buffer.size} floats, expected {NUM_MESH_POINTS} vertices")
    if not indices or len(indices) % 3 or max(indices) >= NUM_MESH_POINTS:
        raise ValueError("the canonical mesh's triangles do not fit its vertices")
    return CanonicalFace(buffer.reshape(NUM_MESH_POINTS, -1)[:, :3], np.reshape(indices, (-1, 3)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer message: varints as int, anything else as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind not in (_VARINT, _BYTES, *_FIXED_SIZES):
            raise ValueError(f"wire type {kind} in a protocol buffer")
        value, at = (_FIXED_SIZES[kind], at) if kind in _FIXED_SIZES else _varint(data, at)
        if kind == _VARINT:
            yield number, value
            continue
        if at + value > len(data):
            raise ValueError("a protocol buffer ends inside a field")
        yield number, data[at : at + value]
        at += value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset after it) of the varint at offset ``at``: up to ten bytes of seven bits, lowest first."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a protocol buffer ends inside a number")
