"""Batched Levenberg-Marquardt for landmark fitting, with known or unknown identity.

Letters: B sequences, T frames of a sequence, K landmarks, I identity modes, E expression modes, D = E + 6 unknowns of
a frame.

Each frame of a sequence has one block of the Hessian. Frames are coupled by the smoothness terms and, if the identity
is unknown, by that. The step is found by a few preconditioned conjugate gradient steps (``equations``). See Nocedal and
Wright, "Numerical Optimization" (2006), chapters 5 and 10.

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
from lrs3_loader.face.fit.equations import NormalEquations, Smoothness
from lrs3_loader.face.fit.terms import Basis, Observations, Residuals, State, compute_residuals, cost, gradient, where
from lrs3_loader.face.fit.types import FitConfig
from lrs3_loader.runtime.transfer import to_device

_FIRST_DAMPING = 1e-3
_MIN_DAMPING = 1e-5  # of a unit diagonal: above the rounding of a factorisation in single precision
_MAX_DAMPING = 1e6
_NEXT_GAIN = 0.2  # of the tolerance: a step with a reused Hessian that would gain less is not made


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
    """Minimise by Levenberg-Marquardt with a separate damping for every sequence: (final state, converged [B] bool
    on the host).

    A sequence has converged when a step changes its objective by less than ``tolerance``, relatively; it is not moved
    any more. Near its minimum the Hessian hardly changes: it is then reused (a chord method) for as long as every step
    improves the objective. Gains of such steps fall geometrically, so that a sequence has converged, too, when the next
    one would gain a small part of ``tolerance``. All of this is decided for each sequence by itself, on the host.
    """
    residuals = problem.residuals(state)
    best, device = problem.cost(state, residuals).cpu(), residuals.cost.device
    converged = torch.zeros_like(best, dtype=torch.bool)
    damping = torch.full_like(best, _FIRST_DAMPING)
    smoothness = Smoothness.of(problem.observations, problem.products.dtype)
    system, reuse, last_gain = None, converged, torch.zeros_like(best)
    for _ in range(config.max_iterations):
        if system is None or not (reuse | converged).all():
            fresh = NormalEquations(state, residuals, problem, smoothness, to_device(damping, device))
            system = (
                fresh if system is None or not reuse.any() else fresh.replaced_where(to_device(reuse, device), system)
            )
        candidate = state.moved(*system.step(*problem.gradient(state, residuals), config.num_cg))
        tried = problem.residuals(candidate)
        value = problem.cost(candidate, tried).cpu()
        better = (value < best) & ~converged
        gain = (best - value) / best
        state = where(better, candidate, state)
        best = torch.where(better, value, best)
        settled = better | converged  # what a sequence that had converged goes on with does not count
        settling = reuse & better & (gain.square() <= _NEXT_GAIN * config.tolerance * last_gain)
        converged = converged | (gain.abs() <= config.tolerance) | settling
        if converged.all():
            break
        damping = torch.where(better, damping * 0.2, damping * 10).clamp(_MIN_DAMPING, _MAX_DAMPING)
        residuals = tried if settled.all() else where(better, tried, residuals)
        last_gain = torch.where(better, gain, 0.0)
        reuse = better & (gain < config.hessian_reuse_tol) & ~converged
    return state, converged
