"""Draws a demo head: simple lighting, the rasteriser, and averaging.

Shading is Lambert with a warm key light, a cool fill light and a soft sky, plus a mild Blinn highlight, per vertex;
pixels are drawn twice as fine in both directions and averaged.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix

from lrs3_loader.demo.head import demo_head
from lrs3_loader.demo.paint import Look
from lrs3_loader.demo.raster import rasterize
from lrs3_loader.demo.scene import build_scene
from lrs3_loader.face.geometry.camera import Camera, project

SUPERSAMPLING = 2


def _unit(direction: list[float]) -> np.ndarray:
    return np.array(direction) / np.linalg.norm(direction)


# Directions towards the lights, their colours, and the highlight's strength and exponent.
_KEY, _KEY_COLOUR = _unit([-0.45, 0.50, 0.74]), np.array([0.66, 0.62, 0.57])
_FILL, _FILL_COLOUR = _unit([0.80, 0.05, 0.60]), np.array([0.22, 0.23, 0.26])
_SKY_COLOUR, _GROUND_COLOUR = np.array([0.40, 0.41, 0.43]), np.array([0.31, 0.28, 0.27])
_GLOSS, _SHININESS, _HALFWAY = 0.16, 18.0, _unit([*(_KEY + np.array([0.0, 0.0, 1.0]))])


class Painter:
    """One speaker, ready to be drawn in frames of ``size`` x ``size`` pixels.

    The same coefficients and poses give the same bytes on the same machine.
    """

    def __init__(self, look: Look, id: torch.Tensor, seed: int, size: int = 224) -> None:
        self.id, self.size = id, size
        self.camera = Camera.for_frame(size, size)
        self._scene = build_scene(look, id, np.random.default_rng([seed, 1]))
        self._around = _incidence(self._scene.triangles, len(self._scene.texel))
        self._texels = self._scene.atlas.reshape(-1, 3)
        self._backdrop = _backdrop(look, size * SUPERSAMPLING)

    def draw(self, exp: torch.Tensor, pose: torch.Tensor) -> np.ndarray:
        """One frame [size, size, 3] u8 RGB for ``exp`` [E] and ``pose`` [6] (``face.camera``)."""
        size = self.size * SUPERSAMPLING
        vertices = self._scene.vertices(exp, pose)
        depth = np.float32(self.camera.distance) - vertices[:, 2]
        values = np.concatenate([self._scene.texel, self._light(vertices)], axis=1)
        pixel, seen = rasterize(self._project(vertices), depth, values, self._scene.triangles, size, size)
        column, row = (seen[:, axis].astype(np.int64) for axis in (0, 1))
        picture = self._backdrop.copy()
        colours = self._texels[row * self._scene.atlas.shape[1] + column]
        picture[pixel] = colours * seen[:, 2:5] + seen[:, 5:6]
        return _to_bytes(_averaged(picture.reshape(size, size, 3)))

    def landmarks(self, exp: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """[T, 68, 2] pixels of the true landmarks for ``exp`` [T, E] and ``pose`` [T, 6]."""
        return project(demo_head().landmarks(self.id, exp), pose, self.camera)

    def _project(self, vertices: np.ndarray) -> np.ndarray:
        """Pixels of the finer picture [n, 2] f32, in the rasteriser's convention (edges, not centres, are whole)."""
        moved, still = torch.from_numpy(vertices), torch.zeros(6)
        return (SUPERSAMPLING * (project(moved, still, self.camera) + 0.5)).numpy()

    def _light(self, vertices: np.ndarray) -> np.ndarray:
        """[n, 4] f32: the light's colour and the highlight at each vertex."""
        a, b, c = (vertices[self._scene.triangles[:, corner]] for corner in range(3))
        normals = self._around @ np.cross(b - a, c - a)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        key, fill = (np.maximum(normals @ light, 0.0)[:, None] for light in (_KEY, _FILL))
        sky = 0.5 + 0.5 * normals[:, 1:2]
        colour = _SKY_COLOUR * sky + _GROUND_COLOUR * (1 - sky) + _KEY_COLOUR * key + _FILL_COLOUR * fill
        shine = _GLOSS * self._scene.gloss * np.maximum(normals @ _HALFWAY, 0.0) ** _SHININESS
        return np.concatenate([colour, shine[:, None]], axis=1).astype(np.float32)


def _incidence(triangles: np.ndarray, num_vertices: int) -> csr_matrix:
    """[V, F] matrix that sums the normals of the triangles around each vertex."""
    rows, columns = triangles.T.ravel(), np.tile(np.arange(len(triangles)), 3)
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(num_vertices, len(triangles)))


def _backdrop(look: Look, size: int) -> np.ndarray:
    """A wall that darkens downwards, with a soft glow [size * size, 3] f32."""
    top, bottom = (np.array(colour, dtype=np.float32) for colour in look.wall)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    glow = (0.10 * np.exp(-((x - 0.35) ** 2 + (y - 0.3) ** 2) / 0.15))[..., None]
    return (top + (bottom - top) * y[..., None] + glow).reshape(-1, 3).astype(np.float32)


def _averaged(picture: np.ndarray) -> np.ndarray:
    """Means of blocks of SUPERSAMPLING x SUPERSAMPLING pixels of [H, W, 3]."""
    steps = range(SUPERSAMPLING)
    total = np.add.reduce([picture[i::SUPERSAMPLING, j::SUPERSAMPLING] for i in steps for j in steps])
    return np.asarray(total / np.float32(SUPERSAMPLING**2))


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture * 255.0), 0, 255).astype(np.uint8)
