"""Gauss-Newton approximation of the landmark term's Hessian, computed without forming Jacobians.

Letters: B sequences, T frames of a sequence, n = B T frames, K landmarks, I identity modes, E expression modes,
D = E + 6 unknowns of a frame.

A landmark's normalized image coordinates (u, v) have the derivatives ``a, b`` [3] by the place of its point on the
model. Its share of the Hessian's expression block is ``basis^T (a a^T + b b^T) basis``: linear in the six numbers of a
symmetric 3 x 3 matrix. So the blocks of all frames are one product of matrices, [frames, 6 K] times a table of the
model's [6 K, pairs of modes].
On one CPU thread that takes half the time of forming the Jacobians and their squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lrs3_loader.face.fit.terms import POSE_SIZE, Basis, Residuals, State, multiply

_AXES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_SYMMETRIC = [0, 3, 4, 3, 1, 5, 4, 5, 2]  # entries of a symmetric 3 x 3 matrix among these


class ModeProducts:
    """Products of pairs of a model's modes at every landmark, computed once for a model.

    ``dtype`` is the precision of the tables, and of all curvatures. Rows: axes first, then landmarks. Pairs of
    expression modes are in the order of ``torch.triu_indices``; ``exp_places`` [E * E] are their columns for the
    entries of a whole block.
    """

    def __init__(self, basis: Basis, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.num_exp, self.num_id = basis.exp.shape[-1], basis.id.shape[-1]
        exp_exp, self.exp_places = _symmetric_products(basis.exp)
        self.exp_exp = exp_exp.to(dtype)  # [6 K, E (E + 1) / 2]
        self.id_exp = _pair_products(basis.id[..., None], basis.exp[:, :, None]).flatten(1).to(dtype)  # [6 K, I E]
        self.id = basis.id.to(dtype)  # [K, 3, I]
        self.flat = torch.cat((basis.exp, basis.id), -1).transpose(0, 1).flatten(0, 1).to(dtype)  # [3 K, E + I]


@dataclass(frozen=True)
class Curvature:
    """Half the Gauss-Newton Hessian of the landmark term, in the precision of the ``ModeProducts``."""

    frames: torch.Tensor  # [B, T, D, D]
    border: torch.Tensor  # [B, T, I, D] between identity and frame, [B, T, 0, D] if the identity is known
    id: torch.Tensor  # [B, I, I] summed over the frames, or [B, 0, 0]


def curvature(state: State, residuals: Residuals, products: ModeProducts, with_identity: bool) -> Curvature:
    """Half the Gauss-Newton Hessian at ``state``, whose residuals are ``residuals``."""
    batch, num_frames, num_points = residuals.weight.shape
    a, b, pose_a, pose_b = _derivatives(state, residuals, products.dtype)
    six = torch.stack([a[:, i] * a[:, j] + b[:, i] * b[:, j] for i, j in _AXES], 1)
    six = six.view(batch, num_frames, len(_AXES) * num_points)
    mixed = pose_a[:, :, None] * a[:, None] + pose_b[:, :, None] * b[:, None]  # [B T, 6, 3, K]
    num_exp, num_id = products.num_exp, products.num_id if with_identity else 0
    mixed = multiply(mixed.view(batch, -1, 3 * num_points), products.flat[:, : num_exp + num_id])
    mixed = mixed.view(batch, num_frames, POSE_SIZE, -1)

    size = num_exp + POSE_SIZE
    frames = six.new_empty(batch, num_frames, size, size)
    of_exp = multiply(six, products.exp_exp).flatten(0, 1).index_select(1, products.exp_places)
    frames[..., :num_exp, :num_exp] = of_exp.view(batch, num_frames, num_exp, num_exp)
    frames[..., num_exp:, :num_exp] = mixed[..., :num_exp]
    frames[..., :num_exp, num_exp:] = mixed[..., :num_exp].transpose(-1, -2)
    both = torch.cat((pose_a, pose_b), -1)
    frames[..., num_exp:, num_exp:] = (both @ both.transpose(-1, -2)).view(batch, num_frames, POSE_SIZE, POSE_SIZE)
    if not with_identity:
        return Curvature(frames, frames[..., :0, :], frames[:, 0, :0, :0])
    border = multiply(six, products.id_exp).view(batch, num_frames, num_id, num_exp)
    return Curvature(
        frames,
        torch.cat((border, mixed[..., num_exp:].transpose(-1, -2)), -1),
        _identity_block(six.sum(1).view(batch, len(_AXES), num_points), products.id),
    )


def _identity_block(six: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Sum over the landmarks of ``basis^T S basis`` [B, I, I], with the matrices S given by ``six`` [B, 6, K]."""
    matrices = six[:, _SYMMETRIC].unflatten(1, (3, 3)).permute(0, 3, 1, 2)  # [B, K, 3, 3]
    half = (matrices @ basis).flatten(1, 2)  # [B, 3 K, I]
    return basis.flatten(0, 1).mT.expand(len(half), -1, -1) @ half


def _derivatives(state: State, residuals: Residuals, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Derivatives of the weighted u and v by the model point, 2 x [n, 3, K], and by the pose, 2 x [n, 6, K].

    Axes come before landmarks, so that all of this runs along memory.
    """
    scale = (residuals.weight.sqrt() / residuals.depth).to(dtype).flatten(0, 1)
    u, v = residuals.normalized_xy.to(dtype).flatten(0, 1).unbind(-1)
    x, y, z = (turned * scale for turned in residuals.turned.to(dtype).flatten(0, 1).unbind(-1))
    first, second, third = state.rotation.to(dtype).view(-1, 3, 3, 1).unbind(1)  # rows of R, [n, 3, 1]
    nothing = torch.zeros_like(scale)
    # d(u, v)/dP = [1 0 u; 0 1 v] / d
    by_point_x = (first + third * u[:, None]) * scale[:, None]
    by_point_y = (second + third * v[:, None]) * scale[:, None]
    by_pose_x = (u * y, z - u * x, -y, scale, nothing, u * scale)
    by_pose_y = (v * y - z, -v * x, x, nothing, scale, v * scale)
    return by_point_x, by_point_y, torch.stack(by_pose_x, 1), torch.stack(by_pose_y, 1)


def _symmetric_products(basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of the pairs of modes in the upper triangle, and their columns for all entries [size * size]."""
    size = basis.shape[-1]
    first, second = torch.triu_indices(size, size, device=basis.device)
    places = torch.empty(size, size, dtype=torch.int64, device=basis.device)
    places[first, second] = places[second, first] = torch.arange(len(first), device=basis.device)
    return _pair_products(basis[..., first], basis[..., second]), places.flatten()


def _pair_products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Symmetrised products over pairs of axes, f64: [K, 3, ...] and [K, 3, ...] (both broadcast) to [6 K, ...]."""
    parts = []
    for a, b in _AXES:
        product = first[:, a] * second[:, b]
        parts.append(product if a == b else product + first[:, b] * second[:, a])
    return torch.cat(parts)
