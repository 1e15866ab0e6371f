"""Dense correspondence: for each of MediaPipe's 468 points, a triangle of a face model, a place in it, and a weight.

Letters: L = 468 points, V vertices, F triangles, D values per vertex.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS


@dataclass(frozen=True, eq=False)
class DensePoints:
    """Dense correspondence of one face model; all tensors are on one device.

    The irises (points 468 to 477 of the newer network) belong to no surface and are left out.

    Raises ``ValueError`` for wrong shapes, weights outside 0..1, or barycentric coordinates that leave the triangle.
    """

    triangle: torch.Tensor  # [L] i64, number of the triangle; 0 for a point without counterpart
    barycentric: torch.Tensor  # [L, 3] f32, weights of the triangle's corners; at least 0, sum 1
    weight: torch.Tensor  # [L] f32, 0 (no counterpart, do not use) to 1 (as good as a landmark): inverse variance

    def __post_init__(self) -> None:
        want = {"triangle": (NUM_MESH_POINTS,), "barycentric": (NUM_MESH_POINTS, 3), "weight": (NUM_MESH_POINTS,)}
        for name, shape in want.items():
            tensor = getattr(self, name)
            dtype = torch.int64 if name == "triangle" else torch.float32
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(f"dense {name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")
        if not bool((self.barycentric >= 0).all()) or not bool(((self.barycentric.sum(1) - 1).abs() < 1e-4).all()):
            raise ValueError("dense barycentric coordinates must be at least 0 and sum to 1")
        if not bool(((self.weight >= 0) & (self.weight <= 1)).all()):
            raise ValueError("dense weights must lie in 0..1")
        if int(self.triangle.min()) < 0:
            raise ValueError(f"dense triangles must be numbered from 0, got {int(self.triangle.min())}")

    @property
    def num_weighted(self) -> int:
        """Number of points with a weight above 0."""
        return int((self.weight > 0).sum())

    def to(self, device: torch.device | str) -> DensePoints:
        """Copy with tensors on ``device``."""
        return DensePoints(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def interpolate(self, values: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
        """Interpolate ``values`` [..., V, D] at the vertices of ``triangles`` [F, 3] to the points, [..., L, D]."""
        corners = values[..., triangles[self.triangle], :]  # [..., L, 3, D]
        return (corners * self.barycentric[..., None]).sum(-2)
