"""What landmark fitting minimises: residuals with their analytic derivatives, priors, the objective.

Letters: B sequences (clips, or windows of clips), T frames of a sequence, K landmarks, I identity modes, E expression
modes, D = E + 6 unknowns of a frame in the order [expression, rotation, translation].

Landmarks are given in normalized image coordinates (``normalized_xy``), which do not depend on the resolution: pixels
from the principal point, y up, in focal lengths, ``((u - cx) / f, -(v - cy) / f)``. With ``P = R X + t`` and depth
``d = distance - P_z`` the model predicts ``(P_x / d, P_y / d)``. A rotation is updated on
the left, ``R <- exp([w]x) R``, so ``dP/dw = -[R X]x``, ``dP/dt = 1`` and ``dP/d(coefficient) = R basis``: no Euler
angle is a variable and no pose is singular.

Minimised, as a negative log posterior times two:

    sum over frames and landmarks   rho(precision |predicted - measured|^2)
    + sum over frames               exp_precision . exp^2 + bound_precision |exp outside its bounds|^2 (smoothed)
    + sum over neighbouring frames  velocity_precision . (change of [exp, rotation, translation])^2
    + sum over three in a row       acceleration_precision . (change of that change)^2
    + id^T id_precision id          (where the identity is free)

with ``rho(s) = s``, or for landmarks that may be far off ``2 c^2 (sqrt(1 + s / c^2) - 1)``, quadratic inside about c
standard deviations and linear beyond (pseudo-Huber).

Objective, gradient and unknowns are in double precision, so that convergence is seen clearly; curvatures, which only
steer the steps, in single.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lrs3_loader.face.geometry.camera import DISTANCE
from lrs3_loader.face.geometry.rotation import axis_angle_to_matrix

POSE_SIZE = 6
_pad = torch.nn.functional.pad


@dataclass(frozen=True)
class Basis:
    """The rows of a face model that fitting needs, at the landmarks, f64."""

    mean: torch.Tensor  # [K, 3]
    id: torch.Tensor  # [K, 3, I]
    exp: torch.Tensor  # [K, 3, E]
    bounds: torch.Tensor  # [2, E], infinite where the model has none

    def neutral(self, id: torch.Tensor) -> torch.Tensor:
        """Landmarks [..., K, 3] of the identity ``id`` [..., I] without expression."""
        return self.mean + (id @ self.id.flatten(0, 1).T).unflatten(-1, (-1, 3))


@dataclass(frozen=True)
class Observations:
    """What was measured, and how strongly everything is believed; f64."""

    normalized_xy: torch.Tensor  # [B, T, K, 2], 0 where the precision is 0
    precision: torch.Tensor  # [B, T, K], weight / variance of normalized_xy; 0: not seen
    exp_precision: torch.Tensor  # [E]
    bound_precision: float
    velocity_precision: torch.Tensor  # [B, T - 1, D], 0 where two frames are not neighbours
    acceleration_precision: torch.Tensor | None = None  # [B, T - 2, D], 0 where three frames are not neighbours
    outlier_sigma: float = math.inf  # c of the module docstring


@dataclass(frozen=True)
class State:
    """The unknowns, f64."""

    id: torch.Tensor  # [B, I]
    exp: torch.Tensor  # [B, T, E]
    rotation: torch.Tensor  # [B, T, 3, 3]
    translation: torch.Tensor  # [B, T, 3]

    def moved(self, step: torch.Tensor, id_step: torch.Tensor | None = None) -> State:
        """The state after ``step`` [B, T, D] of the frames and ``id_step`` [B, I]."""
        exp, turn, shift = step.split((self.exp.shape[-1], 3, 3), dim=-1)
        return State(
            id=self.id if id_step is None else self.id + id_step,
            exp=self.exp + exp,
            rotation=axis_angle_to_matrix(turn) @ self.rotation,
            translation=self.translation + shift,
        )

    def replaced_where(self, chosen: torch.Tensor, other: State) -> State:
        """``other`` for the sequences ``chosen`` [B], this state for the rest."""
        return State(*_picked(chosen, other, self))


@dataclass(frozen=True)
class Residuals:
    """How a state differs from what was measured."""

    normalized_xy: torch.Tensor  # [B, T, K, 2] of the model
    difference: torch.Tensor  # [B, T, K, 2] model - measured
    turned: torch.Tensor  # [B, T, K, 3] points R X
    depth: torch.Tensor  # [B, T, K]
    weight: torch.Tensor  # [B, T, K] precision, lowered for outliers
    cost: torch.Tensor  # [B, T, K] rho(precision |difference|^2)

    def replaced_where(self, chosen: torch.Tensor, other: Residuals) -> Residuals:
        """``other`` for the sequences ``chosen`` [B], these for the rest."""
        return Residuals(*_picked(chosen, other, self))


def _picked(chosen: torch.Tensor, new: State | Residuals, old: State | Residuals) -> Iterator[torch.Tensor]:
    """Every tensor of ``new`` for the sequences ``chosen`` [B], of ``old`` for the rest."""
    for one, other in zip(vars(new).values(), vars(old).values(), strict=True):
        yield torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), one, other)


def compute_residuals(state: State, neutral: torch.Tensor, basis: Basis, observations: Observations) -> Residuals:
    """Residuals for the neutral landmarks ``neutral`` [B, K, 3] of the sequences' identities."""
    offsets = (state.exp @ basis.exp.flatten(0, 1).T).unflatten(-1, (-1, 3))
    turned = (neutral[:, None] + offsets) @ state.rotation.transpose(-1, -2)
    placed = turned + state.translation[..., None, :]
    depth = DISTANCE - placed[..., 2]
    normalized_xy = placed[..., :2] / depth[..., None]
    difference = normalized_xy - observations.normalized_xy
    across, down = difference.unbind(-1)  # sums over two are slow as reductions
    cost, weight = observations.precision * (across * across + down * down), observations.precision
    if math.isfinite(observations.outlier_sigma):
        limit = observations.outlier_sigma**2
        root = (1 + cost / limit).sqrt()
        cost, weight = 2 * limit * (root - 1), weight / root
    return Residuals(normalized_xy, difference, turned, depth, weight, cost)


def gradient(
    state: State, residuals: Residuals, basis: Basis, observations: Observations
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the objective's gradient by the frames' unknowns [B, T, D], smoothness included, and that of the landmark
    term by the identity [B, I]."""
    across, down = ((residuals.weight / residuals.depth)[..., None] * residuals.difference).unbind(-1)
    inwards = across * residuals.normalized_xy[..., 0] + down * residuals.normalized_xy[..., 1]
    by_place = torch.stack((across, down, inwards), -1)
    moment = residuals.turned.transpose(-1, -2) @ by_place  # sum of turned x by_place, antisymmetric part of this
    skew = moment - moment.transpose(-1, -2)
    by_turn = torch.stack((skew[..., 1, 2], skew[..., 2, 0], skew[..., 0, 1]), -1)
    by_model_point = (by_place @ state.rotation).flatten(-2)  # [B, T, 3K]
    by_exp = by_model_point @ basis.exp.flatten(0, 1) + observations.exp_precision * state.exp
    by_exp = by_exp + bound_penalty(state.exp, basis, observations)[1]
    by_id = by_model_point.sum(1) @ basis.id.flatten(0, 1)
    smooth = smoothness_gradient(
        frame_changes(state), observations.velocity_precision, observations.acceleration_precision
    )
    return torch.cat((by_exp, by_turn, by_place.sum(-2)), -1) + smooth, by_id


def frame_changes(state: State) -> torch.Tensor:
    """[B, T - 1, D] change from each frame to the next; of the rotation, sin(angle) times the axis."""
    relative = state.rotation[:, 1:] @ state.rotation[:, :-1].transpose(-1, -2)
    skew = relative - relative.transpose(-1, -2)
    turn = 0.5 * torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1)
    exp = state.exp[:, 1:] - state.exp[:, :-1]
    return torch.cat((exp, turn, state.translation[:, 1:] - state.translation[:, :-1]), -1)


def smoothness_gradient(changes: torch.Tensor, step: torch.Tensor, bend: torch.Tensor | None) -> torch.Tensor:
    """Half the gradient [B, T, D] of the smoothness terms whose frames differ by ``changes`` [B, T - 1, D]; linear
    in ``changes``, turns taken as small. ``step`` and ``bend`` as in ``Observations``."""
    pull = step * changes
    if bend is not None:
        pull = pull + _difference_transposed(bend * (changes[:, 1:] - changes[:, :-1]))
    return _difference_transposed(pull)


def smoothness_diagonal(step: torch.Tensor, bend: torch.Tensor | None) -> torch.Tensor:
    """[B, T, D] diagonal of the smoothness terms' (halved) Hessian."""
    diagonal = _pad(step, (0, 0, 1, 0)) + _pad(step, (0, 0, 0, 1))
    if bend is not None:
        diagonal = diagonal + _pad(bend, (0, 0, 2, 0)) + 4 * _pad(bend, (0, 0, 1, 1)) + _pad(bend, (0, 0, 0, 2))
    return diagonal


def _difference_transposed(change: torch.Tensor) -> torch.Tensor:
    """Adjoint of ``x[1:] - x[:-1]`` along time: [B, T - 1, D] -> [B, T, D]."""
    return _pad(change, (0, 0, 1, 0)) - _pad(change, (0, 0, 0, 1))


def bound_penalty(
    exp: torch.Tensor, basis: Basis, observations: Observations
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(value, half the slope, half the curvature) [B, T, E] of what holds coefficients inside their bounds.

    ``bound_precision e^2 + constant`` at a distance e outside a bound, 0 well inside. In between, from ``-w`` to ``w``,
    with
    w a third of the standard deviation, the curvature rises linearly: without that, steps that cross a bound would
    overshoot.
    """
    stiff = observations.bound_precision
    if stiff == 0:
        nothing = torch.zeros_like(exp)
        return nothing, nothing, nothing
    width = stiff**-0.5 / 3
    below, above = basis.bounds[0] - exp, exp - basis.bounds[1]
    outside = torch.maximum(below, above)
    ramp = (outside + width).clamp(0, 2 * width)
    beyond = (outside - width).clamp(min=0)
    # a cubic up to w, and from there the parabola that continues it
    value = ramp**3 / (6 * width) + beyond * (beyond + 2 * width)
    slope = ramp.square() / (4 * width) + beyond
    side = torch.where(above > below, stiff, -stiff)
    return stiff * value, side * slope, stiff / (2 * width) * ramp


def cost(state: State, residuals: Residuals, basis: Basis, observations: Observations) -> torch.Tensor:
    """[B] the objective without the identity prior."""
    changes = frame_changes(state)
    terms = [
        residuals.cost,
        observations.exp_precision * state.exp.square(),
        bound_penalty(state.exp, basis, observations)[0],
        observations.velocity_precision * changes.square(),
    ]
    if observations.acceleration_precision is not None:
        terms.append(observations.acceleration_precision * (changes[:, 1:] - changes[:, :-1]).square())
    return torch.stack([term.sum((1, 2)) for term in terms]).sum(0)
