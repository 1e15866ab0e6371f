"""Principal axes of the expression: the objective stays, and the equations leave out what hardly matters."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.fit_adam import Fitted, objective
from benchmarks.fit_truth import bfm_shaped_model, speaking_clip
from lrs3_loader.demo import demo_head
from lrs3_loader.face.fit.axes import ExpressionAxes
from lrs3_loader.face.fit.curvature import ModeProducts, curvature
from lrs3_loader.face.fit.equations import NormalEquations, Smoothness
from lrs3_loader.face.fit.fitter import FitConfig, LandmarkFitter
from lrs3_loader.face.fit.points import FitPoints
from lrs3_loader.face.fit.solver import FitProblem
from lrs3_loader.face.fit.terms import Observations, State
from lrs3_loader.face.geometry.rotation import axis_angle_to_matrix
from lrs3_loader.face.model.morphable import FaceModel


class FitterOfCoefficients(LandmarkFitter):
    """A fitter whose unknowns are the coefficients, none of them weak."""

    def _expression_axes(self) -> ExpressionAxes:
        return ExpressionAxes.of_coefficients(self.model)


@pytest.fixture(scope="module")
def bfm() -> FaceModel:
    return bfm_shaped_model()


def random_problem(model: FaceModel, num_weak: int, free: bool) -> tuple[State, FitProblem]:
    """Two sequences of four frames, whose equations are in double precision."""
    basis = FitPoints(model, FitConfig()).basis
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_exp, num_points = model.num_exp, len(basis.mean)
    state = State(
        noise(2, model.num_id),
        0.3 * noise(2, 4, num_exp),
        axis_angle_to_matrix(0.3 * noise(2, 4, 3)),
        0.1 * noise(2, 4, 3),
    )
    observations = Observations(
        normalized_xy=0.1 * noise(2, 4, num_points, 2),
        precision=1e4 * noise(2, 4, num_points).abs(),
        exp_precision=torch.full((2, 4, num_exp), 5.0, dtype=torch.float64),
        exp_mean=torch.zeros(2, 4, num_exp, dtype=torch.float64),
        bound_precision=0.0,
        real=torch.ones(2, 4, dtype=torch.bool),
        velocity_precision=noise(2, 3, num_exp + 6).abs(),
    )
    prior = torch.eye(model.num_id, dtype=torch.float64).expand(2, -1, -1)
    known = {"id_precision": prior} if free else {"neutral": basis.neutral(state.id)}
    return state, FitProblem(basis, ModeProducts(basis, torch.float64, num_weak), observations, **known)


def test_weak_modes_keep_their_diagonal_and_nothing_else() -> None:
    state, whole = random_problem(demo_head(), 0, free=True)
    _, part = random_problem(demo_head(), 3, free=True)
    residuals = whole.residuals(state)
    expected = curvature(state, residuals, whole.products, with_identity=True)
    found = curvature(state, residuals, part.products, with_identity=True)
    assert expected.weak.shape[-1] == 0
    assert torch.allclose(found.frames, expected.frames[..., 3:, 3:])
    assert torch.allclose(found.weak, torch.diagonal(expected.frames, dim1=-2, dim2=-1)[..., :3])
    assert torch.allclose(found.border, expected.border[..., 3:])
    assert torch.allclose(found.id, expected.id)


@pytest.mark.parametrize("free", [True, False])
def test_the_step_solves_the_equations_without_what_is_left_out(free: bool) -> None:
    """Everything about a weak mode but its diagonal is removed from the whole equations, which are then solved."""
    num_weak, num_frames = 3, 4
    state, problem = random_problem(demo_head(), num_weak, free)
    _, whole = random_problem(demo_head(), 0, free)
    residuals = problem.residuals(state)
    by_frames, by_id = problem.gradient(state, residuals)
    smoothness = Smoothness.of(problem.observations, torch.float64)
    step, id_step = NormalEquations(state, residuals, problem, smoothness, torch.zeros(2)).step(by_frames, by_id, 200)

    blocks = whole.curvature(state, residuals)
    size = blocks.frames.shape[-1]
    kept = torch.ones(size, size, dtype=torch.bool)
    kept[:num_weak], kept[:, :num_weak] = False, False
    kept |= torch.eye(size, dtype=torch.bool)
    for row in range(2):
        dense = torch.block_diag(*(block * kept for block in blocks.frames[row]))
        dense += torch.diag(torch.nn.functional.pad(problem.observations.exp_precision[row], (0, 6)).flatten())
        change = torch.zeros(num_frames - 1, num_frames, dtype=torch.float64)
        change[range(num_frames - 1), range(num_frames - 1)] = -1
        change[range(num_frames - 1), range(1, num_frames)] = 1
        for unknown in range(size):
            places = torch.arange(num_frames) * size + unknown
            coupled = change.T @ (problem.observations.velocity_precision[row, :, unknown, None] * change)
            dense[places[:, None], places] += coupled
        right = by_frames[row].flatten()
        result = step[row].flatten()
        if id_step is not None:
            assert problem.id_precision is not None
            border = blocks.border[row].clone()
            border[..., :num_weak] = 0
            border = border.transpose(1, 2).flatten(0, 1)
            corner = blocks.id[row] + problem.id_precision[row]
            dense = torch.cat((torch.cat((dense, border), 1), torch.cat((border.T, corner), 1)))
            right, result = torch.cat((right, by_id[row])), torch.cat((result, id_step[row]))
        expected = torch.linalg.solve(dense, -right)
        assert (result - expected).abs().max() < 1e-6 * expected.abs().max()


def test_axes_are_a_rotation_of_standard_deviations(bfm: FaceModel) -> None:
    config = FitConfig.geneface(bfm)
    points = FitPoints(bfm, config)
    axes = ExpressionAxes.principal(bfm, points)
    assert axes.modes is not None
    rotation = axes.modes / bfm.exp_sigma.double()[:, None]
    assert torch.allclose(rotation.T @ rotation, torch.eye(bfm.num_exp, dtype=torch.float64), atol=1e-9)
    coordinates = torch.randn(2, 3, bfm.num_exp, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    offsets = points.basis.offsets(axes.coefficients(coordinates))
    assert torch.allclose(axes.of_basis(points.basis).offsets(coordinates), offsets, atol=1e-9)
    movement = axes.of_basis(points.basis).exp * points.weights.sqrt()[:, None, None]
    size = movement.square().sum((0, 1))
    assert 0 < axes.num_weak < bfm.num_exp
    assert size[: axes.num_weak].max() < size[axes.num_weak :].min()


def test_the_objective_reached_is_that_of_coefficients(bfm: FaceModel) -> None:
    """The minimum is the same, and so, within the tolerance of a fit, is what is reached."""
    config = FitConfig.geneface(bfm)
    truth = speaking_clip(bfm, 0, num_frames=40)
    clip = truth.clip

    def reached(fitter: LandmarkFitter) -> float:
        (result,) = fitter([clip])
        return objective(bfm, clip.lm68, Fitted(result.id, result.exp, result.pose))

    assert reached(LandmarkFitter(bfm, config)) < 1.005 * reached(FitterOfCoefficients(bfm, config))
    close = dataclasses.replace(config, tolerance=1e-9, max_iterations=40, hessian_reuse_tol=1e-9, num_cg=8)
    by_axes, by_coefficients = reached(LandmarkFitter(bfm, close)), reached(FitterOfCoefficients(bfm, close))
    assert by_axes == pytest.approx(by_coefficients, rel=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_clip_has_the_same_numbers_in_any_company(bfm: FaceModel, mixed: bool) -> None:
    clips = [speaking_clip(bfm, seed, num_frames=length).clip for seed, length in enumerate((40, 17, 40, 6, 23))]
    fitter = LandmarkFitter(bfm, FitConfig.geneface(bfm), mixed=mixed)
    for clip, together in zip(clips, fitter(clips), strict=True):
        (alone,) = fitter([clip])
        for name in ("id", "exp", "pose"):
            apart = (getattr(alone, name) - getattr(together, name)).abs().max()
            assert apart <= (1e-4 if mixed else 0), name


def test_bounds_and_scores_keep_coefficients_as_they_are() -> None:
    head = demo_head()
    assert LandmarkFitter(head, FitConfig.fast())._axes.modes is None
    assert LandmarkFitter(head, FitConfig.geneface(head))._axes.modes is not None
