"""Batched Levenberg-Marquardt for landmark fitting, with known or unknown identity.

Letters: B sequences, T frames of a sequence, K landmarks, I identity modes, E expression modes, D = E + 6 unknowns of
a frame.

Each frame of a sequence has one block of the Hessian. Frames are coupled by the smoothness terms and, if the identity
is unknown, by that (an arrowhead matrix: the identity is the border of the blocks). The step is found by a few
conjugate gradient steps, preconditioned by the part that can be solved exactly: the blocks, and the border by its
Schur complement. See Nocedal and Wright, "Numerical Optimization" (2006), chapters 5 and 10.

Bounds of coefficients are a steep quadratic outside them, whose curvature counts only near and beyond them (a
semismooth Newton method). Compared with projection onto the bounds: as good a fit, and converged after five iterations
where projection still zigzags after twenty.

Steps amplify the rounding of the equations up to ten thousand times: in single precision, a last bit that depends on
the other sequences of a batch moves coefficients by up to 5e-4. So either every sequence has the shapes that it would
have alone (``windows``, ``terms.multiply``) and its result does not depend on the others at all, or the equations are
in double precision and it depends on them by less than 1e-6: the precision is that of ``ModeProducts``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lrs3_loader.face.fit.curvature import Curvature, ModeProducts, curvature
from lrs3_loader.face.fit.terms import (
    POSE_SIZE,
    Basis,
    Observations,
    Residuals,
    State,
    compute_residuals,
    cost,
    gradient,
    smoothness_diagonal,
    smoothness_gradient,
    where,
)
from lrs3_loader.face.fit.types import FitConfig

_FIRST_DAMPING = 1e-3
_MIN_DAMPING = 1e-5  # of a unit diagonal: above the rounding of a factorisation in single precision
_MAX_DAMPING = 1e6
_MIN_CURVATURE = 1e-12  # relative: keeps frames without any landmark (padding) solvable
_pad = torch.nn.functional.pad


@dataclass(frozen=True)
class FitProblem:
    """Sequences to be fitted: with ``neutral``, for known identities; with ``id_precision``, the identity too."""

    basis: Basis
    products: ModeProducts  # of the basis
    observations: Observations
    neutral: torch.Tensor | None = None  # [B, K, 3] f64, landmarks of the known identities
    id_precision: torch.Tensor | None = None  # [B, I, I] f64

    def residuals(self, state: State) -> Residuals:
        neutral = self.basis.neutral(state.id) if self.neutral is None else self.neutral
        return compute_residuals(state, neutral, self.basis, self.observations)

    def cost(self, state: State, residuals: Residuals) -> torch.Tensor:
        """Objective [B] f64 at ``state``, whose residuals are ``residuals``."""
        total = cost(state, residuals, self.observations)
        if self.id_precision is None:
            return total
        return total + ((state.id[:, None] @ self.id_precision)[:, 0] * state.id).sum(-1)

    def gradient(self, state: State, residuals: Residuals) -> tuple[torch.Tensor, torch.Tensor]:
        """Half the gradient, f64, by the frames [B, T, D] and by the identity [B, I] ([B, 0] if it is known)."""
        by_frames, by_id = gradient(state, residuals, self.basis, self.observations)
        if self.id_precision is None:
            return by_frames, by_id[:, :0]
        return by_frames, by_id + (self.id_precision @ state.id[..., None])[..., 0]

    def curvature(self, state: State, residuals: Residuals) -> Curvature:
        """Half the Gauss-Newton Hessian of the data terms (no priors, no smoothness)."""
        return curvature(state, residuals, self.products, with_identity=self.id_precision is not None)


def minimise(state: State, problem: FitProblem, config: FitConfig) -> tuple[State, torch.Tensor]:
    """Minimise by Levenberg-Marquardt with a separate damping for every sequence: (final state, converged [B] bool).

    A sequence has converged when a step changes its objective by less than ``tolerance``, relatively; it is not moved
    any more. Near its minimum the Hessian hardly changes: it is then reused (a chord method) for as long as every step
    improves the objective. All of this is decided for each sequence by itself.
    """
    residuals = problem.residuals(state)
    best = problem.cost(state, residuals)
    converged = torch.zeros_like(best, dtype=torch.bool)
    damping = torch.full_like(best, _FIRST_DAMPING)
    system, reuse = None, converged
    for _ in range(config.max_iterations):
        if system is None or not bool(reuse.all()):
            fresh = NormalEquations(state, residuals, problem, damping)
            system = fresh if system is None else fresh.replaced_where(reuse, system)
        candidate = state.moved(*system.step(*problem.gradient(state, residuals), config.num_cg))
        tried = problem.residuals(candidate)
        value = problem.cost(candidate, tried)
        better = (value < best) & ~converged
        gain = (best - value) / best
        state = where(better, candidate, state)
        best = torch.where(better, value, best)
        converged = converged | (gain.abs() <= config.tolerance)
        damping = torch.where(better, damping * 0.2, damping * 10).clamp(_MIN_DAMPING, _MAX_DAMPING)
        if bool(converged.all()):
            break
        residuals = where(better, tried, residuals)
        reuse = converged | (better & (gain < config.hessian_reuse_tol))
    return state, converged


def _cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Cholesky factor without a check: one that fails gives a step that is rejected, and more damping next time."""
    return torch.linalg.cholesky_ex(matrix).L


def _apply(vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Row vectors [..., n] times [..., n, m]: six times as fast on a CPU as the transposed product with columns."""
    return (vector[..., None, :] @ matrix)[..., 0, :]


class NormalEquations:
    """Gauss-Newton equations at one state, scaled to a unit diagonal, damped and factorised.

    They are in the precision of the problem's ``ModeProducts``. Jacobi scaling takes the condition number from about
    1e6 to 1e4, which single precision can represent.
    """

    def __init__(self, state: State, residuals: Residuals, problem: FitProblem, damping: torch.Tensor) -> None:
        """``damping`` [B] is relative to the diagonal."""
        observations = problem.observations
        self._dtype = dtype = problem.products.dtype
        self._damping = damping.to(dtype).view(-1, 1, 1)
        acceleration = observations.acceleration_precision
        acceleration = None if acceleration is None else acceleration.to(dtype)
        self._smooth = observations.velocity_precision.to(dtype), acceleration
        blocks = problem.curvature(state, residuals)
        stiff = (observations.exp_precision + residuals.bound_curvature).to(dtype)
        self._factor(blocks.frames, _pad(stiff, (0, POSE_SIZE)))
        self._id_size = blocks.id.shape[-1]
        if problem.id_precision is not None:
            self._add_border(blocks.border, blocks.id + problem.id_precision.to(dtype))

    def replaced_where(self, chosen: torch.Tensor, other: NormalEquations) -> NormalEquations:
        """Equations with the sequences ``chosen`` [B] bool taken from ``other``. Overwrites ``self``."""
        if bool(chosen.any()):
            for name, mine in vars(self).items():
                if isinstance(mine, torch.Tensor):
                    picked = torch.where(chosen.view(-1, *[1] * (mine.ndim - 1)), getattr(other, name), mine)
                    setattr(self, name, picked)
        return self

    def _factor(self, own: torch.Tensor, stiff: torch.Tensor) -> None:
        """Factorise the blocks ``own`` [B, T, D, D] (overwritten), with ``stiff`` [B, T, D] added to the diagonal."""
        diagonal = torch.diagonal(own, dim1=-2, dim2=-1)
        diagonal += stiff
        links = smoothness_diagonal(*self._smooth)
        largest = (diagonal + links).amax(-1, keepdim=True).clamp(min=1.0)
        self._scale = torch.rsqrt(torch.maximum(diagonal + links, _MIN_CURVATURE * largest))
        self._own = own.mul_(self._scale[..., :, None]).mul_(self._scale[..., None, :])
        diagonal += self._damping
        damped = self._own.clone()
        torch.diagonal(damped, dim1=-2, dim2=-1).add_(links * self._scale**2)
        self._lower = _cholesky(damped)

    def _add_border(self, border: torch.Tensor, id_own: torch.Tensor) -> None:
        """Add the border: ``border`` [B, T, I, D] of identity and frames (overwritten), ``id_own`` [B, I, I]."""
        diagonal = torch.diagonal(id_own, dim1=-2, dim2=-1)
        self._id_scale = torch.rsqrt(diagonal.clamp(min=_MIN_CURVATURE))
        border = border.mul_(self._scale[..., None, :]).mul_(self._id_scale[:, None, :, None])
        own = id_own * self._id_scale[..., :, None] * self._id_scale[..., None, :]
        self._id_own = own + torch.diag_embed(self._damping[:, 0].expand_as(diagonal))
        half = torch.linalg.solve_triangular(self._lower.mT, border, upper=True, left=False)
        self._border, self._half = (part.transpose(1, 2).flatten(2) for part in (border, half))  # [B, I, T D]
        self._id_factor = _cholesky(self._id_own - self._half @ self._half.mT)

    def step(
        self, gradient: torch.Tensor, id_gradient: torch.Tensor, num_cg: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Solve for the step by ``num_cg`` preconditioned conjugate gradient steps from zero.

        ``gradient`` and ``id_gradient`` are those of ``FitProblem.gradient``. Returns the step of the frames [B, T, D],
        and of the identity [B, I] (None if it is known), f64.
        """
        shape = gradient.shape
        right = (self._scale * gradient.to(self._dtype)).flatten(1)
        if self._id_size:
            right = torch.cat((right, self._id_scale * id_gradient.to(self._dtype)), 1)
        moves, id_moves = self._split(self._conjugate_gradients(-right, shape, num_cg), shape)
        step = (self._scale * moves).double()
        return step, (self._id_scale * id_moves).double() if self._id_size else None

    def _split(self, vector: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        moves, id_moves = vector.split((vector.shape[1] - self._id_size, self._id_size), 1)
        return moves.reshape(shape), id_moves

    def _conjugate_gradients(self, remainder: torch.Tensor, shape: torch.Size, num_cg: int) -> torch.Tensor:
        solution = torch.zeros_like(remainder)
        ready = self._precondition(remainder, shape)
        direction = ready
        energy = (remainder * ready).sum(1, keepdim=True)
        tiny = torch.finfo(energy.dtype).tiny
        for number in range(num_cg):
            image = self._product(direction, shape)
            length = energy / (direction * image).sum(1, keepdim=True).clamp(min=tiny)
            solution = solution + length * direction
            if number + 1 == num_cg:
                break
            remainder = remainder - length * image
            ready = self._precondition(remainder, shape)
            next_energy = (remainder * ready).sum(1, keepdim=True)
            direction = ready + (next_energy / energy.clamp(min=tiny)) * direction
            energy = next_energy
        return solution

    def _product(self, vector: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Damped Hessian times ``vector`` [B, T D + I], in scaled variables."""
        moves, by_id = self._split(vector, shape)
        unscaled = self._scale * moves
        coupled = self._scale * smoothness_gradient(unscaled[:, 1:] - unscaled[:, :-1], *self._smooth)
        image = (_apply(moves, self._own) + coupled).flatten(1)
        if not self._id_size:
            return image
        of_id = _apply(by_id, self._id_own) + _apply(moves.flatten(1), self._border.mT)
        return torch.cat((image + _apply(by_id, self._border), of_id), 1)

    def _precondition(self, vector: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Solve for ``vector`` [B, T D + I] without the coupling of neighbours (except for its diagonal)."""
        moves, by_id = self._split(vector, shape)
        half = torch.linalg.solve_triangular(self._lower, moves[..., None], upper=False)
        if self._id_size:
            rest = by_id - _apply(half.flatten(1), self._half.mT)
            by_id = torch.cholesky_solve(rest[..., None], self._id_factor)[..., 0]
            half = half - _apply(by_id, self._half).view(half.shape)
        solved = torch.linalg.solve_triangular(self._lower.mT, half, upper=True).flatten(1)
        return torch.cat((solved, by_id), 1) if self._id_size else solved
