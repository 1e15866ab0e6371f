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
from functools import cached_property

import torch

from lrs3_loader.face.fit.terms import POSE_SIZE, Basis, Residuals, State

_AXES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class ModeProducts:
    """Products of pairs of a model's modes at every landmark, f32, computed once for a model.

    Rows: axes first, then landmarks.
    """

    def __init__(self, basis: Basis) -> None:
        self._id, self._exp = basis.id, basis.exp
        self.num_exp, self.num_id = basis.exp.shape[-1], basis.id.shape[-1]

    @cached_property
    def exp_exp(self) -> torch.Tensor:
        """Products of expression modes [6 K, E (E + 1) / 2], pairs in the order of ``torch.triu_indices``."""
        return _upper(self._exp)

    @cached_property
    def id_id(self) -> torch.Tensor:
        """Products of identity modes [6 K, I (I + 1) / 2], pairs in the order of ``torch.triu_indices``."""
        return _upper(self._id)

    @cached_property
    def id_exp(self) -> torch.Tensor:
        """Products of identity and expression modes [6 K, I E]."""
        return _pair_products(self._id[..., None], self._exp[:, :, None]).flatten(1)

    @cached_property
    def flat(self) -> torch.Tensor:
        """Both bases, concatenated [3 K, E + I]."""
        return torch.cat((self._exp, self._id), -1).transpose(0, 1).flatten(0, 1).float()

    @cached_property
    def exp_places(self) -> torch.Tensor:
        """Column [E E] of ``exp_exp`` for each entry of an expression block."""
        return _places(self.num_exp, self._exp.device)

    @cached_property
    def id_places(self) -> torch.Tensor:
        """Column [I I] of ``id_id`` for each entry of an identity block."""
        return _places(self.num_id, self._id.device)


@dataclass(frozen=True)
class Curvature:
    """Half the Gauss-Newton Hessian of the landmark term, f32."""

    frames: torch.Tensor  # [B, T, D, D]
    border: torch.Tensor  # [B, T, I, D] between identity and frame, [B, T, 0, D] if the identity is known
    id: torch.Tensor  # [B, I, I] summed over the frames, or [B, 0, 0]


def curvature(state: State, residuals: Residuals, products: ModeProducts, with_identity: bool) -> Curvature:
    """Half the Gauss-Newton Hessian at ``state``, whose residuals are ``residuals``."""
    batch, num_frames, num_points = residuals.weight.shape
    shape = (batch * num_frames, num_points)
    by_model_point, by_pose = _derivatives(state, residuals, shape)
    (a, b), (pose_a, pose_b) = by_model_point, by_pose
    six = torch.stack([a[:, i] * a[:, j] + b[:, i] * b[:, j] for i, j in _AXES], 1).flatten(1)
    mixed = pose_a[:, :, None] * a[:, None] + pose_b[:, :, None] * b[:, None]  # [B T, 6, 3, K]
    num_exp, num_id = products.num_exp, products.num_id if with_identity else 0
    mixed = mixed.view(-1, 3 * num_points) @ products.flat[:, : num_exp + num_id]
    mixed = mixed.view(batch, num_frames, POSE_SIZE, -1)

    size = num_exp + POSE_SIZE
    frames = six.new_empty(batch, num_frames, size, size)
    frames[..., :num_exp, :num_exp] = (
        (six @ products.exp_exp).index_select(1, products.exp_places).view(batch, num_frames, num_exp, -1)
    )
    frames[..., num_exp:, :num_exp] = mixed[..., :num_exp]
    frames[..., :num_exp, num_exp:] = mixed[..., :num_exp].transpose(-1, -2)
    both = torch.cat((pose_a, pose_b), -1)
    frames[..., num_exp:, num_exp:] = (both @ both.transpose(-1, -2)).view(batch, num_frames, POSE_SIZE, POSE_SIZE)
    if not with_identity:
        return Curvature(frames, frames[..., :0, :], frames[:, 0, :0, :0])
    border = (six @ products.id_exp).view(batch, num_frames, num_id, num_exp)
    whole = six.view(batch, num_frames, -1).sum(1) @ products.id_id
    return Curvature(
        frames,
        torch.cat((border, mixed[..., num_exp:].transpose(-1, -2)), -1),
        whole.index_select(1, products.id_places).view(batch, num_id, num_id),
    )


Pair = tuple[torch.Tensor, torch.Tensor]


def _derivatives(state: State, residuals: Residuals, shape: tuple[int, int]) -> tuple[Pair, Pair]:
    """Derivatives of the weighted normalized image coordinates by the model point [n, 3, K] and by the pose [n, 6, K].

    ``shape`` is (n, K). Returns one pair of tensors each, for u and v. Axes come before landmarks, so that all of this
    runs along memory.
    """
    scale = (residuals.weight.sqrt() / residuals.depth).float().view(shape)
    u, v = (value.reshape(shape) for value in residuals.normalized_xy.float().unbind(-1))
    x, y, z = (turned.reshape(shape) * scale for turned in residuals.turned.float().unbind(-1))
    first, second, third = state.rotation.float().view(-1, 3, 3, 1).unbind(1)  # rows of R, [n, 3, 1]
    nothing = torch.zeros_like(scale)
    # d(u, v)/dP = [1 0 u; 0 1 v] / d
    by_point_x = (first + third * u[:, None]) * scale[:, None]
    by_point_y = (second + third * v[:, None]) * scale[:, None]
    by_pose_x = (u * y, z - u * x, -y, scale, nothing, u * scale)
    by_pose_y = (v * y - z, -v * x, x, nothing, scale, v * scale)
    return (by_point_x, by_point_y), (torch.stack(by_pose_x, 1), torch.stack(by_pose_y, 1))


def _upper(basis: torch.Tensor) -> torch.Tensor:
    first, second = torch.triu_indices(basis.shape[-1], basis.shape[-1], device=basis.device)
    return _pair_products(basis[..., first], basis[..., second])


def _pair_products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Symmetrised products over pairs of axes, f32: [K, 3, ...] and [K, 3, ...] (both broadcast) to [6 K, ...]."""
    parts = []
    for a, b in _AXES:
        product = first[:, a] * second[:, b]
        if a != b:
            product = product + first[:, b] * second[:, a]
        parts.append(product.float())
    return torch.cat(parts)


def _places(size: int, device: torch.device) -> torch.Tensor:
    """Places [size * size] of the entries of a symmetric matrix in its upper triangle."""
    first, second = torch.triu_indices(size, size, device=device)
    places = torch.empty(size, size, dtype=torch.int64, device=device)
    places[first, second] = torch.arange(len(first), device=device)
    places[second, first] = places[first, second]
    return places.flatten()
