"""Compute the dense correspondence of MediaPipe's 468 points with the surface of any face model.

It is found by registering MediaPipe's canonical face (see ``canonical``) to the model's mean face:

1. a similarity transform on the 68 landmarks, which both have (Umeyama, "Least-squares estimation of transformation
   parameters between two point patterns", TPAMI 1991);
2. a smooth warp through them: radial basis functions with the kernel r, which bends three-dimensional space least
   (Duchon 1977), held exactly at eyes and lips and loosely elsewhere, since the schemes' contours differ;
3. for every point, the nearest place on the model's surface that faces the same way.

Eyes and lips go to the model's own landmark vertices. The weight of a point starts at 1 and is reduced by its distance
from the nearest landmark, by its distance from the surface, by the angle between the surfaces, and on the mesh's
border. A point and its mirror image have the same weight; those in ``DOUBTFUL`` have weight 0.

Checked on four real clips with ICT-FaceKit fitted to 68 points (a test repeats it): the other points lie 2.8 mm from
where MediaPipe sees them (mean; 1.5 mm within 5 mm of a landmark, 3 mm at 15 mm, 7 mm at 30 mm: forehead and jaw).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.surface import (
    SurfacePoints,
    connected_triangles,
    nearest_on_surface,
    on_border,
    vertex_normals,
)
from lrs3_loader.face.geometry.topology import IBUG68, NUM_MESH_POINTS
from lrs3_loader.face.model.canonical import CanonicalFace, load_canonical_face
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, DensePoints, FaceModel
from lrs3_loader.io.safe_load import decode_npy, read_npz

#: Points without a reliable place on other models: the rims of the lips' insides between the landmarks (a model with
#: closed lips has them anywhere) and the nostrils (MediaPipe's own points lie 5 to 6 mm from its canonical mesh's).
DOUBTFUL: tuple[int, ...] = (
    191, 80, 82, 312, 310, 415, 95, 88, 87, 317, 318, 324,
    59, 289, 235, 455, 98, 327, 240, 460, 75, 305, 166, 392,
)  # fmt: skip

_CONTOUR = np.arange(17)
_NOSTRILS = np.array([31, 35])  # iBUG's are on the lip's edge of the nostril, the mesh's on its wall
_EXACT = np.arange(36, 68)  # eyes and lips
_SOLID = np.concatenate([[8], np.arange(17, 31), np.arange(32, 35), _EXACT])  # landmarks that mean the same on both
_CONTOUR_TRUST = 0.1  # share of a contour landmark in the similarity
_CONTOUR_SMOOTHING, _SMOOTHING = 1.0, 0.02  # decimetres: how far the warp may miss them
_REACH = 0.15  # decimetres from the nearest landmark where the weight is one half
_NEAR, _FAR = 0.03, 0.10  # decimetres to the surface: full weight, none
_MAX_INDEX_BYTES = 1 << 20  # of a file with 468 numbers
_ALIKE, _ASLANT = 0.7, 0.3  # cosine of normals: full weight, none


def with_dense(model: FaceModel, task: Path) -> FaceModel:
    """Return ``model`` with a dense correspondence to the canonical face of a ``face_landmarker.task``.

    Raises ``RunError`` if the file does not contain the canonical face.
    """
    return dataclasses.replace(model, dense=register(model, load_canonical_face(task)))


def with_dense_index(model: FaceModel, index: Path) -> FaceModel:
    """Return ``model`` with the dense correspondence of a file; raises ``RunError`` if that does not fit.

    The file contains either 468 vertex numbers from 0, with -1 for a point without counterpart, as ``.npy`` or text
    (GeneFace++'s ``index_mp468_from_mesh35709.npy`` for BFM), or it is the ``.npz`` that comes with FLAME (some of the
    points, as triangle numbers and barycentric coordinates).
    """
    try:
        dense = _embedded(model, index) if index.suffix == ".npz" else _indexed(model, index)
        return dataclasses.replace(model, dense=dense.to(model.device))
    except (OSError, ValueError) as error:
        raise RunError(f"{index} is no dense correspondence for the face model {model.name}: {error}") from error


def register(model: FaceModel, canonical: CanonicalFace) -> DensePoints:
    """Register the canonical face's points to the mean face of ``model``."""
    verts = model.mean.cpu().numpy().astype(np.float64)
    triangles = model.triangles.cpu().numpy()
    landmarks = model.landmark_verts.cpu().numpy()
    aligned = _aligned(canonical.verts, verts[landmarks])
    warped = _warped(aligned, verts[landmarks])
    used = np.unique(triangles)
    nose = used[np.square(verts[used] - verts[landmarks[30]]).sum(1).argmin()]
    skin = connected_triangles(triangles, len(verts), nose)  # eyeballs, teeth and the like are other components
    normals = vertex_normals(warped, canonical.triangles)
    found = nearest_on_surface(warped, normals, verts, triangles[skin])
    weight = _weights(aligned, found, on_border(found, triangles[skin]))
    weight = np.minimum(weight, weight[canonical.mirror()])
    triangle = skin[found.triangle]
    barycentric = found.barycentric
    # Eye and lip landmarks lie on the model's own landmark vertices.
    points = np.array(IBUG68)[_EXACT]
    at = _triangle_of_vertex(triangles, len(verts))[landmarks[_EXACT]]
    points, at, exact = points[at >= 0], at[at >= 0], landmarks[_EXACT][at >= 0]
    triangle[points], barycentric[points], weight[points] = at, triangles[at] == exact[:, None], 1.0
    return _dense_points(triangle, barycentric, weight).to(model.device)


def _aligned(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Map ``points`` [468, 3] onto ``landmarks`` [68, 3] by a weighted similarity transform."""
    weights = np.ones(NUM_LANDMARKS)
    weights[_CONTOUR], weights[_NOSTRILS] = _CONTOUR_TRUST, 0.0
    weights /= weights.sum()
    source = points[list(IBUG68)]
    source_centre, target_centre = weights @ source, weights @ landmarks
    source, target = source - source_centre, landmarks - target_centre
    left, sizes, right = np.linalg.svd((target * weights[:, None]).T @ source)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    scale = (sizes * signs).sum() / (weights @ np.square(source).sum(1))
    return scale * (points - source_centre) @ ((left * signs) @ right).T + target_centre


def _warped(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Warp aligned ``points`` [468, 3] so that their landmarks meet ``landmarks`` [68, 3]."""
    from scipy.interpolate import RBFInterpolator  # only conversions of models need it

    used = np.setdiff1d(np.arange(NUM_LANDMARKS), _NOSTRILS)
    smoothing = np.full(NUM_LANDMARKS, _SMOOTHING)
    smoothing[_CONTOUR], smoothing[_EXACT] = _CONTOUR_SMOOTHING, 0.0
    source = points[list(IBUG68)][used]
    shift = RBFInterpolator(source, landmarks[used] - source, kernel="linear", degree=1, smoothing=smoothing[used])
    return points + shift(points)


def _weights(aligned: np.ndarray, found: SurfacePoints, border: np.ndarray) -> np.ndarray:
    """Compute the weights [468] of the points, see the module docstring."""
    solid = aligned[np.array(IBUG68)[_SOLID]]
    reach = np.sqrt(np.square(aligned[:, None] - solid).sum(-1).min(1))
    weight = 1.0 / (1.0 + np.square(reach / _REACH))  # the standard error grows with the distance from a landmark
    weight *= np.clip((_FAR - found.distance) / (_FAR - _NEAR), 0.0, 1.0)
    weight *= np.clip((found.normal_cosine - _ASLANT) / (_ALIKE - _ASLANT), 0.0, 1.0)
    weight[border] = 0.0
    weight[list(DOUBTFUL)] = 0.0
    return weight


def _triangle_of_vertex(triangles: np.ndarray, num_verts: int) -> np.ndarray:
    """Return a triangle [V] of each vertex, -1 for a vertex of none."""
    owner = np.full(num_verts, -1)
    owner[triangles] = np.arange(len(triangles))[:, None]
    return owner


def _indexed(model: FaceModel, path: Path) -> DensePoints:
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"it has over {_MAX_INDEX_BYTES} bytes")
    index = (decode_npy(path.read_bytes()) if path.suffix == ".npy" else np.loadtxt(path)).ravel()
    if index.dtype.kind not in "iuf" or index.shape != (NUM_MESH_POINTS,) or not np.array_equal(index, np.rint(index)):
        raise ValueError(f"expected {NUM_MESH_POINTS} whole numbers, got {index.dtype} {list(index.shape)}")
    index = index.astype(np.int64)
    if index.min() < -1 or index.max() >= model.num_vertices:
        raise ValueError(f"vertex numbers must lie in -1..{model.num_vertices - 1}, got {index.min()}..{index.max()}")
    triangles = model.triangles.cpu().numpy()
    has = index >= 0
    triangle = np.where(has, _triangle_of_vertex(triangles, model.num_vertices)[index], 0)
    if triangle.min() < 0:
        raise ValueError(f"vertex {index[triangle < 0][0]} belongs to no triangle")
    barycentric = np.where(has[:, None], triangles[triangle] == index[:, None], [1.0, 0.0, 0.0])
    return _dense_points(triangle, barycentric, has)


def _embedded(model: FaceModel, path: Path) -> DensePoints:
    arrays = read_npz(path, _MAX_INDEX_BYTES)
    names = ("landmark_indices", "lmk_face_idx", "lmk_b_coords")
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    points, at, places = (arrays[name] for name in names)
    if points.dtype.kind not in "iu" or at.dtype.kind not in "iu" or places.dtype.kind != "f":
        raise ValueError(f"its arrays are of types {points.dtype}, {at.dtype} and {places.dtype}")
    if points.ndim != 1 or at.shape != points.shape or places.shape != (*points.shape, 3):
        raise ValueError(f"its arrays do not fit together: {points.shape}, {at.shape}, {places.shape}")
    if points.min() < 0 or points.max() >= NUM_MESH_POINTS or at.min() < 0 or at.max() >= len(model.triangles):
        raise ValueError("it names points or triangles that do not exist")
    triangle = np.zeros(NUM_MESH_POINTS, dtype=np.int64)
    barycentric = np.tile([1.0, 0.0, 0.0], (NUM_MESH_POINTS, 1))
    weight = np.zeros(NUM_MESH_POINTS)
    triangle[points], barycentric[points], weight[points] = at, places, 1.0
    return _dense_points(triangle, barycentric, weight)


def _dense_points(triangle: np.ndarray, barycentric: np.ndarray, weight: np.ndarray) -> DensePoints:
    inside = np.clip(barycentric.astype(np.float64), 0.0, None)
    return DensePoints(
        triangle=torch.from_numpy(triangle.astype(np.int64)),
        barycentric=torch.from_numpy((inside / inside.sum(1, keepdims=True)).astype(np.float32)),
        weight=torch.from_numpy(weight.astype(np.float32)),
    )
