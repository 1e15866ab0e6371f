"""Coordinates in which a fit works on the expression, and which of them its equations treat apart.

Where the prior of the expression and its smoothness are alike in all directions, once coefficients are counted in
standard deviations, any rotation of these is as good a set of unknowns. The principal axes of the landmarks' movement
are the best one: some of them hardly move a landmark, so that prior and smoothness decide about them. The equations of
a step leave out how these weak axes hang together with the others (``curvature``), which makes a frame's block much
smaller, and the step a little less exact. The objective, and so its minimum, stays what it is.

Bounds and blendshape scores belong to coefficients one by one, so that the fit keeps these as they are.

Letters: K points, E expression modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lrs3_loader.face.fit.points import FitPoints
from lrs3_loader.face.fit.terms import Basis
from lrs3_loader.face.geometry.camera import DISTANCE, FOCAL_PER_SIDE
from lrs3_loader.face.model.morphable import FaceModel

_WEAK = 2 / 3  # an axis is weak if the landmarks say less than this share of what the prior says


@dataclass(frozen=True)
class ExpressionAxes:
    """Axes of the expression, those that move the landmarks least first."""

    modes: torch.Tensor | None  # [E, E] f64, the axes as columns of coefficients; None: each coefficient is an axis
    sigma: torch.Tensor  # [E] f64, standard deviation of each coordinate
    num_weak: int  # so many of the first axes are weak

    @classmethod
    def of_coefficients(cls, model: FaceModel) -> ExpressionAxes:
        """The coefficients themselves, none of them weak."""
        return cls(None, model.exp_sigma.double(), 0)

    @classmethod
    def principal(cls, model: FaceModel, points: FitPoints) -> ExpressionAxes:
        """Principal axes of the points' weighted movement, for a prior of independent coefficients with mean 0.

        What landmarks say is judged for a face as far away as the mean one, and for the error that is the same in all
        frames. Computed on the CPU, so that the axes are the same on every device.
        """
        sigma = model.exp_sigma.double().cpu()
        config = points.config
        noise = math.hypot(
            config.correlated_noise_decimetres / DISTANCE, config.correlated_noise_of_frame / FOCAL_PER_SIDE
        )
        movement = points.basis.exp.cpu() * sigma * points.weights.cpu().sqrt()[:, None, None] / (DISTANCE * noise)
        movement = movement.flatten(0, 1)
        said, axes = torch.linalg.eigh(movement.mT @ movement)
        num_weak = int((said < _WEAK * config.exp_weight).sum())
        modes = (sigma[:, None] * axes).to(model.device)
        return cls(modes, torch.ones_like(sigma).to(model.device), num_weak)

    def of_basis(self, basis: Basis) -> Basis:
        """``basis`` by coordinates instead of coefficients, without bounds."""
        if self.modes is None:
            return basis
        unbounded = torch.full_like(basis.bounds, torch.inf)
        unbounded[0] = -torch.inf
        return Basis(basis.mean, basis.id, basis.exp @ self.modes, unbounded)

    def coefficients(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Coefficients [..., E] of ``coordinates`` [..., E]."""
        return coordinates if self.modes is None else coordinates @ self.modes.mT
