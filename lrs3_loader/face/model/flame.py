"""FLAME (2020, 2023, 2023 Open) as a neutral face model: 100 identity modes, 50 expression modes and 3 of the jaw.

    vertices = skinning(v_template + shapedirs . (id, exp) + posedirs . (R - 1), joints, R)

Of the five joints only the jaw belongs to the face. It is folded into linear modes, so that FLAME is fitted like any
other model: ``jaw_open`` is the chord of the whole articulated model (rotation about the jaw's joint and pose
correctives) between rest and ``JAW_OPEN`` radians, so it is exact at both and off by at most an eighth of
``JAW_OPEN`` squared, times the distance to the joint, in between (0.5 mm at the chin); ``jaw_turn`` and ``jaw_roll``
are central differences. Their coefficients are radians. The joint is that of the mean face. Head, neck and eye
rotations are left out: the head's is the pose, the others are not seen in landmarks. Models "without jaw" have its
movement in their expressions: convert them with ``jaw=False``.

The 68 landmarks lie inside triangles (a separate embedding file), so they are appended as 68 vertices of no triangle,
which move with their triangles: exact, where the nearest vertex would be millimetres off. Their contour is that of the
frontal view. Metres become decimetres; the axes are those of ``morphable``.

Licence: see https://flame.is.tue.mpg.de/modellicense.html; the files are given to those who register there.
Li et al., "Learning a model of facial shape and expression from 4D scans" (SIGGRAPH Asia 2017).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel
from lrs3_loader.io.safe_load import npy_offsets
from lrs3_loader.io.unpickle import Placeholder, UnpickleError, loads

LICENCE = "LicenseRef-FLAME (https://flame.is.tue.mpg.de/modellicense.html)"
MODEL_FILES = ("flame2023_Open.pkl", "flame2023.pkl", "generic_model.pkl", "FLAME_NEUTRAL.pkl")
EMBEDDING = "landmark_embedding.npy"
STATIC, DYNAMIC = "flame_static_embedding.pkl", "flame_dynamic_embedding.npy"
NUM_ALL_ID, NUM_ALL_EXP = 300, 100  # in the file, in this order
NUM_ID, NUM_EXP = 100, 50
DECIMETRES_PER_METRE = 10.0
JAW_OPEN, JAW_SIDE = 0.2, 0.05  # radians at which the jaw's modes are taken
JAW_MODES = ("jaw_open", "jaw_turn", "jaw_roll")
JAW_SIGMA = (0.08, 0.02, 0.02)  # radians over speech; coarse

_NUM_JOINTS, _JAW = 5, 2  # root, neck, jaw, left eye, right eye
_PARENTS = [0, 1, 1, 1]  # of the joints but the root
#: Sparse matrices and chumpy's arrays (which tracked their derivatives; the package no longer installs) are taken apart
#: by ``_array``; torch's tensors are passed over.
_SPARSE = {
    f"scipy.sparse.{module}{kind}_{name}": kind
    for module in ("", "csc.", "csr.", "_csc.", "_csr.")
    for kind in ("csc", "csr")
    for name in ("matrix", "array")
}
_CHUMPY = "chumpy.ch.Ch"
_PLACEHOLDERS = {_CHUMPY, "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes", *_SPARSE}
_MAX_DENSE = 1 << 24  # numbers of a sparse matrix, zeros included
_ASK = "register at https://flame.is.tue.mpg.de to get FLAME 2020 or 2023"
_ASK_EMBEDDING = f"{EMBEDDING} comes with https://github.com/yfeng95/DECA (folder data)"


@dataclass(frozen=True, eq=False)
class _Flame:
    """Arrays of the model file in metres; V vertices, F triangles."""

    template: np.ndarray  # [V, 3]
    modes: np.ndarray  # [V, 3, 400]
    pose_modes: np.ndarray  # [V, 3, 36]
    joint: np.ndarray  # [3] of the jaw
    jaw_weights: np.ndarray  # [V]
    triangles: np.ndarray  # [F, 3] i64


def convert_flame(
    source: Path,
    embedding: Path | None = None,
    num_id: int = NUM_ID,
    num_exp: int = NUM_EXP,
    jaw: bool = True,
) -> FaceModel:
    """Read FLAME from its pickle, or from a folder that contains it under one of its usual names.

    Args:
        source: the pickle or its folder.
        embedding: places of the 68 landmarks: ``landmark_embedding.npy``, or ``flame_static_embedding.pkl`` with
            ``flame_dynamic_embedding.npy`` in the same folder. By default they are searched for in the model's folder.
        num_id: number of identity modes, at most 300.
        num_exp: number of expression modes, at most 100.
        jaw: whether the jaw joint becomes three further expression modes.

    Raises:
        RunError: a file (which is named) is missing, damaged, of another layout, or its pickle asks for anything but
            arrays.
        ValueError: a number of modes out of range.
    """
    if not 1 <= num_id <= NUM_ALL_ID or not 1 <= num_exp <= NUM_ALL_EXP:
        raise ValueError(f"FLAME has up to {NUM_ALL_ID} and {NUM_ALL_EXP} modes, asked for {num_id} and {num_exp}")
    path = _first_file(source, MODEL_FILES, f"holds none of {', '.join(MODEL_FILES)}: {_ASK}")
    if not path.is_file():
        raise RunError(f"{path} not found: {_ASK}")
    if embedding is None:
        missing = f"holds no {EMBEDDING}, which says where the 68 landmarks lie: {_ASK_EMBEDDING}"
        embedding = _first_file(path.parent, (EMBEDDING, STATIC), missing)
    try:
        flame = _parse(_read_dict(path))
    except (UnpickleError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is not FLAME as released: {error}") from error
    try:
        faces, places = _landmark_places(embedding)
        if faces.min() < 0 or faces.max() >= len(flame.triangles):
            raise ValueError(f"it names triangles {faces.min()}..{faces.max()} of {len(flame.triangles)}")
    except (UnpickleError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{embedding} does not say where FLAME's 68 landmarks lie: {error}; {_ASK_EMBEDDING}") from error
    digest = hashlib.sha256(path.read_bytes() + embedding.read_bytes()).hexdigest()
    try:
        return _build(flame, faces, places, (num_id, num_exp), jaw, digest)
    except ValueError as error:
        raise RunError(f"{path} and {embedding} do not give a face: {error}") from error


def _first_file(source: Path, names: tuple[str, ...], problem: str) -> Path:
    """Return ``source``, or the first of the named files in it if it is a folder."""
    if not source.is_dir():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise RunError(f"{source} {problem}")


def _parse(content: dict[Any, Any]) -> _Flame:
    template = _array(content["v_template"]).astype(np.float64)
    num_vertices = len(template)
    want = {
        "v_template": (num_vertices, 3),
        "shapedirs": (num_vertices, 3, NUM_ALL_ID + NUM_ALL_EXP),
        "posedirs": (num_vertices, 3, 9 * (_NUM_JOINTS - 1)),
        "J_regressor": (_NUM_JOINTS, num_vertices),
        "weights": (num_vertices, _NUM_JOINTS),
    }
    arrays = {}
    for name, shape in want.items():
        arrays[name] = _array(content[name]).astype(np.float64)
        if arrays[name].shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(arrays[name].shape)}")
    parents = _array(content["kintree_table"])[:1, 1:].ravel().tolist()
    if parents != _PARENTS:
        raise ValueError(f"its joints hang on {parents}, expected {_PARENTS}")
    triangles = _array(content["f"]).astype(np.int64)
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"f must be [F, 3], got {list(triangles.shape)}")
    if triangles.size and not 0 <= triangles.min() <= triangles.max() < num_vertices:
        raise ValueError(f"f names vertices {triangles.min()}..{triangles.max()} of {num_vertices}")
    joint = arrays["J_regressor"][_JAW] @ template
    return _Flame(template, arrays["shapedirs"], arrays["posedirs"], joint, arrays["weights"][:, _JAW], triangles)


def _landmark_places(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read triangles [68] and barycentric coordinates [68, 3] of the landmarks in iBUG's order."""
    content = _read_dict(path)
    if "full_lmk_faces_idx" in content:
        faces, places = content["full_lmk_faces_idx"], content["full_lmk_bary_coords"]
    else:  # the contour of the frontal view, the first of the tabulated ones, and the rest
        contour = _read_dict(path.parent / DYNAMIC)
        faces = np.concatenate([_array(contour["lmk_face_idx"])[0], _array(content["lmk_face_idx"]).ravel()])
        places = np.concatenate([_array(contour["lmk_b_coords"])[0], _array(content["lmk_b_coords"]).reshape(-1, 3)])
    faces, places = _array(faces).ravel().astype(np.int64), _array(places).reshape(-1, 3).astype(np.float64)
    if faces.shape != (NUM_LANDMARKS,) or places.shape != (NUM_LANDMARKS, 3):
        raise ValueError(f"expected {NUM_LANDMARKS} landmarks, got {len(faces)} and {len(places)}")
    if not np.allclose(places.sum(1), 1.0, atol=1e-3):
        raise ValueError("its barycentric coordinates do not sum to 1")
    return faces, places


def _read_dict(path: Path) -> dict[Any, Any]:
    """Read the dictionary that a pickle, or an ``.npy`` file of one object, holds."""
    data = path.read_bytes()
    if path.suffix == ".npy":
        data = data[npy_offsets(data)[1] :]
    content = loads(data, placeholders=_PLACEHOLDERS)
    if isinstance(content, np.ndarray) and content.dtype.hasobject and content.size == 1:
        content = content.item()
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected a dict")
    return content


def _array(value: Any) -> np.ndarray:
    """Return an array of numbers, also one that chumpy or scipy wrapped."""
    if isinstance(value, Placeholder) and value.name == _CHUMPY and isinstance(value.state, dict):
        value = value.state["x"]
    if isinstance(value, Placeholder) and value.name in _SPARSE and isinstance(value.state, dict):
        return _dense(value.state, _SPARSE[value.name])
    return _numbers(value)


def _numbers(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        raise ValueError(f"expected an array of numbers, got a {type(value).__name__}")
    return value


def _dense(state: dict[Any, Any], kind: str) -> np.ndarray:
    """Return the array [rows, columns] of a sparse matrix, compressed by columns (``csc``) or rows (``csr``)."""
    shape = state["_shape"] if "_shape" in state else state["shape"]
    data, inner, starts = (_numbers(state[name]).ravel() for name in ("data", "indices", "indptr"))
    sizes = [int(size) for size in shape if isinstance(size, (int, np.integer))] if isinstance(shape, tuple) else []
    if len(sizes) != 2:
        raise ValueError("a sparse matrix without a shape")
    num_outer, num_inner = sizes[::-1] if kind == "csc" else sizes
    if min(sizes) < 0 or num_outer * num_inner > _MAX_DENSE:
        raise ValueError(f"a sparse matrix of {sizes[0]} x {sizes[1]} numbers")
    counts: np.ndarray = np.diff(starts.astype(np.int64))
    fit = len(counts) == num_outer and 0 <= counts.min(initial=0) <= counts.max(initial=0) <= len(data)
    if not fit or counts.sum() != len(data) or len(inner) != len(data):
        raise ValueError("the parts of a sparse matrix do not fit together")
    if inner.min(initial=0) < 0 or inner.max(initial=-1) >= num_inner:
        raise ValueError("a sparse matrix whose indices lie outside of it")
    dense = np.zeros((num_outer, num_inner))
    np.add.at(dense, (np.repeat(np.arange(num_outer), counts), inner.astype(np.int64)), data)
    return dense.T if kind == "csc" else dense


def _with_jaw(flame: _Flame, angles: tuple[float, float, float]) -> np.ndarray:
    """Return the template [V, 3] with its jaw rotated by ``angles`` (radians) about the axes x, y and z."""
    rotation = euler_to_matrix(torch.tensor(angles, dtype=torch.float64)).numpy()
    feature = np.zeros(flame.pose_modes.shape[2])
    feature[9 * (_JAW - 1) : 9 * _JAW] = (rotation - np.eye(3)).ravel()
    corrected = flame.template + flame.pose_modes @ feature
    arm = corrected - flame.joint
    return corrected + flame.jaw_weights[:, None] * (arm @ rotation.T - arm)


def _jaw_modes(flame: _Flame) -> np.ndarray:
    """Return the modes [V, 3, 3] of the jaw, metres per radian."""
    opened = (_with_jaw(flame, (JAW_OPEN, 0.0, 0.0)) - flame.template) / JAW_OPEN
    turned = (_with_jaw(flame, (0.0, JAW_SIDE, 0.0)) - _with_jaw(flame, (0.0, -JAW_SIDE, 0.0))) / (2 * JAW_SIDE)
    rolled = (_with_jaw(flame, (0.0, 0.0, JAW_SIDE)) - _with_jaw(flame, (0.0, 0.0, -JAW_SIDE))) / (2 * JAW_SIDE)
    return np.stack([opened, turned, rolled], axis=2)


def _build(
    flame: _Flame, faces: np.ndarray, places: np.ndarray, counts: tuple[int, int], jaw: bool, digest: str
) -> FaceModel:
    num_id, num_exp = counts
    exp_modes = [flame.modes[..., NUM_ALL_ID : NUM_ALL_ID + num_exp], *([_jaw_modes(flame)] if jaw else [])]
    corners = flame.triangles[faces]

    def finished(values: np.ndarray) -> torch.Tensor:
        """Convert to decimetres and append the landmarks."""
        marks = (values[corners] * places.reshape(*places.shape, *[1] * (values.ndim - 1))).sum(1)
        return torch.from_numpy((np.concatenate([values, marks]) * DECIMETRES_PER_METRE).astype(np.float32))

    centre = (flame.template[corners] * places[..., None]).sum(1).mean(0)
    num_vertices = len(flame.template)
    return FaceModel(
        name="flame",
        licence=LICENCE,
        source_sha256=digest,
        mean=finished(flame.template - centre),
        id_basis=finished(flame.modes[..., :num_id]),
        exp_basis=finished(np.concatenate(exp_modes, axis=2)),
        id_sigma=torch.ones(num_id),
        exp_sigma=torch.tensor([1.0] * num_exp + list(JAW_SIGMA if jaw else ())),
        triangles=torch.from_numpy(flame.triangles),
        landmark_verts=torch.arange(num_vertices, num_vertices + NUM_LANDMARKS),
        id_names=tuple(f"shape{number:03d}" for number in range(num_id)),
        exp_names=(*(f"exp{number:03d}" for number in range(num_exp)), *(JAW_MODES if jaw else ())),
    )
