"""Gauss-Newton approximation of the landmark term's Hessian, computed without forming Jacobians.

Letters: B sequences, T frames of a sequence, n = B T frames, K landmarks, I identity modes, E expression modes, the
first W of which are weak (``axes``) and S = E - W are not; D = S + 6 unknowns of a frame that are not weak.

A landmark's normalized image coordinates (u, v) have the derivatives ``a, b`` [3] by the place of its point on the
model. Its share of the Hessian's expression block is ``basis^T (a a^T + b b^T) basis``: linear in the six numbers of a
symmetric 3 x 3 matrix. So the blocks of all frames are one product of matrices, [frames, 6 K] times a table of the
model's [6 K, pairs of modes].
On one CPU thread that takes half the time of forming the Jacobians and their squares. Of weak modes there is only the
diagonal: what they have in common with each other and with the rest is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lrs3_loader.face.fit.terms import POSE_SIZE, Basis, Residuals, State, multiply

_AXES = ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))
_SYMMETRIC = (0, 3, 5, 3, 1, 4, 5, 4, 2)  # entries of a symmetric 3 x 3 matrix among these


class ModeProducts:
    """Products of pairs of a model's modes at every landmark, computed once for a model.

    ``dtype`` is the precision of the tables, and of all curvatures. Rows: axes first, then landmarks. Pairs of
    expression modes are in the order of ``torch.triu_indices``, then the squares of the ``num_weak`` weak ones, which
    come first in ``basis``. ``places`` [D * D] are the columns of a frame's block among the pairs, then the products of
    each of the 6 unknowns of a pose with the modes, then those with the pose.
    """

    def __init__(self, basis: Basis, dtype: torch.dtype = torch.float32, num_weak: int = 0) -> None:
        self.dtype, self.num_weak = dtype, num_weak
        weak, strong = basis.exp[..., :num_weak], basis.exp[..., num_weak:]
        self.num_strong, self.num_id = strong.shape[-1], basis.id.shape[-1]
        exp_exp, exp_places = _symmetric_products(strong)
        self.places = _block_places(exp_places, exp_exp.shape[1])
        self.exp_exp = torch.cat((exp_exp, _pair_products(weak, weak)), 1).to(dtype)  # [6 K, S (S + 1) / 2 + W]
        self.symmetric = torch.tensor(_SYMMETRIC, device=basis.exp.device)
        self.exp = strong.transpose(0, 1).to(dtype).contiguous()  # [3, K, S]
        self.id = basis.id.to(dtype)  # [K, 3, I]
        self.id_rows = basis.id.transpose(0, 1).flatten(0, 1).mT.to(dtype).contiguous()  # [I, 3 K]
        self.flat = torch.cat((strong, basis.id), -1).transpose(0, 1).flatten(0, 1).to(dtype)  # [3 K, S + I]


@dataclass(frozen=True)
class Curvature:
    """Half the Gauss-Newton Hessian of the landmark term, in the precision of the ``ModeProducts``."""

    frames: torch.Tensor  # [B, T, D, D], by the unknowns that are not weak
    weak: torch.Tensor  # [B, T, W] diagonal of the weak axes
    border: torch.Tensor  # [B, T, I, D] between identity and frame, likewise; [B, T, 0, D] if the identity is known
    id: torch.Tensor  # [B, I, I] summed over the frames, or [B, 0, 0]


def curvature(state: State, residuals: Residuals, products: ModeProducts, with_identity: bool) -> Curvature:
    """Half the Gauss-Newton Hessian at ``state``, whose residuals are ``residuals``."""
    batch, num_frames, num_points = residuals.weight.shape
    by_point, by_pose = _derivatives(state, residuals, products.dtype)
    squares, neighbours = by_point * by_point, by_point * by_point.roll(-1, 2)
    six = torch.cat((squares[:, 0] + squares[:, 1], neighbours[:, 0] + neighbours[:, 1]), 1)
    six = six.view(batch, num_frames, len(_AXES) * num_points)
    mixed = by_pose[:, 0, :, None] * by_point[:, 0, None]
    mixed = mixed.addcmul_(by_pose[:, 1, :, None], by_point[:, 1, None])  # [B T, 6, 3, K]
    num_exp, num_id = products.num_strong, products.num_id if with_identity else 0
    mixed = multiply(mixed.view(batch, -1, 3 * num_points), products.flat[:, : num_exp + num_id])
    mixed = mixed.view(batch, num_frames, POSE_SIZE, -1)

    size = num_exp + POSE_SIZE
    both = by_pose.transpose(1, 2).flatten(2)
    pairs = multiply(six, products.exp_exp)
    pairs, weak = pairs.split((pairs.shape[-1] - products.num_weak, products.num_weak), -1)
    parts = (
        pairs,
        mixed[..., :num_exp].flatten(2),
        (both @ both.mT).view(batch, num_frames, -1),
    )
    frames = torch.cat(parts, -1).flatten(0, 1).index_select(1, products.places).view(batch, num_frames, size, size)
    if not with_identity:
        return Curvature(frames, weak, frames[..., :0, :], frames[:, 0, :0, :0])
    border = _border_block(six.view(-1, len(_AXES), num_points), products).unflatten(0, (batch, num_frames))
    return Curvature(
        frames,
        weak,
        torch.cat((border, mixed[..., num_exp:].transpose(-1, -2)), -1),
        _identity_block(six.sum(1).view(batch, len(_AXES), num_points), products),
    )


def _border_block(six: torch.Tensor, products: ModeProducts) -> torch.Tensor:
    """``id_basis^T S exp_basis`` [n, I, S] of each frame, with the matrices S given by ``six`` [n, 6, K]."""
    basis = products.exp
    matrices = six.index_select(1, products.symmetric).unflatten(1, (3, 3))[..., None]  # [n, 3, 3, K, 1]
    half = matrices[:, :, 0] * basis[0]  # [n, 3, K, S]
    half = half.addcmul_(matrices[:, :, 1], basis[1]).addcmul_(matrices[:, :, 2], basis[2]).flatten(1, 2)
    return torch.bmm(products.id_rows.expand(len(half), -1, -1), half)


def _identity_block(six: torch.Tensor, products: ModeProducts) -> torch.Tensor:
    """Sum over the landmarks of ``basis^T S basis`` [B, I, I], with the matrices S given by ``six`` [B, 6, K]."""
    basis = products.id
    matrices = six.index_select(1, products.symmetric).unflatten(1, (3, 3)).permute(0, 3, 1, 2)  # [B, K, 3, 3]
    half = (matrices @ basis).flatten(1, 2)  # [B, 3 K, I]
    return basis.flatten(0, 1).mT.expand(len(half), -1, -1) @ half


def _derivatives(state: State, residuals: Residuals, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of the weighted u and v by the model point, [n, 2, 3, K], and by the pose, [n, 2, 6, K].

    Axes come before landmarks, so that all of this runs along memory.
    """
    scale = (residuals.weight.sqrt() / residuals.depth).to(dtype).flatten(0, 1)
    u, v = (residuals.normalized_xy.to(dtype).flatten(0, 1).mT * scale[:, None]).unbind(1)
    nothing = torch.zeros_like(scale)
    # d(u, v)/dP = [1 0 u; 0 1 v] / d
    by_place = torch.stack((scale, nothing, u, nothing, scale, v), 1).unflatten(1, (2, 3))  # [n, 2, 3, K]
    turned = residuals.turned.to(dtype).flatten(0, 1).mT[:, None]
    by_turn = torch.linalg.cross(turned.expand_as(by_place), by_place, dim=2)
    by_point = state.rotation.to(dtype).flatten(0, 1).mT[:, None] @ by_place
    return by_point, torch.cat((by_turn, by_place), 2)


def _block_places(exp_places: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Columns of a frame's block [D * D] among [pairs of modes, pose by modes, pose by pose]."""
    num_exp = math.isqrt(len(exp_places))
    mixed = num_pairs + torch.arange(POSE_SIZE * num_exp, device=exp_places.device).view(POSE_SIZE, num_exp)
    pose = num_pairs + mixed.numel() + torch.arange(POSE_SIZE**2, device=exp_places.device).view(POSE_SIZE, POSE_SIZE)
    upper = torch.cat((exp_places.view(num_exp, num_exp), mixed.T), 1)
    return torch.cat((upper, torch.cat((mixed, pose), 1))).flatten()


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
