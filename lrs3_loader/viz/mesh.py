"""Draws a face model's mesh over an image: shaded, half-transparent, with smooth edges; or as a wireframe.

By the package's own rasteriser, or by pytorch3d's where that is installed: the same image but for single pixels at
edges, by way of the conventions that training code with pytorch3d would use.
"""

from __future__ import annotations

import numpy as np
import torch

from lrs3_loader.demo.raster import rasterize
from lrs3_loader.face.geometry.camera import Camera, apply_pose
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.face.photometric import render
from lrs3_loader.viz.overlay import wireframe_coverage
from lrs3_loader.viz.view import View

SUPERSAMPLING = 2  # the mesh is drawn this much finer in both directions, and averaged
_LIGHT = np.array([-0.35, 0.45, 0.82], dtype=np.float32)  # direction towards the lamp, camera axes
_SKIN = np.array([0.62, 0.78, 0.98], dtype=np.float32)  # a bluish clay: unlike any face below it
_AMBIENT, _LAMP = 0.25, 0.80


class MeshPainter:
    """One person's mesh: ``draw(image, exp, pose, opacity)`` lays it over an image."""

    colour = _SKIN

    def __init__(
        self, model: FaceModel, id: torch.Tensor, camera: Camera, view: View, tint: np.ndarray | None = None
    ) -> None:
        """Args: ``id`` [I], the camera of the source frame, and which part of that frame the images show.

        ``tint`` [V] f32 is the brightness of each vertex in the same light (1 when not given).
        """
        self._model, self._id, self._camera, self._view = model, id, camera, view
        self._triangles = model.triangles.numpy()
        self._tint = np.float32(1) if tint is None else tint

    def draw(self, image: np.ndarray, exp: torch.Tensor, pose: torch.Tensor, opacity: float) -> None:
        """``exp`` [E], ``pose`` [6] as ``face.camera``; ``opacity`` 0..1; ``image`` [size, size, 3] f32 in 0..1."""
        vertices = self._model.vertices(self._id, exp)
        rotation_only = torch.cat((pose[:3], torch.zeros(3)))
        normals = apply_pose(self._model.normals(vertices), rotation_only).numpy()
        moved = apply_pose(vertices, pose).numpy()
        light = _LIGHT / np.linalg.norm(_LIGHT)
        shade = (self._tint * (_AMBIENT + _LAMP * np.maximum(normals @ light, 0.0))).astype(np.float32)
        shade_sum, coverage = self._cover(moved, shade)
        colour = shade_sum[..., None] * self.colour  # already times the coverage
        image *= 1 - opacity * coverage[..., None]
        image += opacity * np.minimum(colour, coverage[..., None])

    def _cover(self, moved: np.ndarray, shade: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shade times coverage, and coverage, [size, size] each, of vertices in camera space [V, 3] f32."""
        points, depth = self._projected(moved)
        fine = SUPERSAMPLING * (points + 0.5)  # the rasteriser counts from pixel edges
        size = SUPERSAMPLING * self._view.size
        pixel, seen = rasterize(fine.astype(np.float32), depth, shade[:, None], self._triangles, size, size)
        sums = np.zeros((size * size, 2), dtype=np.float32)  # shade, coverage
        sums[pixel, 0], sums[pixel, 1] = seen[:, 0], 1.0
        shape = (self._view.size, SUPERSAMPLING, self._view.size, SUPERSAMPLING, 2)
        shade_sum, coverage = np.moveaxis(sums.reshape(shape).mean(axis=(1, 3)), -1, 0)
        return shade_sum, coverage

    def _projected(self, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Panel pixels [V, 2] and depth [V] of vertices in camera space."""
        camera = self._camera
        depth = np.float32(camera.distance) - moved[:, 2]
        scale = np.float32(camera.focal_px) / depth
        pixels = np.stack([camera.centre_x_px + moved[:, 0] * scale, camera.centre_y_px - moved[:, 1] * scale], axis=1)
        return self._view.to_panel(pixels), depth


class Pytorch3dMeshPainter(MeshPainter):
    """A mesh painter that draws with pytorch3d. Raises ``RunError`` where that is missing."""

    def __init__(
        self, model: FaceModel, id: torch.Tensor, camera: Camera, view: View, tint: np.ndarray | None = None
    ) -> None:
        render.require_pytorch3d("--mesh pytorch3d")
        super().__init__(model, id, camera, view, tint)
        centre = view.to_panel(np.array([camera.centre_x_px, camera.centre_y_px]))
        focal = camera.focal_px * view.scale
        pinhole = torch.tensor([[focal, focal, *centre]], dtype=torch.float32)
        self._cameras = render.make_cameras(torch.eye(3)[None], torch.zeros(1, 3), pinhole, view.size, view.size)

    def _cover(self, moved: np.ndarray, shade: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vertices, colours = torch.from_numpy(moved)[None], torch.from_numpy(shade)[None, :, None].expand(-1, -1, 3)
        size, triangles = self._view.size, self._model.triangles
        drawn = render.render(vertices, colours, triangles, self._cameras, size, size, SUPERSAMPLING)[0].numpy()
        return drawn[..., 0], drawn[..., 3]


class WireframePainter(MeshPainter):
    """A mesh painter that draws wires alone: the face below stays visible."""

    colour = np.array([0.55, 1.0, 0.75], dtype=np.float32)

    def _cover(self, moved: np.ndarray, shade: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coverage = wireframe_coverage(*self._projected(moved), self._triangles, self._view.size)
        return coverage, coverage


PAINTERS: dict[str, type[MeshPainter]] = {
    "simple": MeshPainter,
    "wireframe": WireframePainter,
    "pytorch3d": Pytorch3dMeshPainter,
}
