from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fit_truth import expression_error, rotation_error
from golden.landmark_codec import read_golden
from lrs3_loader.demo import demo_head
from lrs3_loader.face.fit import curvature as fit_curvature
from lrs3_loader.face.fit import equations as fit_equations
from lrs3_loader.face.fit import solver, start
from lrs3_loader.face.fit import terms as fit_terms
from lrs3_loader.face.fit import windows as fit_windows
from lrs3_loader.face.fit.curvature import ModeProducts
from lrs3_loader.face.fit.fitter import FitConfig, FitInput, FitResult, LandmarkFitter
from lrs3_loader.face.fit.points import FitPoints
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.geometry.rotation import axis_angle_to_matrix, euler_to_matrix, matrix_to_euler
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.model.ict import convert_ict
from lrs3_loader.face.model.morphable import FaceModel
from support.face_factory import MIRROR, small_model, speaking_clip
from support.paths import TESTS

MODEL = small_model()


def refit_pixels(model: FaceModel, clip: FitInput, result: FitResult) -> torch.Tensor:
    return project(model.landmarks(result.id, result.exp), result.pose, Camera.for_frame(clip.height, clip.width))


def problem(seed: int = 0, free: bool = True, **changes: object) -> tuple[fit_terms.State, solver.FitProblem]:
    """A random problem near a speaking clip, everything switched on: two sequences of five frames."""
    points = FitPoints(MODEL, FitConfig())
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = MODEL.num_exp + 6
    state = fit_terms.State(
        id=noise(2, MODEL.num_id),
        exp=0.3 * noise(2, 5, MODEL.num_exp),
        rotation=axis_angle_to_matrix(0.3 * noise(2, 1, 3) + 0.01 * noise(2, 5, 3)),
        translation=0.1 * noise(2, 5, 3),
    )
    beliefs = {
        "normalized_xy": 0.1 * noise(2, 5, 68, 2),
        "precision": 1e4 * noise(2, 5, 68).abs(),
        "exp_precision": torch.full((2, 5, MODEL.num_exp), 5.0, dtype=torch.float64),
        "exp_mean": 0.3 * noise(2, 5, MODEL.num_exp),
        "bound_precision": 400.0,
        "real": torch.ones(2, 5, dtype=torch.bool),
        "velocity_precision": 100 * noise(2, 4, size).abs(),
        "acceleration_precision": 100 * noise(2, 3, size).abs(),
    }
    frames = fit_terms.Observations(**(beliefs | changes))  # type: ignore[arg-type]
    prior = torch.eye(MODEL.num_id, dtype=torch.float64).expand(2, -1, -1)
    rest = {"id_precision": prior} if free else {"neutral": points.basis.neutral(state.id)}
    return state, solver.FitProblem(points.basis, ModeProducts(points.basis), frames, **rest)


def moved(state: fit_terms.State, step: torch.Tensor) -> fit_terms.State:
    """``step`` [2, 5 D + I]: all unknowns in a row."""
    num = 5 * (MODEL.num_exp + 6)
    return state.moved(step[:, :num].view(2, 5, -1), step[:, num:])


@pytest.mark.parametrize("outlier_sigma", [np.inf, 3.0])
def test_the_gradient_equals_autograd(outlier_sigma: float) -> None:
    state, both = problem(outlier_sigma=outlier_sigma)
    by_frames, by_id = both.gradient(state, both.residuals(state))

    def cost(step: torch.Tensor) -> torch.Tensor:
        there = moved(state, step)
        return both.cost(there, both.residuals(there)).sum()

    zero = torch.zeros(2, 5 * (MODEL.num_exp + 6) + MODEL.num_id, dtype=torch.float64)
    expected = 0.5 * torch.autograd.functional.jacobian(cost, zero)
    by_step = expected[:, : -MODEL.num_id].view(by_frames.shape)
    # the change of rotation is linearised for small turns between neighbours: not exact, unlike everything else
    assert torch.allclose(by_frames[..., :-6], by_step[..., :-6], rtol=1e-9)
    assert torch.allclose(by_frames[..., -3:], by_step[..., -3:], rtol=1e-9)
    assert torch.allclose(by_frames, by_step, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert torch.allclose(by_id, expected[:, -MODEL.num_id :], rtol=1e-9)


def test_curvatures_are_the_squares_of_autograds_jacobian() -> None:
    state, both = problem()

    def weighted(step: torch.Tensor) -> torch.Tensor:
        found = both.residuals(moved(state, step.expand(2, -1)))
        return found.weight.sqrt()[..., None] * found.difference

    num_each = MODEL.num_exp + 6
    zero = torch.zeros(5 * num_each + MODEL.num_id, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(weighted, zero).flatten(1, 3)
    dense = jacobian.transpose(1, 2) @ jacobian
    found = fit_curvature.curvature(state, both.residuals(state), both.products, with_identity=True)
    tolerance = 1e-5 * float(dense.abs().max())
    for t in range(5):
        here = slice(t * num_each, (t + 1) * num_each)
        assert (found.frames[:, t] - dense[:, here, here]).abs().max() < tolerance
        assert (found.border[:, t] - dense[:, 5 * num_each :, here]).abs().max() < tolerance
    assert (found.id - dense[:, 5 * num_each :, 5 * num_each :]).abs().max() < tolerance
    known = fit_curvature.curvature(state, both.residuals(state), both.products, with_identity=False)
    assert torch.allclose(known.frames, found.frames, rtol=1e-5, atol=tolerance)
    assert known.border.shape[-2] == known.id.shape[-1] == 0


def test_bounds_push_smoothly_and_only_outside() -> None:
    _, both = problem()
    exp = torch.linspace(-0.3, 1.3, 4001, dtype=torch.float64)[:, None].expand(-1, MODEL.num_exp)[None]
    exp = exp.clone().requires_grad_()
    observations = dataclasses.replace(both.observations, real=torch.ones(1, 4001, dtype=torch.bool))
    value, slope, curvature = fit_terms.bound_penalty(exp, both.basis, observations)
    (first,) = torch.autograd.grad(value.sum(), exp, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), exp)
    assert torch.allclose(0.5 * first, slope)
    assert torch.allclose(0.5 * second, curvature, atol=1e-6)
    assert (slope.diff(dim=1).abs() < 400 * 0.0005).all()
    inside = ((exp > 0.02) & (exp < 0.98)).detach()
    assert (value[inside] == 0).all()
    assert (curvature[(exp < -0.02) | (exp > 1.02)] == 400).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("free", [True, False])
def test_the_step_solves_the_dense_system(free: bool, dtype: torch.dtype) -> None:
    """The dense one is assembled term by term; smoothness and bounds from their own Hessians by autograd."""
    state, both = problem(free=free)
    both = dataclasses.replace(both, products=ModeProducts(both.basis, dtype))
    size, observations = MODEL.num_exp + 6, both.observations
    found = both.residuals(state)
    by_frames, by_id = both.gradient(state, found)
    smooth = fit_equations.Smoothness.of(observations, dtype)
    equations = fit_equations.NormalEquations(state, found, both, smooth, torch.zeros(2))
    step, id_step = equations.step(by_frames, by_id, num_cg=80)
    blocks = fit_curvature.curvature(state, found, both.products, with_identity=free)

    def smoothness(moves: torch.Tensor) -> torch.Tensor:
        changes = moves[1:] - moves[:-1]
        bends = changes[1:] - changes[:-1]
        assert observations.acceleration_precision is not None
        terms = observations.velocity_precision[row] * changes**2, observations.acceleration_precision[row] * bends**2
        return 0.5 * sum(term.sum() for term in terms)

    for row in range(2):
        dense = torch.block_diag(*blocks.frames[row].double())
        zero = torch.zeros(5, size, dtype=torch.float64)
        dense += torch.autograd.functional.hessian(smoothness, zero).reshape(5 * size, 5 * size)
        stiff = (observations.exp_precision + fit_terms.bound_penalty(state.exp, both.basis, observations)[2])[row]
        dense += torch.diag(torch.nn.functional.pad(stiff, (0, 6)).flatten())
        right = by_frames[row].flatten()
        if free:
            border = blocks.border[row].double().transpose(1, 2).flatten(0, 1)
            assert both.id_precision is not None
            corner = blocks.id[row].double() + both.id_precision[row]
            dense = torch.cat((torch.cat((dense, border), 1), torch.cat((border.T, corner), 1)))
            right = torch.cat((right, by_id[row]))
        expected = torch.linalg.solve(dense, -right)
        result = step[row].flatten() if id_step is None else torch.cat((step[row].flatten(), id_step[row]))
        tolerance = 1e-3 if dtype == torch.float32 else 1e-7
        assert (result - expected).abs().max() < tolerance * expected.abs().max()


def test_the_closed_form_start_is_near_and_survives_degenerate_landmarks() -> None:
    clip, _, _, pose = speaking_clip(MODEL, seed=3, noise_px=0.0)
    normalized_xy = FitPoints(MODEL, FitConfig()).measure(clip)[0].float()
    shape = MODEL.landmark_mean.expand(len(normalized_xy), -1, -1)
    rotation, translation = start.weak_perspective(normalized_xy, shape, torch.ones(60, 68))
    assert rotation_error(torch.cat((matrix_to_euler(rotation), translation), 1), pose).max() < 8
    assert torch.allclose(rotation @ rotation.transpose(-1, -2), torch.eye(3).expand(60, 3, 3), atol=1e-4)
    nowhere = start.weak_perspective(torch.zeros_like(normalized_xy), shape, torch.ones(60, 68))
    assert all(torch.isfinite(value).all() for value in nowhere)


def test_landmarks_without_weight_are_left_out() -> None:
    """The same as next to no weight, whatever they say; the mouth, by which keyframes are chosen, is found all the
    same."""
    clip, *_ = speaking_clip(MODEL, 3, 30)
    elsewhere = clip.lm68.clone()
    side = [*range(5), *range(12, 17)]
    elsewhere[:, side] = 1e4
    confidence = torch.linspace(0.5, 1, 68).expand(30, -1)
    left_out = LandmarkFitter(MODEL, FitConfig(side_weight=0, tolerance=1e-6))
    (result,) = left_out([FitInput(elsewhere, clip.valid, 224, 224, confidence)])
    assert left_out._points.basis.mean.shape == (58, 3)
    (expected,) = LandmarkFitter(MODEL, FitConfig(side_weight=1e-9, tolerance=1e-6))(
        [FitInput(clip.lm68, clip.valid, 224, 224, confidence)]
    )
    assert (refit_pixels(MODEL, clip, result) - refit_pixels(MODEL, clip, expected)).abs().max() < 5e-3
    normalized_xy, _ = left_out._points.measure(clip)
    lips = normalized_xy[:, left_out._points.inner_lips]
    all_normalized_xy, _ = FitPoints(MODEL, FitConfig()).measure(clip)
    assert torch.equal(lips, all_normalized_xy[:, [62, 66]])


def test_keyframes_are_spread_distinct_and_all_of_few() -> None:
    features = np.zeros((50, 4))
    features[[7, 31]] = [[9, 0, 0, 0], [0, 9, 0, 0]]
    chosen = start.spread(features, 5)
    assert {7, 31} <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == 5
    assert start.spread(features[:3], 5).tolist() == [0, 1, 2]


def test_gaps_are_bridged_inside_a_clip_only() -> None:
    valid = torch.tensor([False, True, False, False, True, False, True, False])
    clip_of = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    angles = torch.zeros(8, 3)
    angles[:, 0] = torch.tensor([9.0, 0.1, 9, 9, 0.4, 9, 0.7, 9])
    moved = angles.clone()
    rotation, translation = start.bridge_gaps(euler_to_matrix(angles), moved, valid, clip_of)
    expected = torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4, 0.4, 0.7, 0.7])
    assert torch.allclose(translation[:, 0], expected, atol=1e-6)
    assert torch.allclose(matrix_to_euler(rotation)[:, 0], expected, atol=1e-3)


def test_truth_is_recovered() -> None:
    truths = [speaking_clip(MODEL, seed, num_frames) for seed, num_frames in enumerate((60, 25, 90, 6))]
    for truth, result in zip(truths, LandmarkFitter(MODEL)([truth[0] for truth in truths]), strict=True):
        _, _, exp, pose = truth
        assert result.converged
        assert result.reprojection_px.mean() < 0.7  # half a pixel of noise is 0.63 on average
        assert rotation_error(result.pose, pose).mean() < 1.0
        if len(exp) > 6:
            assert expression_error(MODEL, exp, result.exp) < 0.35
        assert 0 <= result.exp.min() < result.exp.max() <= 1


def test_without_noise_the_fit_is_nearly_exact() -> None:
    clip, _, exp, pose = speaking_clip(MODEL, seed=5, noise_px=0.0)
    config = FitConfig(
        correlated_noise_decimetres=1e-4, noise_px=1e-3, size_sigma=1.0, max_iterations=40, tolerance=1e-7
    )
    (result,) = LandmarkFitter(MODEL, config)([clip])
    assert result.reprojection_px.max() < 0.05
    assert rotation_error(result.pose, pose).max() < 0.5
    assert (result.exp - exp).abs().max() < 0.1


def test_small_faces_start_and_end_well() -> None:
    """A face of a sixth of the frame, where descent from zero is known to fail by 13 degrees and more."""
    for seed in range(3):
        clip, _, _, pose = speaking_clip(MODEL, seed, depth=60.0, noise_px=0.1)
        (result,) = LandmarkFitter(MODEL)([clip])
        assert rotation_error(result.pose, pose).max() < 3.0


def assert_same_numbers(one: FitResult, other: FitResult, atol: float = 0.0) -> None:
    """All fields agree: decimetres, radians, pixels and coefficients alike."""
    assert one.converged == other.converged
    for field in dataclasses.fields(FitResult):
        value = getattr(one, field.name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(other, field.name), value, rtol=0, atol=atol, equal_nan=True)


def varied_clips(model: FaceModel) -> list[FitInput]:
    """Clips of many lengths, sizes and qualities."""
    clips = [speaking_clip(model, seed, num_frames)[0] for seed, num_frames in enumerate((40, 6, 75, 23, 40, 1, 2, 3))]
    clips.append(speaking_clip(model, 9, 30, size=(720, 1280), depth=40.0)[0])
    clips.append(speaking_clip(model, 10, 20, noise_px=3.0)[0])
    twice = clips[3].lm68.repeat_interleave(2, 0)  # as from a video of half the frame rate
    clips.append(FitInput(twice, torch.ones(len(twice), dtype=torch.bool), 224, 224))
    gaps = clips[4].valid.clone()
    gaps[:3] = gaps[17:25] = False
    confidence = torch.linspace(0.2, 1, 68).expand(40, -1).clone()
    confidence[::3, 48:] = 0
    clips.append(dataclasses.replace(clips[4], valid=gaps, confidence=confidence))
    return clips


def damaged_clips(clip: FitInput) -> list[FitInput]:
    """Landmarks in one point, on a line, far off, tiny, almost all missing or without weight."""
    one_valid = torch.zeros_like(clip.valid)
    one_valid[len(one_valid) // 2] = True
    no_weight = torch.zeros(len(clip.lm68), 68)
    far, line = clip.lm68.clone(), clip.lm68.clone()
    far[::3, ::5], line[..., 1] = 1e7, 50.0
    missing = torch.where(one_valid[:, None, None], clip.lm68, torch.nan)
    landmarks = (torch.full_like(clip.lm68, 100.0), line, far, 1e-3 * clip.lm68)
    damaged = [dataclasses.replace(clip, lm68=points) for points in landmarks]
    damaged.append(dataclasses.replace(clip, lm68=missing, valid=one_valid))
    damaged.append(dataclasses.replace(clip, lm68=clip.lm68 * torch.nan, confidence=no_weight))
    return damaged


@pytest.mark.parametrize("config", [FitConfig.fast(), FitConfig.best()], ids=["fast", "best"])
@pytest.mark.parametrize(
    ("device", "mixed", "name"),
    [
        *itertools.product(["cpu"], [False, True], ["small", "demo"]),
        pytest.param("cuda", True, "small", marks=pytest.mark.gpu),
    ],
)
def test_a_clip_has_the_same_numbers_in_any_company(device: str, mixed: bool, name: str, config: FitConfig) -> None:
    """Whatever the order, the number, the lengths and the damage of the others: to the bit, or in double precision."""
    model = MODEL if name == "small" else demo_head()
    clips = varied_clips(model)
    strangers = clips + damaged_clips(clips[0])
    model = model.to(device)
    compared = range(0, len(clips), 1 if device == "cpu" else 4)
    alone = {number: LandmarkFitter(model, config, mixed=mixed)([clips[number]])[0] for number in compared}
    random = np.random.default_rng(0)
    for _ in range(5 if device == "cpu" else 2):
        company = random.permutation(len(strangers))[: random.integers(2, len(strangers) + 1)].tolist()
        fitter = LandmarkFitter(model, config, int(random.choice([1, 100, 400, 10_000])), mixed)
        for number, result in zip(company, fitter([strangers[number] for number in company]), strict=True):
            if number in alone:
                assert_same_numbers(alone[number], result, atol=1e-5 if mixed else 0.0)


def test_padding_counts_for_nothing() -> None:
    """Neither for the objective nor for its gradient, whatever is in the padding's unknowns."""
    state, both = problem()
    observations, real = both.observations, torch.ones(2, 5, dtype=torch.bool)
    real[:, 3:] = False
    assert observations.acceleration_precision is not None
    masks = real[..., None], real[:, 1:, None], real[:, 2:, None]
    padded = dataclasses.replace(
        observations,
        precision=observations.precision * masks[0],
        exp_precision=observations.exp_precision * masks[0],
        velocity_precision=observations.velocity_precision * masks[1],
        acceleration_precision=observations.acceleration_precision * masks[2],
        real=real,
    )
    short = dataclasses.replace(
        observations,
        normalized_xy=observations.normalized_xy[:, :3],
        precision=observations.precision[:, :3],
        exp_precision=observations.exp_precision[:, :3],
        exp_mean=observations.exp_mean[:, :3],
        velocity_precision=observations.velocity_precision[:, :2],
        acceleration_precision=observations.acceleration_precision[:, :1],
        real=real[:, :3],
    )
    cut = fit_terms.State(state.id, state.exp[:, :3], state.rotation[:, :3], state.translation[:, :3])
    long, expected = (dataclasses.replace(both, observations=each) for each in (padded, short))
    found, wanted = long.residuals(state), expected.residuals(cut)
    assert torch.allclose(long.cost(state, found), expected.cost(cut, wanted), rtol=1e-12)
    (by_frames, by_id), (cut_by_frames, cut_by_id) = long.gradient(state, found), expected.gradient(cut, wanted)
    assert torch.allclose(by_frames[:, :3], cut_by_frames, rtol=1e-9)
    assert torch.allclose(by_id, cut_by_id, rtol=1e-9)
    assert (by_frames[:, 3:] == 0).all()


@pytest.mark.parametrize(
    ("mixed", "shapes"), [(True, [(2, 48), (2, 32)]), (False, [(1, 40), (1, 36), (2, 24), (1, 8)])]
)
def test_batches_are_padded_to_few_lengths(mixed: bool, shapes: list[tuple[int, int]]) -> None:
    parts = fit_windows.split_into_windows([40, 6, 23, 33] if mixed else [40, 6, 23, 33, 24])
    found = list(fit_windows.batches(parts, 100, torch.device("cpu"), mixed=mixed))
    assert [batch.index.shape for batch in found] == shapes
    for batch in found:
        for row, window in enumerate(batch.windows):
            assert torch.equal(batch.index[row, : len(window.frames)], window.frames)
            assert batch.real[row].sum() == len(window.frames)
            assert not batch.real[row, len(window.frames) :].any()


def test_the_same_call_gives_the_same_bits() -> None:
    clips = [speaking_clip(MODEL, seed, 30)[0] for seed in range(4)]
    first, second = LandmarkFitter(MODEL)(clips), LandmarkFitter(MODEL)(clips)
    for one, other in zip(first, second, strict=True):
        for field in dataclasses.fields(FitResult):
            value = getattr(one, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, field.name))


def test_long_clips_are_fitted_in_windows_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, *_ = speaking_clip(MODEL, 1, 150)
    (whole,) = LandmarkFitter(MODEL)([clip])
    monkeypatch.setattr(fit_windows, "WINDOW_FRAMES", 40)
    windows = fit_windows.split_into_windows([150, 3])
    ends = [(int(window.frames[0]), int(window.frames[-1]) + 1) for window in windows]
    assert ends == [(0, 72), (8, 112), (48, 150), (88, 150), (150, 153)]
    assert torch.cat([window.frames[window.keep] for window in windows]).tolist() == list(range(153))
    (pieces,) = LandmarkFitter(MODEL)([clip])
    assert (whole.exp - pieces.exp).abs().max() < 0.01
    assert (refit_pixels(MODEL, clip, whole) - refit_pixels(MODEL, clip, pieces)).abs().max() < 0.1


def test_frames_without_a_face_are_carried_by_their_neighbours() -> None:
    clip, _, _, pose = speaking_clip(MODEL, 2, 60)
    landmarks, valid = clip.lm68.clone(), clip.valid.clone()
    for gone in (slice(0, 2), slice(20, 30), slice(58, 60)):
        landmarks[gone], valid[gone] = torch.nan, False
    gapped = FitInput(landmarks, valid, 224, 224)
    (result,) = LandmarkFitter(MODEL)([gapped])
    for value in (result.id, result.exp, result.pose, result.idexp_lm3d):
        assert torch.isfinite(value).all()
    assert torch.equal(result.reprojection_px.isnan(), ~valid)
    assert torch.equal(result.face_size_px.isnan(), ~valid)
    assert np.isfinite(result.relative_error)
    assert rotation_error(result.pose, pose).max() < 10
    middle = result.pose[19:31]
    assert (middle[1:] - middle[:-1]).abs().max() < 0.1  # no jump anywhere in the gap
    garbage = torch.where(valid[:, None, None], landmarks, 1e9)
    (same,) = LandmarkFitter(MODEL)([FitInput(garbage, valid, 224, 224)])
    assert torch.equal(same.exp, result.exp)


def test_one_valid_frame_is_enough() -> None:
    clip, *_ = speaking_clip(MODEL, 4, 6)
    valid = torch.tensor([False, False, True, False, False, False])
    (result,) = LandmarkFitter(MODEL)([FitInput(clip.lm68, valid, 224, 224)])
    assert torch.isfinite(result.exp).all()
    assert result.reprojection_px[2] < 1.5


@pytest.mark.parametrize("kind", ["one point", "a line", "far outliers", "tiny"])
def test_nonsense_landmarks_give_finite_results_and_harm_no_other_clip(kind: str) -> None:
    good, *_ = speaking_clip(MODEL, 4, 20)
    landmarks = good.lm68.clone()
    if kind == "one point":
        landmarks[:] = 100.0
    elif kind == "a line":
        landmarks[..., 1] = 50.0
    elif kind == "far outliers":
        landmarks[::3, ::5] = 1e7
    else:
        landmarks = 1e-3 * landmarks
    fitter = LandmarkFitter(MODEL, batch_frames=100)
    bad, beside = fitter([FitInput(landmarks, good.valid, 224, 224), good])
    for value in (bad.id, bad.exp, bad.pose, bad.idexp_lm3d, bad.reprojection_px):
        assert torch.isfinite(value).all()
    assert (beside.reprojection_px - fitter([good])[0].reprojection_px).abs().max() < 1e-4


def test_a_mirrored_clip_gives_the_mirrored_pose() -> None:
    clip, *_ = speaking_clip(MODEL, 6, 30)
    mirrored = clip.lm68[:, MIRROR].clone()
    mirrored[..., 0] = 223 - mirrored[..., 0]
    first, second = LandmarkFitter(MODEL)([clip, FitInput(mirrored, clip.valid, 224, 224)])
    expected = first.pose * torch.tensor([1.0, -1, -1, -1, 1, 1])
    assert rotation_error(second.pose, expected).max() < 0.05
    assert (second.exp - first.exp).abs().max() < 0.01


def test_the_frame_size_does_not_matter() -> None:
    clip, *_ = speaking_clip(MODEL, 7, 30)
    config = FitConfig(noise_px=1e-6)
    large = FitInput((clip.lm68 + 0.5) * 4 - 0.5, clip.valid, 896, 896)
    first, second = LandmarkFitter(MODEL, config)([clip, large])
    assert torch.allclose(first.pose, second.pose, atol=1e-3)
    assert first.relative_error == pytest.approx(second.relative_error, rel=1e-3)
    assert first.relative_mouth_error == pytest.approx(second.relative_mouth_error, rel=1e-2)


def test_identity_keeps_the_mean_size() -> None:
    clip, *_ = speaking_clip(MODEL, 8, 60)
    (result,) = LandmarkFitter(MODEL)([clip])
    centred = [points - points.mean(0) for points in (MODEL.landmark_mean, MODEL.landmarks(result.id, torch.zeros(6)))]
    assert float(centred[1].norm() / centred[0].norm()) == pytest.approx(1, abs=0.02)


def test_models_without_bounds_fit_too() -> None:
    clip, _, exp, _ = speaking_clip(MODEL, 1, 60)
    (result,) = LandmarkFitter(dataclasses.replace(MODEL, exp_bounds=None))([clip])
    assert result.converged
    assert expression_error(MODEL, exp, result.exp) < 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm68": torch.zeros(5, 68, 2)}, "lm68 must be"),
        ({"valid": torch.zeros(6, dtype=torch.bool)}, "single valid frame"),
        ({"lm68": torch.full((6, 68, 2), torch.nan)}, "finite"),
        ({"valid": torch.ones(6)}, "bool"),
        ({"height": 0}, "positive size"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    good = {"lm68": torch.zeros(6, 68, 2), "valid": torch.ones(6, dtype=torch.bool), "height": 224, "width": 224}
    with pytest.raises(ValueError, match=message):
        FitInput(**(good | change))
    with pytest.raises(ValueError, match="num_cg must be above 0"):
        FitConfig(num_cg=0)
    with pytest.raises(ValueError, match="side_weight must be at least 0"):
        FitConfig(side_weight=-1.0)


def test_genefaces_objective_is_that_of_a_frame_of_224_pixels_whatever_the_frame() -> None:
    """The same landmarks in a larger frame give the same coefficients, which no bounds hold."""
    clip = speaking_clip(MODEL, 5, 12).clip
    fitter = LandmarkFitter(MODEL, FitConfig.named("geneface", MODEL))
    (small,) = fitter([clip])
    (large,) = fitter([FitInput((clip.lm68 + 0.5) * 4 - 0.5, clip.valid, 896, 896)])
    for name in ("id", "exp", "pose"):
        assert torch.allclose(getattr(large, name), getattr(small, name), atol=2e-3), name
    assert small.exp.min() < 0  # MODEL has bounds: 0 and 1


def test_no_clips_give_no_results() -> None:
    assert LandmarkFitter(MODEL)([]) == []


@pytest.fixture(scope="module")
def ict(shared_assets: Path) -> FaceModel:
    return convert_ict(shared_assets / "ict_facekit.tar.xz")


def test_ict_recovers_speech(ict: FaceModel) -> None:
    truths = [speaking_clip(ict, seed, 75) for seed in range(2)]
    for truth, result in zip(truths, LandmarkFitter(ict)([truth[0] for truth in truths]), strict=True):
        assert result.converged
        assert rotation_error(result.pose, truth[3]).mean() < 0.9
        assert expression_error(ict, truth[2], result.exp) < 0.35


def test_ict_fits_mediapipe_landmarks_of_real_faces(ict: FaceModel) -> None:
    sizes = {
        "may_512_25fps_48k_stereo": (512, 512),
        "silent_480_30fps_44k": (480, 480),
        "smallface_1280x720_30fps": (720, 1280),
    }
    clips = []
    for name, size in sizes.items():
        golden = read_golden(TESTS / "golden" / f"landmarks_task_{name}.xz")
        landmarks = to_ibug68(torch.from_numpy(golden.xy[:60].astype(np.float32)))
        clips.append(FitInput(landmarks, torch.ones(len(landmarks), dtype=torch.bool), *size))
    for result in LandmarkFitter(ict)(clips):
        assert result.converged
        assert result.relative_error < 0.015  # measured: 0.009 to 0.012
        assert result.relative_mouth_error < 0.01
        assert -0.3 < result.exp.min() < result.exp.max() < 1.3
        assert result.id.abs().max() < 8
        assert torch.rad2deg(result.pose[:, :3]).abs().max() < 35  # these people look at the camera


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu() -> None:
    clips = [speaking_clip(MODEL, seed, num_frames)[0] for seed, num_frames in enumerate((40, 6, 75))]
    expected = LandmarkFitter(MODEL)(clips)
    fitter = LandmarkFitter(MODEL.to("cuda"))
    for clip, one, other, again in zip(clips, expected, fitter(clips), fitter(clips), strict=True):
        assert (refit_pixels(MODEL, clip, one) - refit_pixels(MODEL, clip, other)).abs().max() < 0.02
        assert torch.equal(other.exp, again.exp)
