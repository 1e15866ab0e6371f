"""Finds the coefficients of a face model whose landmarks have given places in space: a mesh from 68 points.

The model is linear, so the most likely coefficients minimise, with isotropic noise and independent Gaussian priors,

    sum_t |B_id id + B_exp exp_t - d_t|^2 / noise^2  +  sum_i (id_i / id_sigma_i)^2  +  sum_t,e (exp_te / exp_sigma_e)^2

within the bounds of the expression coefficients. Identity and expressions are solved for in turns; the expressions of
a frame, within bounds, by block principal pivoting (Kim and Park, "Fast nonnegative matrix factorization", 2011).

Letters: T frames, I identity modes, E expression modes.
"""

from __future__ import annotations

import torch

from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel

NOISE_DECIMETRES = 0.003  # standard deviation of a landmark's coordinate
NUM_KEYFRAMES = 200  # from which the identity is estimated
NUM_ROUNDS = 30  # of identity and expression; the landmarks of later ones move by under 0.01 mm
_MAX_EXCHANGES = 20  # of the bounds that hold; three or four do for speech
_FRAMES_AT_A_TIME = 1000  # whose systems of equations are solved together: 22 MB with 53 modes


def coefficients_of_offsets(
    model: FaceModel, offsets: torch.Tensor, id: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find identity and expression of landmarks whose offsets from the mean face are known.

    Args:
        model: on the CPU.
        offsets: [T, 68, 3] decimetres, as ``FaceModel.landmark_offsets``; T > 0.
        id: identity [I] to be kept; None: estimated, one for all frames.

    Returns:
        ``id`` [I] and ``exp`` [T, E], f32.

    Raises:
        ValueError: ``offsets`` or ``id`` have another shape.
    """
    if offsets.ndim != 3 or offsets.shape[1:] != (NUM_LANDMARKS, 3) or not len(offsets):
        raise ValueError(f"offsets must be [T, {NUM_LANDMARKS}, 3] with T > 0, got {list(offsets.shape)}")
    if id is not None and id.shape != (model.num_id,):
        raise ValueError(f"id must be [{model.num_id}], got {list(id.shape)}")
    target = offsets.double().flatten(1) / NOISE_DECIMETRES
    id_basis = model.landmark_id_basis.double().flatten(0, 1) / NOISE_DECIMETRES
    solver = _Expressions(model)
    if id is None:
        keyframes = target[torch.linspace(0, len(target) - 1, min(NUM_KEYFRAMES, len(target))).round().long()]
        shape = _estimate_identity(model, id_basis, solver, keyframes)
    else:
        shape = id.double()
    exp = torch.cat([solver(part - id_basis @ shape) for part in target.split(_FRAMES_AT_A_TIME)])
    return shape.float() if id is None else id, exp.float()


def _estimate_identity(
    model: FaceModel, id_basis: torch.Tensor, solver: _Expressions, target: torch.Tensor
) -> torch.Tensor:
    """Return the identity [I] f64 of frames [T, 204]."""
    shape = torch.zeros(model.num_id, dtype=torch.float64)
    normal = len(target) * id_basis.T @ id_basis + model.id_sigma.double().pow(-2).diag()
    for _ in range(NUM_ROUNDS):
        missing = target - solver(target - id_basis @ shape) @ solver.basis.T
        shape = torch.linalg.solve(normal, id_basis.T @ missing.sum(0))
    return shape


class _Expressions:
    """Finds the most likely expressions of a face whose identity is known."""

    def __init__(self, model: FaceModel) -> None:
        self.basis = model.landmark_exp_basis.double().flatten(0, 1) / NOISE_DECIMETRES  # [204, E]
        self._normal = self.basis.T @ self.basis + model.exp_sigma.double().pow(-2).diag()
        self._bounds = None if model.exp_bounds is None else model.exp_bounds.double()

    def __call__(self, target: torch.Tensor) -> torch.Tensor:
        """Return expressions [T, E] f64 for what the identity leaves of the offsets, [T, 204] over the noise."""
        right = target @ self.basis
        exp = torch.linalg.solve(self._normal, right.T).T
        if self._bounds is None:
            return exp
        low, high = self._bounds
        at_low, at_high = exp < low, exp > high
        for _ in range(_MAX_EXCHANGES):
            exp = self._with_fixed(right, at_low | at_high, torch.where(at_low, low, high))
            slope = exp @ self._normal - right
            # A bound holds if the objective falls beyond it; a free coefficient that passes one is set to it.
            now_low = torch.where(at_low, slope > 0, ~at_high & (exp < low))
            now_high = torch.where(at_high, slope < 0, ~at_low & (exp > high))
            if torch.equal(now_low, at_low) and torch.equal(now_high, at_high):
                break
            at_low, at_high = now_low, now_high
        return exp.clamp(low, high)

    def _with_fixed(self, right: torch.Tensor, fixed: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Solve for the coefficients that are not ``fixed`` [T, E] to a ``value`` [T, E]."""
        held = torch.where(fixed, value, 0.0)
        system = torch.where(fixed[:, :, None] | fixed[:, None, :], 0.0, self._normal) + fixed.double().diag_embed()
        return torch.linalg.solve(system, torch.where(fixed, value, right - held @ self._normal))
