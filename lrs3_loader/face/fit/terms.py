"""Objective of landmark fitting: residuals, priors and smoothness, with their analytic derivatives.

Letters: B sequences (clips, or windows of clips), T frames of a sequence, K landmarks, I identity modes, E expression
modes, D = E + 6 unknowns of a frame in the order [expression, rotation, translation].

**Normalized image coordinates** (``normalized_xy``) do not depend on the resolution: pixels from the principal point,
y up, in focal lengths, ``((u - cx) / f, -(v - cy) / f)``. With ``P = R X + t`` and the depth ``d = DISTANCE - P_z``, a
point X of the model lies at ``(P_x / d, P_y / d)``. A rotation is updated on the left, ``R <- exp([w]x) R``, so
``dP/dw = -[R X]x``, ``dP/dt = 1`` and ``dP/d(coefficient) = R basis``: no Euler angle is a variable and no pose is
singular.

The objective is twice a negative log posterior:

    sum over frames and landmarks   rho(precision |predicted - measured|^2)
    + sum over frames               exp_precision . (exp - exp_mean)^2
                                    + bound_precision |exp outside its bounds|^2 (smoothed)
    + sum over pairs of frames      velocity_precision . (change of [exp, rotation, translation])^2
    + sum over triples of frames    acceleration_precision . (second difference)^2
    + id^T id_precision id          (if the identity is unknown)

with ``rho(s) = s``, or the pseudo-Huber loss ``2 c^2 (sqrt(1 + s / c^2) - 1)``, which is quadratic up to about c
standard deviations and linear beyond (Charbonnier et al., "Deterministic edge-preserving regularization in computed
imaging", IEEE TIP 1997).

Objective, gradient and unknowns are in double precision, so that convergence is seen clearly; curvatures, which only
steer the steps, may be in single precision (``curvature.ModeProducts``). "Half" derivatives leave out the factor 2 of a
derivative of squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch

from lrs3_loader.face.geometry.camera import DISTANCE
from lrs3_loader.face.geometry.rotation import axis_angle_to_matrix
from lrs3_loader.runtime.transfer import to_device

POSE_SIZE = 6
_pad = torch.nn.functional.pad


def multiply(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Product [B, T, m] of ``rows`` [B, T, n] and ``table`` [n, m].

    On a CPU, each sequence is multiplied by itself: libraries sum in an order that depends on the number of rows, so a
    product of all rows would give a sequence other last bits in other company.
    """
    if rows.device.type == "cpu":
        return torch.bmm(rows, table.expand(len(rows), -1, -1))
    return rows @ table


@dataclass(frozen=True)
class Basis:
    """Rows of a face model at the landmarks, f64."""

    mean: torch.Tensor  # [K, 3]
    id: torch.Tensor  # [K, 3, I]
    exp: torch.Tensor  # [K, 3, E]
    bounds: torch.Tensor  # [2, E], infinite where the model has none

    def neutral(self, id: torch.Tensor) -> torch.Tensor:
        """Landmarks [B, K, 3] for the identities ``id`` [B, I] without expression."""
        return self.mean + multiply(id[:, None], self.id.flatten(0, 1).mT).view(-1, *self.mean.shape)

    def offsets(self, exp: torch.Tensor) -> torch.Tensor:
        """Offsets [B, T, K, 3] of the landmarks by the expressions ``exp`` [B, T, E]."""
        return multiply(exp, self.exp.flatten(0, 1).mT).view(*exp.shape[:2], *self.mean.shape)


@dataclass(frozen=True)
class Observations:
    """Measured landmarks of a batch, and the precisions (inverse variances) of all terms; f64."""

    normalized_xy: torch.Tensor  # [B, T, K, 2], 0 where the precision is 0
    precision: torch.Tensor  # [B, T, K], weight / variance of normalized_xy; 0: not seen
    exp_precision: torch.Tensor  # [B, T, E], 0 in padding
    exp_mean: torch.Tensor  # [B, T, E]
    bound_precision: float
    real: torch.Tensor  # [B, T] bool, false in padding, whose unknowns must not count at all
    velocity_precision: torch.Tensor  # [B, T - 1, D], 0 where two frames are not neighbours
    acceleration_precision: torch.Tensor | None = None  # [B, T - 2, D], 0 where three frames are not neighbours
    outlier_sigma: float = math.inf  # c in the module docstring


@dataclass(frozen=True)
class State:
    """Unknowns of a batch, f64."""

    id: torch.Tensor  # [B, I]
    exp: torch.Tensor  # [B, T, E]
    rotation: torch.Tensor  # [B, T, 3, 3]
    translation: torch.Tensor  # [B, T, 3]

    def moved(self, step: torch.Tensor, id_step: torch.Tensor | None = None) -> State:
        """State after adding ``step`` [B, T, D] to the frames and ``id_step`` [B, I] to the identity."""
        exp, turn, shift = step.split((self.exp.shape[-1], 3, 3), dim=-1)
        return State(
            id=self.id if id_step is None else self.id + id_step,
            exp=self.exp + exp,
            rotation=axis_angle_to_matrix(turn) @ self.rotation,
            translation=self.translation + shift,
        )

    def select(self, clip: torch.Tensor, index: torch.Tensor) -> State:
        """Batch of clips ``clip`` [B] and frames ``index`` [B, T], from one identity per clip and frames [N, ...]."""
        return State(self.id[clip], self.exp[index], self.rotation[index], self.translation[index])


@dataclass(frozen=True)
class Residuals:
    """Predicted landmarks of a batch at one state, and how far they and the state are from what is expected.

    The objective and its derivatives are computed from these alone. Letters as in ``Observations``.
    """

    normalized_xy: torch.Tensor  # [B, T, K, 2] predicted
    difference: torch.Tensor  # [B, T, K, 2] predicted - measured
    turned: torch.Tensor  # [B, T, K, 3] rotated points R X
    depth: torch.Tensor  # [B, T, K]
    weight: torch.Tensor  # [B, T, K] precision, reduced for outliers
    cost: torch.Tensor  # [B, T, K] rho(precision |difference|^2)
    changes: torch.Tensor  # [B, T - 1, D] from each frame to the next; for the rotation, sin(angle) times the axis
    bound_cost: torch.Tensor  # [B, T, E], see ``bound_penalty``; half its slope and half its curvature
    bound_slope: torch.Tensor  # [B, T, E]
    bound_curvature: torch.Tensor  # [B, T, E]


Fields = TypeVar("Fields", State, Residuals)


def where(chosen: torch.Tensor, new: Fields, old: Fields) -> Fields:
    """``new`` for the sequences ``chosen`` [B] bool, on the host, and ``old`` for the rest."""
    if chosen.all():
        return new
    chosen = to_device(chosen, next(iter(vars(new).values())).device)
    pairs = zip(vars(new).values(), vars(old).values(), strict=True)
    return type(new)(*(torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


def compute_residuals(state: State, neutral: torch.Tensor, basis: Basis, observations: Observations) -> Residuals:
    """Residuals of a state; ``neutral`` [B, K, 3] are the landmarks of its identities without expression."""
    turned = (neutral[:, None] + basis.offsets(state.exp)) @ state.rotation.mT
    placed = turned + state.translation[..., None, :]
    depth = DISTANCE - placed[..., 2]
    normalized_xy = placed[..., :2] / depth[..., None]
    difference = normalized_xy - observations.normalized_xy
    across, down = difference.unbind(-1)  # a reduction over two elements is slow
    cost, weight = observations.precision * (across * across + down * down), observations.precision
    if math.isfinite(observations.outlier_sigma):
        limit = observations.outlier_sigma**2
        root = (1 + cost / limit).sqrt()
        cost, weight = 2 * limit * (root - 1), weight / root
    bounds = bound_penalty(state.exp, basis, observations)
    return Residuals(normalized_xy, difference, turned, depth, weight, cost, _frame_changes(state), *bounds)


def gradient(
    state: State, residuals: Residuals, basis: Basis, observations: Observations
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the gradient: of the objective by the frames [B, T, D], of the landmark term by the identity [B, I]."""
    across, down = ((residuals.weight / residuals.depth)[..., None] * residuals.difference).unbind(-1)
    inwards = across * residuals.normalized_xy[..., 0] + down * residuals.normalized_xy[..., 1]
    by_place = torch.stack((across, down, inwards), -1)
    moment = residuals.turned.mT @ by_place  # its antisymmetric part is the sum of turned x by_place
    skew = moment - moment.mT
    by_turn = torch.stack((skew[..., 1, 2], skew[..., 2, 0], skew[..., 0, 1]), -1)
    by_model_point = (by_place @ state.rotation).flatten(-2)  # [B, T, 3K]
    by_exp = multiply(by_model_point, basis.exp.flatten(0, 1))
    by_exp = by_exp + observations.exp_precision * (state.exp - observations.exp_mean)
    by_exp = by_exp + residuals.bound_slope
    by_id = multiply(by_model_point.sum(1, keepdim=True), basis.id.flatten(0, 1))[:, 0]
    smooth = smoothness_gradient(
        residuals.changes, observations.velocity_precision, observations.acceleration_precision
    )
    return torch.cat((by_exp, by_turn, by_place.sum(-2)), -1) + smooth, by_id


def _frame_changes(state: State) -> torch.Tensor:
    """Change from each frame to the next [B, T - 1, D]; for the rotation, sin(angle) times the axis."""
    relative = state.rotation[:, 1:] @ state.rotation[:, :-1].mT
    skew = relative - relative.mT
    turn = 0.5 * torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1)
    exp = state.exp[:, 1:] - state.exp[:, :-1]
    return torch.cat((exp, turn, state.translation[:, 1:] - state.translation[:, :-1]), -1)


def smoothness_gradient(
    changes: torch.Tensor, velocity: torch.Tensor, acceleration: torch.Tensor | None
) -> torch.Tensor:
    """Half the gradient [B, T, D] of the smoothness terms, for small rotations: linear in ``changes`` [B, T - 1, D].

    ``velocity`` and ``acceleration`` are precisions as in ``Observations``.
    """
    pull = velocity * changes
    if acceleration is not None:
        pull = pull + _difference_transposed(acceleration * (changes[:, 1:] - changes[:, :-1]))
    return _difference_transposed(pull)


def smoothness_diagonal(velocity: torch.Tensor, acceleration: torch.Tensor | None) -> torch.Tensor:
    """Diagonal [B, T, D] of half the Hessian of the smoothness terms."""
    diagonal = _pad(velocity, (0, 0, 1, 0)) + _pad(velocity, (0, 0, 0, 1))
    if acceleration is not None:
        first, middle, last = (_pad(acceleration, (0, 0, *ends)) for ends in ((2, 0), (1, 1), (0, 2)))
        diagonal = diagonal + first + 4 * middle + last
    return diagonal


def _difference_transposed(change: torch.Tensor) -> torch.Tensor:
    """Adjoint of ``x[1:] - x[:-1]`` along time: [B, T - 1, D] -> [B, T, D]."""
    padded = _pad(change, (0, 0, 1, 1))
    return padded[:, :-1] - padded[:, 1:]


def bound_penalty(
    exp: torch.Tensor, basis: Basis, observations: Observations
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Penalty on coefficients outside their bounds: value, half the slope and half the curvature, [B, T, E] each.

    It is ``bound_precision e^2 + constant`` at a distance e outside a bound, and 0 well inside. In between, from ``-w``
    to ``w`` with w a third of the standard deviation, the curvature rises linearly: without that, steps that cross a
    bound would overshoot.
    """
    stiff = observations.bound_precision
    if stiff == 0:
        nothing = torch.zeros_like(exp)
        return nothing, nothing, nothing
    width = stiff**-0.5 / 3
    below, above = basis.bounds[0] - exp, exp - basis.bounds[1]
    reached = (torch.maximum(below, above) + width).clamp(min=0) * observations.real[..., None]
    ramp = reached.clamp(max=2 * width)
    beyond, square = reached - ramp, ramp.square()
    # a cubic up to w, and from there the parabola that continues it
    value = torch.addcmul(beyond * (beyond + 2 * width), ramp, square, value=1 / (6 * width))
    slope = torch.add(beyond, square, alpha=1 / (4 * width)) * stiff
    return value * stiff, torch.where(above > below, slope, -slope), ramp * (stiff / (2 * width))


def cost(state: State, residuals: Residuals, observations: Observations) -> torch.Tensor:
    """Objective [B] without the identity prior."""
    changes = residuals.changes
    terms = [
        residuals.cost,
        observations.exp_precision * (state.exp - observations.exp_mean).square(),
        residuals.bound_cost,
        observations.velocity_precision * changes.square(),
    ]
    if observations.acceleration_precision is not None:
        terms.append(observations.acceleration_precision * (changes[:, 1:] - changes[:, :-1]).square())
    return torch.stack([term.sum((1, 2)) for term in terms]).sum(0)
