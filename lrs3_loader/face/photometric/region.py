"""Part of a face model that is compared with pixels: the face from chin to forehead, between the ears.

Letters: V vertices and F triangles of the part, I identity modes, E expression modes, X texture modes, n frames.
"""

from __future__ import annotations

import torch

from lrs3_loader.face.model.morphable import FaceModel, linear_offsets

_SIDE_REACH = 1.0  # half widths of the landmarks, from their middle line
_ABOVE_REACH = 0.2  # heights of the landmarks, above the brows
_BELOW_REACH = 0.02  # and below the chin
_MIN_FACING = 0.2  # z of the mean face's normals: surfaces that face sideways are seen at a grazing angle or not at all


class Region:
    """The face part of one model, on the model's device, with vertices and triangles numbered by themselves.

    Raises ``ValueError`` for a model without triangles between its landmarks.
    """

    def __init__(self, model: FaceModel) -> None:
        chosen = _chosen_triangles(model)
        if not bool(chosen.any()):
            raise ValueError(f"the face model {model.name} has no triangles between its landmarks")
        self.verts, numbers = torch.unique(model.triangles[chosen], return_inverse=True)
        self.triangles = numbers.view(-1, 3)  # [F, 3]
        self.mean = model.mean[self.verts]  # [V, 3]
        self.id_basis = model.id_basis[self.verts]  # [V, 3, I]
        self.exp_basis = model.exp_basis[self.verts]  # [V, 3, E]
        self.tex_mean = None if model.tex_mean is None else model.tex_mean[self.verts]  # [V, 3]
        self.tex_basis = None if model.tex_basis is None else model.tex_basis[self.verts]  # [V, 3, X]
        order = self.triangles.flatten().argsort(stable=True)
        parts = (order // 3).split(torch.bincount(self.triangles.flatten()).tolist())
        # [V, most triangles of a vertex], ascending, padded with F
        self._around = torch.nn.utils.rnn.pad_sequence(list(parts), True, len(self.triangles))

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def __len__(self) -> int:
        return len(self.verts)

    def neutral(self, id: torch.Tensor) -> torch.Tensor:
        """Vertices [..., V, 3] of the identity ``id`` [..., I] without expression."""
        return self.mean + linear_offsets(self.id_basis, id.to(self.mean.dtype))

    def expressed(self, neutral: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
        """Vertices [n, V, 3] of ``neutral`` [n, V, 3] with the expression ``exp`` [n, E]."""
        return neutral + linear_offsets(self.exp_basis, exp.to(self.mean.dtype))

    def normals(self, vertices: torch.Tensor) -> torch.Tensor:
        """Outward unit normals [n, V, 3] at ``vertices`` [n, V, 3]: area-weighted means, summed in a fixed order."""
        first, second, third = (vertices[:, self.triangles[:, corner]] for corner in range(3))
        areas = torch.linalg.cross(second - first, third - first)
        areas = torch.cat((areas, torch.zeros_like(areas[:, :1])), 1)
        sums = torch.zeros_like(vertices)
        for column in self._around.unbind(1):
            sums = sums + areas[:, column]
        return torch.nn.functional.normalize(sums, dim=-1)

    def smoothed(self, values: torch.Tensor) -> torch.Tensor:
        """Smooth ``values`` [V, D]: the mean, over the triangles of a vertex, of the mean over a triangle's corners."""
        means = values[self.triangles].mean(1)
        means = torch.cat((means, torch.zeros_like(means[:1])))
        there = (self._around < len(self.triangles)).to(values.dtype)
        return means[self._around].sum(1) / there.sum(1, keepdim=True)


def _chosen_triangles(model: FaceModel) -> torch.Tensor:
    """Triangles of the model that belong to the region, [F of the model] bool."""
    points = model.landmark_mean
    low, high = points.amin(0), points.amax(0)
    middle, half = (low[0] + high[0]) / 2, (high[0] - low[0]) / 2
    height = high[1] - low[1]
    inside = (
        ((model.mean[:, 0] - middle).abs() <= _SIDE_REACH * half)
        & (model.mean[:, 1] <= high[1] + _ABOVE_REACH * height)
        & (model.mean[:, 1] >= low[1] - _BELOW_REACH * height)
        & (model.mean[:, 2] >= low[2])
    )
    first, second, third = model.mean[model.triangles].unbind(1)
    facing = torch.nn.functional.normalize(torch.linalg.cross(second - first, third - first), dim=-1)[:, 2]
    return inside[model.triangles].all(1) & (facing >= _MIN_FACING)
