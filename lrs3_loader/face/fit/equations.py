"""The linear equations of one step of a landmark fit, and their solution by conjugate gradients.

Letters: B sequences, T frames of a sequence, I identity modes, E expression modes, D = E + 6 unknowns of a frame,
n = T D + I unknowns of a sequence (I = 0 if the identity is known). The first W unknowns of a frame are weak
(``axes``), S = D - W are not.

The damped Hessian is ``H = P + C``. ``P`` is what can be solved exactly: a block of each frame (that of its weak
unknowns is a diagonal), and the identity as the border of the others (an arrowhead matrix, solved by its Schur
complement). ``C`` couples a frame with its neighbours, unknown by unknown: the smoothness terms without their diagonal.
With ``P`` as the preconditioner, the product of H and a preconditioned vector ``z = P^-1 q`` is ``q + C z``, so that no
product with the blocks is needed beside the preconditioner's. Nocedal and Wright, "Numerical Optimization" (2006),
algorithm 5.3; the product of a direction follows from those of preconditioned vectors as in Chronopoulos and Gear,
"s-step iterative methods for symmetric linear systems" (1989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lrs3_loader.face.fit.terms import POSE_SIZE, Observations, Residuals, State, smoothness_diagonal

if TYPE_CHECKING:
    from lrs3_loader.face.fit.solver import FitProblem

_MIN_CURVATURE = 1e-12  # relative: keeps frames without any landmark (padding) solvable
_pad = torch.nn.functional.pad


@dataclass(frozen=True)
class Smoothness:
    """Half the Hessian of the smoothness terms of a batch, in the precision of the equations."""

    diagonal: torch.Tensor  # [B, T, D]
    bands: torch.Tensor  # [B, 2 R + 1, T, D] factors of the frames -R..R away (0 for the frame itself), R = 1 or 2

    @classmethod
    def of(cls, observations: Observations, dtype: torch.dtype) -> Smoothness:
        """Those of ``velocity_precision`` v and ``acceleration_precision`` a.

        A frame t and the next one are coupled by ``-v[t] - 2 a[t] - 2 a[t - 1]``, and the one after that by ``a[t]``.
        """
        velocity, acceleration = observations.velocity_precision, observations.acceleration_precision
        next_one, reach = -velocity, 1
        if acceleration is not None:
            next_one = next_one - 2 * (_pad(acceleration, (0, 0, 0, 1)) + _pad(acceleration, (0, 0, 1, 0)))
            reach = 2
        itself = torch.zeros_like(_pad(velocity, (0, 0, 0, 1)))
        bands = [_pad(next_one, (0, 0, 1, 0)), itself, _pad(next_one, (0, 0, 0, 1))]
        if acceleration is not None:
            bands = [_pad(acceleration, (0, 0, 2, 0)), *bands, _pad(acceleration, (0, 0, 0, 2))]
        diagonal = smoothness_diagonal(velocity, acceleration)
        assert len(bands) == 2 * reach + 1
        return cls(diagonal.to(dtype), torch.stack(bands, 1).to(dtype))

    def couple(self, moves: torch.Tensor) -> torch.Tensor:
        """Product of C and ``moves`` [B, T, D]."""
        num_bands, num_frames = self.bands.shape[1:3]
        reach = num_bands // 2
        around = _pad(moves, (0, 0, reach, reach)).unfold(1, num_frames, 1)  # [B, 2 R + 1, D, T]
        return (self.bands * around.mT).sum(1)


class NormalEquations:
    """Gauss-Newton equations at one state, damped and factorised, in the precision of the problem's ``ModeProducts``.

    Nothing is scaled: neither a Cholesky factorisation nor preconditioned conjugate gradients depend on the scale of
    the unknowns.
    """

    def __init__(
        self,
        state: State,
        residuals: Residuals,
        problem: FitProblem,
        smoothness: Smoothness,
        damping: torch.Tensor,
    ) -> None:
        """``damping`` [B] is relative to the diagonal."""
        dtype = problem.products.dtype
        damping = damping.to(dtype)[:, None]
        self._smoothness = smoothness
        blocks = problem.curvature(state, residuals)
        stiff = _pad((problem.observations.exp_precision + residuals.bound_curvature).to(dtype), (0, POSE_SIZE))
        stiff.add_(smoothness.diagonal)
        num_weak, damping = blocks.weak.shape[-1], damping[..., None]
        weak = blocks.weak
        if num_weak:
            weak = (weak + stiff[..., :num_weak]).mul_(1 + damping).clamp_(min=_MIN_CURVATURE)
        own = torch.diagonal(blocks.frames, dim1=-2, dim2=-1)
        diagonal = own + stiff[..., num_weak:]
        largest = diagonal.amax(-1, keepdim=True).clamp(min=1.0)
        own.copy_(diagonal + damping * torch.maximum(diagonal, _MIN_CURVATURE * largest))
        border, corner = None, blocks.id
        if problem.id_precision is not None:
            border, corner = blocks.border, corner + problem.id_precision.to(dtype)
            by_id = torch.diagonal(corner, dim1=-2, dim2=-1)
            by_id += damping[..., 0] * by_id.clamp(min=_MIN_CURVATURE)
        self._factors = _Factors(blocks.frames, weak, border, corner)

    def replaced_where(self, chosen: torch.Tensor, other: NormalEquations) -> NormalEquations:
        """Equations with the sequences ``chosen`` [B] bool taken from ``other``. Overwrites ``self``."""
        parts = vars(self._factors)
        for name, mine in parts.items():
            if mine is not None:
                theirs = getattr(other._factors, name)
                parts[name] = torch.where(chosen.view(-1, *[1] * (mine.ndim - 1)), theirs, mine)
        return self

    def step(
        self, gradient: torch.Tensor, id_gradient: torch.Tensor, num_cg: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Solve for the step by ``num_cg`` preconditioned conjugate gradient steps from zero.

        ``gradient`` and ``id_gradient`` are those of ``FitProblem.gradient``. Returns the step of the frames [B, T, D],
        and of the identity [B, I] (None if it is known), f64.
        """
        id_size = id_gradient.shape[-1]
        slope = gradient.flatten(1)
        if id_size:
            slope = torch.cat((slope, id_gradient), 1)
        step = self._conjugate_gradients(slope.to(self._smoothness.bands.dtype), gradient.shape, num_cg).double()
        return step[:, : step.shape[1] - id_size].view(gradient.shape), step[:, -id_size:] if id_size else None

    def _conjugate_gradients(self, slope: torch.Tensor, shape: torch.Size, num_cg: int) -> torch.Tensor:
        """Minimise ``x^T H x / 2 + slope^T x``: x [B, n], whose slope ``H x + slope`` is kept beside it."""
        tiny = torch.finfo(slope.dtype).tiny
        both = torch.stack((torch.zeros_like(slope), slope))  # x and its slope, [2, B, n]
        direction = energy = None
        for _ in range(num_cg):
            slope = both[1]
            ready = self._factors.solve(slope, shape)
            next_energy = _dot(slope, ready)
            # The same for H times these, [2, B, n].
            pair = torch.stack((ready, self._image(slope, ready, shape)))
            if direction is None or energy is None:
                direction = pair
            else:
                direction = torch.addcmul(pair, next_energy / energy.clamp(min=tiny), direction)
            energy = next_energy
            length = energy / _dot(*direction).clamp(min=tiny)
            both = torch.addcmul(both, length, direction, value=-1)
        return both[0]

    def _image(self, slope: torch.Tensor, ready: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Product of H and ``ready``, to which P maps ``slope``."""
        num_frames = shape[1] * shape[2]
        coupled = self._smoothness.couple(ready[:, :num_frames].view(shape)).flatten(1)
        return slope + (coupled if ready.shape[1] == num_frames else _pad(coupled, (0, ready.shape[1] - num_frames)))


class _Factors:
    """Solves the arrowhead ``P`` by triangular factors of its blocks and of its Schur complement.

    In double precision, whose rounding leaves room for it, the blocks' factors are inverted: GPUs are slow with
    triangular solutions of single vectors.

    Args:
        frames: [B, T, S, S].
        weak: [B, T, W], a diagonal.
        border: [B, T, I, S] of identity and frames; None if the identity is known.
        corner: [B, I, I].
    """

    def __init__(
        self, frames: torch.Tensor, weak: torch.Tensor, border: torch.Tensor | None, corner: torch.Tensor
    ) -> None:
        self.weak = weak
        self.lower = _cholesky(frames)  # or its inverse
        self.half: torch.Tensor | None = None  # [B, I, T S]
        self.id_factor: torch.Tensor | None = None  # [B, I, I]
        if frames.dtype == torch.float64:
            identity = torch.eye(frames.shape[-1], dtype=frames.dtype, device=frames.device).expand_as(frames)
            self.lower = torch.linalg.solve_triangular(self.lower, identity, upper=False)
        if border is not None:
            if frames.dtype == torch.float64:
                half = border @ self.lower.mT
            else:
                half = torch.linalg.solve_triangular(self.lower.mT, border, upper=True, left=False)
            self.half = half.transpose(1, 2).flatten(2)
            self.id_factor = _cholesky(corner - self.half @ self.half.mT)

    def solve(self, right: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Solution [B, T D + I] of ``P x = right``; ``shape`` is [B, T, D]."""
        num_frames, num_weak = shape[1] * shape[2], self.weak.shape[-1]
        right_frames = right[:, :num_frames].view(shape)
        half = self._solve_lower(right_frames[..., num_weak:])
        by_id = right[:, num_frames:]
        if self.half is not None and self.id_factor is not None:
            rest = by_id - _apply(half.flatten(1), self.half.mT)
            by_id = torch.cholesky_solve(rest[..., None], self.id_factor)[..., 0]
            half = half - _apply(by_id, self.half).view(half.shape)
        found = self._solve_upper(half)
        if num_weak:
            found = torch.cat((right_frames[..., :num_weak] / self.weak, found), -1)
        return torch.cat((found.flatten(1), by_id), 1) if by_id.shape[1] else found.flatten(1)

    def _solve_lower(self, right: torch.Tensor) -> torch.Tensor:
        if self.lower.dtype == torch.float64:
            return _apply(right, self.lower.mT)
        return torch.linalg.solve_triangular(self.lower, right[..., None], upper=False)[..., 0]

    def _solve_upper(self, right: torch.Tensor) -> torch.Tensor:
        if self.lower.dtype == torch.float64:
            return _apply(right, self.lower)
        return torch.linalg.solve_triangular(self.lower.mT, right[..., None], upper=True)[..., 0]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Scalar products [B, 1] of the rows of ``a`` and ``b`` [B, n], equal to the bit wherever a row lies on a CPU."""
    if a.device.type == "cpu":
        return (a * b).sum(1, keepdim=True)
    return (a[:, None] @ b[..., None])[..., 0]


def _apply(vector: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Row vectors [..., n] times [..., n, m]: six times as fast on a CPU as the transposed product with columns."""
    return (vector[..., None, :] @ matrix)[..., 0, :]


def _cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Cholesky factor without a check: one that fails gives a step that is rejected, and more damping next time."""
    return torch.linalg.cholesky_ex(matrix).L
