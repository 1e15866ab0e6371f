"""ICT-FaceKit (USC Institute for Creative Technologies, MIT licence) as a neutral face model.

The release is a folder ``FaceXModel`` of Wavefront OBJ files, one absolute mesh each, all of one topology:
the generic neutral face, 100 identities and 53 ARKit-named expressions. A mode is a mesh less the neutral
one. The first 9,409 of 26,719 vertices are the face; the rest (head, neck, mouth socket, eyes, teeth) is
dropped. The 68 landmarks follow as vertices of their own, in no triangle (see ``ict_landmarks``). Unit of the release:
centimetre. Axes as in ``morphable``: x to the person's left, y up, z forward.

Source of the layout: Li et al., "Learning Formation of Physically-Based Face Attributes" (CVPR 2020) and the
release's own ``vertex_indices.json``.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.model.ict_landmarks import landmark_offsets, size_changes
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel
from lrs3_loader.io.zip_files import ZIP_DAMAGE, check_zip

FOLDER = "FaceXModel"
NEUTRAL = "generic_neutral_mesh.obj"
INDICES = "vertex_indices.json"
NUM_FACE_VERTICES = 9_409
IDENTITIES = tuple(f"identity{number:03d}" for number in range(100))
NUM_EXPRESSIONS = 53
DECIMETRES_PER_UNIT = 0.1
# Root mean square weight of each blendshape over speech: 0.3, 0.05, or 0.15 for all others. Guided by the scores of
# MediaPipe's blendshape network over speaking faces (2,000 frames: 0.49 for browInnerUp to under 0.01 for cheekPuff and
# noseSneer), kept coarse so as not to say more than that.
_LARGE = ("browInnerUp", "browOuterUp", "eyeBlink", "eyeSquint", "jawOpen", "mouthPucker", "mouthSmile")
_SMALL = ("cheekPuff", "cheekSquint", "jawForward", "jawLeft", "jawRight", "mouthFrown", "noseSneer")
_SIGMAS = dict.fromkeys(_LARGE, 0.3) | dict.fromkeys(_SMALL, 0.05)

_MAX_MEMBER_BYTES = 16 << 20  # the largest mesh has 2.7 MB
_MAX_TOTAL_BYTES = 4 << 30  # the whole repository unpacks to 0.6 GB


def convert_ict(source: Path) -> FaceModel:
    """Read the face of ICT-FaceKit from a release: its folder, a tar (any compression) or a zip of the repository.

    ``source_sha256`` is a hash over the names and contents of the files used, so it does not depend on the container.
    Raises ``RunError`` that names ``source`` if files are missing, damaged or of another layout.
    """
    try:
        files, digest = _read_release(source)
        return _build(files, digest)
    except (OSError, tarfile.TarError, lzma.LZMAError, *ZIP_DAMAGE) as error:
        raise RunError(f"{source} is not ICT-FaceKit as released: {str(error) or type(error).__name__}") from error


def _read_release(source: Path) -> tuple[dict[str, bytes], str]:
    """Read the needed part of each file (OBJ: face vertices only, except for the neutral mesh), and the hash of all."""
    files: dict[str, bytes] = {}
    hashes: dict[str, str] = {}
    for name, data in _members(source):
        hashes[name] = hashlib.sha256(data).hexdigest()
        files[name] = data if name in (NEUTRAL, INDICES) else _face_vertex_lines(name, data)
    for name in (INDICES, NEUTRAL):
        if name not in files:
            raise ValueError(f"no {FOLDER}/{name} in it")
    used = [INDICES, NEUTRAL, *(f"{name}.obj" for name in (*IDENTITIES, *_parse_indices(files[INDICES])[0]))]
    missing = [name for name in used if name not in files]
    if missing:
        raise ValueError(f"{len(missing)} files are missing, the first is {FOLDER}/{missing[0]}")
    listing = "".join(f"{hashes[name]}  {name}\n" for name in sorted(used))
    return files, hashlib.sha256(listing.encode()).hexdigest()


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, contents) of the OBJ and JSON files directly inside a folder called ``FaceXModel``."""
    total = 0
    for name, size, open_file in _files(source):
        total += size
        if total > _MAX_TOTAL_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_TOTAL_BYTES} bytes")
        path = PurePosixPath(name)
        if path.parent.name == FOLDER and path.suffix in (".obj", ".json"):
            if size > _MAX_MEMBER_BYTES:
                raise ValueError(f"{path.name} has {size} bytes, over the limit of {_MAX_MEMBER_BYTES}")
            with open_file() as file:
                yield path.name, file.read()


def _files(source: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Yield (path, size, how to open it) of every file in a folder or an archive."""
    if source.is_dir():
        folder = source if source.name == FOLDER else source / FOLDER
        for path in sorted(folder.glob("*")):
            if path.is_file():
                yield f"{FOLDER}/{path.name}", path.stat().st_size, partial(path.open, "rb")
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as zipped:
            check_zip(zipped, _MAX_TOTAL_BYTES)
            for member in zipped.infolist():
                if not member.is_dir():
                    yield member.filename, member.file_size, partial(zipped.open, member)
    else:
        with tarfile.open(source, mode="r|*") as tar:
            for info in tar:
                if info.isreg():
                    yield info.name, info.size, partial(tar.extractfile, info)


def _parse_indices(data: bytes) -> tuple[list[str], list[int]]:
    """Return the names of the expressions and the 68 landmark vertices."""
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError(f"{INDICES} holds no JSON object")
    names, landmarks = (content.get(name) for name in ("expressions", "idx_to_landmark_verts"))
    if not isinstance(names, list) or len(names) != NUM_EXPRESSIONS or {*map(type, names)} != {str}:
        raise ValueError(f"{INDICES} does not list {NUM_EXPRESSIONS} names of expressions")
    if not isinstance(landmarks, list) or len(landmarks) != NUM_LANDMARKS or {*map(type, landmarks)} != {int}:
        raise ValueError(f"{INDICES} does not list {NUM_LANDMARKS} landmark vertices")
    if min(landmarks) < 0 or max(landmarks) >= NUM_FACE_VERTICES:
        raise ValueError(f"{INDICES} names landmark vertices outside the face part")
    return names, landmarks


def _build(files: dict[str, bytes], digest: str) -> FaceModel:
    expressions, landmarks = _parse_indices(files[INDICES])
    neutral = _parse_vertices(NEUTRAL, _face_vertex_lines(NEUTRAL, files[NEUTRAL]))
    offsets = landmark_offsets() / DECIMETRES_PER_UNIT
    marks = neutral[landmarks] + offsets
    centre = marks.mean(0)
    centre[0] = 0.0  # the mesh is symmetric about x = 0; the average is off by rounding alone

    def modes(names: Sequence[str]) -> np.ndarray:
        meshes = [_parse_vertices(name, files[f"{name}.obj"]) - neutral for name in names]
        return np.stack(meshes, axis=-1)

    def with_marks(basis: np.ndarray, change: np.ndarray | float = 0.0) -> torch.Tensor:
        basis = np.concatenate([basis, basis[landmarks] + change])
        return torch.from_numpy((basis * DECIMETRES_PER_UNIT).astype(np.float32))

    identities = modes(IDENTITIES)
    growth = size_changes(neutral[landmarks], identities[landmarks])

    return FaceModel(
        name="ict",
        licence="MIT",
        source_sha256=digest,
        mean=torch.from_numpy(((np.concatenate([neutral, marks]) - centre) * DECIMETRES_PER_UNIT).astype(np.float32)),
        id_basis=with_marks(identities, offsets[..., None] * growth),
        exp_basis=with_marks(modes(expressions)),
        id_sigma=torch.ones(len(IDENTITIES)),
        exp_sigma=torch.tensor([_SIGMAS.get(name.removesuffix("_L").removesuffix("_R"), 0.15) for name in expressions]),
        triangles=_triangles(files[NEUTRAL]),
        landmark_verts=NUM_FACE_VERTICES + torch.arange(NUM_LANDMARKS),
        id_names=IDENTITIES,
        exp_names=tuple(expressions),
        exp_bounds=torch.tensor([[0.0], [1.0]]).repeat(1, NUM_EXPRESSIONS),
    )


def _face_vertex_lines(name: str, data: bytes) -> bytes:
    """Return the numbers of the first 9,409 ``v x y z`` lines, without the letters."""
    start = data.find(b"\nv ") + 1
    lines = data[start:].split(b"\n", NUM_FACE_VERTICES)[:NUM_FACE_VERTICES]
    if start == 0 or len(lines) < NUM_FACE_VERTICES or not all(line.startswith(b"v ") for line in lines):
        raise ValueError(f"{name} does not begin with {NUM_FACE_VERTICES} vertices in a row")
    return b" ".join(line[2:] for line in lines)


def _parse_vertices(name: str, numbers: bytes) -> np.ndarray:
    """Parse vertices [9409, 3] f64, centimetres."""
    values = np.array(numbers.split(), dtype=np.float64)
    if values.size != 3 * NUM_FACE_VERTICES or not np.isfinite(values).all():
        raise ValueError(f"{name} does not hold three finite coordinates per vertex")
    return values.reshape(-1, 3)


def _triangles(data: bytes) -> torch.Tensor:
    """Return triangles [F, 3] i64 of the polygons (mostly quads) inside the face part, each split as a fan."""
    triangles: list[tuple[int, int, int]] = []
    for line in data[data.find(b"\nf ") + 1 :].split(b"\n"):
        if not line.startswith(b"f "):
            continue
        corners = [int(corner.split(b"/", 1)[0]) - 1 for corner in line.split()[1:]]
        if max(corners) < NUM_FACE_VERTICES:
            triangles.extend((corners[0], second, third) for second, third in pairwise(corners[1:]))
    if not triangles:
        raise ValueError(f"{NEUTRAL} has no polygons inside its first {NUM_FACE_VERTICES} vertices")
    return torch.tensor(triangles)
