"""Triangle meshes in numpy: normals, connected parts, borders, and the nearest point on a surface.

Letters: V vertices, F triangles, N points, K candidate triangles per point. Double precision throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_TINY = 1e-18


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """The positions of N points on a mesh."""

    triangle: np.ndarray  # [N] i64
    barycentric: np.ndarray  # [N, 3], at least 0, sum 1
    distance: np.ndarray  # [N], from the query point
    normal_cosine: np.ndarray  # [N], cosine between the point's normal and the triangle's


def face_normals(verts: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return normals [F, 3] of twice the triangle's area, towards the side from which it is counter-clockwise."""
    corners = verts[triangles]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def vertex_normals(verts: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return area-weighted unit normals [V, 3]; zero for vertices of no triangle."""
    sums = np.zeros_like(verts, dtype=np.float64)
    normals = face_normals(verts, triangles)
    for corner in range(3):
        np.add.at(sums, triangles[:, corner], normals)
    return _unit(sums)


def orient_outwards(verts: np.ndarray, triangles: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return ``triangles``, all flipped if most of their area faces ``inside`` [3], a point within the head."""
    outward = verts[triangles].mean(1) - inside
    facing = (face_normals(verts, triangles) * _unit(outward)).sum()
    return triangles if facing >= 0 else triangles[:, [0, 2, 1]]


def connected_triangles(triangles: np.ndarray, num_verts: int, vertex: int) -> np.ndarray:
    """Return the indices [n] of the triangles that are connected to ``vertex`` through shared vertices."""
    first, second = triangles[:, [0, 1]].ravel(), triangles[:, [1, 2]].ravel()
    links = coo_matrix((np.ones(len(first)), (first, second)), shape=(num_verts, num_verts))
    _, part = connected_components(links, directed=False)
    return np.flatnonzero(part[triangles[:, 0]] == part[vertex])


def on_border(points: SurfacePoints, triangles: np.ndarray) -> np.ndarray:
    """Return which points lie on an edge of the border, one that belongs to a single triangle: [N] bool."""
    edges = np.sort(triangles[:, [[1, 2], [2, 0], [0, 1]]], axis=2)  # the edge opposite to each corner
    code = edges[..., 0] * (triangles.max() + 1) + edges[..., 1]
    _, index, count = np.unique(code, return_inverse=True, return_counts=True)
    single = (count[index] == 1).reshape(code.shape)
    return (single[points.triangle] & (points.barycentric < 1e-9)).any(1)


def nearest_on_surface(
    points: np.ndarray,
    normals: np.ndarray,
    verts: np.ndarray,
    triangles: np.ndarray,
    min_normal_cosine: float = 0.2,
    num_candidates: int = 64,
) -> SurfacePoints:
    """Find the point of a mesh nearest to each of ``points`` [N, 3] that faces the same way as its unit ``normals``.

    The ``num_candidates`` triangles with the nearest centres are searched. If the normals of none of them have a cosine
    of at least ``min_normal_cosine`` with the point's, the nearest of all is taken.
    """
    tree = cKDTree(verts[triangles].mean(1))
    candidates = tree.query(points, k=min(num_candidates, len(triangles)))[1].reshape(len(points), -1)
    barycentric, squared = _closest(points[:, None], verts[triangles[candidates]])
    normal_cosine = (_unit(face_normals(verts, triangles))[candidates] * normals[:, None]).sum(-1)
    penalty = np.where(normal_cosine >= min_normal_cosine, 0.0, 1.0 + squared.max())
    row, best = np.arange(len(points)), (squared + penalty).argmin(1)
    return SurfacePoints(
        candidates[row, best], barycentric[row, best], np.sqrt(squared[row, best]), normal_cosine[row, best]
    )


def _closest(points: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest point in each triangle [..., 3, 3]: barycentric coordinates [..., 3], squared distances [...].

    It is the foot of the perpendicular if that falls inside the triangle, otherwise the nearest point on an edge.
    """
    first, second, third = (corners[..., k, :] for k in range(3))
    u, v, w = second - first, third - first, points - first
    uu, uv, vv, wu, wv = ((a * b).sum(-1) for a, b in ((u, u), (u, v), (v, v), (w, u), (w, v)))
    area = np.maximum(uu * vv - uv * uv, _TINY)
    b, c = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    best = np.stack([1 - b - c, b, c], axis=-1)
    to_foot = points - (first + b[..., None] * u + c[..., None] * v)
    squared = np.where((best >= 0).all(-1), np.square(to_foot).sum(-1), np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        origin, along = corners[..., start, :], corners[..., end, :] - corners[..., start, :]
        t = np.clip(((points - origin) * along).sum(-1) / np.maximum(np.square(along).sum(-1), _TINY), 0.0, 1.0)
        distance = np.square(points - origin - t[..., None] * along).sum(-1)
        on_edge = np.zeros_like(best)
        on_edge[..., start], on_edge[..., end] = 1 - t, t
        better = distance < squared
        best, squared = np.where(better[..., None], on_edge, best), np.where(better, distance, squared)
    return best, squared


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)
