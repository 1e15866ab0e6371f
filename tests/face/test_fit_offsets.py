"""Coefficients from landmarks in space: they have those landmarks, keep their bounds, and are the most likely ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from lrs3_loader.demo.head import EXPRESSION_MODES, demo_head
from lrs3_loader.face.fit.offsets import NOISE_DECIMETRES, coefficients_of_offsets

NUM_FRAMES = 40


def speech_like(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An identity [I], and expressions [T, E] that open and round the mouth within their bounds."""
    model, random = demo_head(), np.random.default_rng(seed)
    exp = torch.zeros(NUM_FRAMES, model.num_exp)
    for name, rate in (("jaw_open", 3.0), ("lip_wide", 2.0), ("lip_pucker", 1.3), ("smile_left", 0.6)):
        exp[:, EXPRESSION_MODES.index(name)] = torch.sin(torch.linspace(0, rate * np.pi, NUM_FRAMES)).clamp(min=0)
    return torch.from_numpy(random.normal(0, 0.8, model.num_id).astype(np.float32)), 0.8 * exp


def test_a_mesh_from_landmarks_has_these_landmarks() -> None:
    model, (id, exp) = demo_head(), speech_like()
    offsets = model.landmark_offsets(id, exp)
    found_id, found_exp = coefficients_of_offsets(model, offsets)
    apart_mm = 100 * (model.landmark_offsets(found_id, found_exp) - offsets).norm(dim=-1)
    assert apart_mm.mean() < 0.1
    assert apart_mm.max() < 0.5
    vertices_mm = 100 * (model.vertices(found_id, found_exp) - model.vertices(id, exp)).norm(dim=-1)
    assert vertices_mm.mean() < 0.5  # the rest of the head follows
    jaw = EXPRESSION_MODES.index("jaw_open")
    assert abs(found_exp[:, jaw] - exp[:, jaw]).mean() < 0.01


def test_an_identity_that_is_known_is_kept() -> None:
    model, (id, exp) = demo_head(), speech_like()
    found_id, found_exp = coefficients_of_offsets(model, model.landmark_offsets(id, exp), id)
    assert torch.equal(found_id, id)
    assert abs(found_exp - exp).mean() < 0.01  # what the prior takes from the strongest


def test_noise_of_a_millimetre_is_not_followed() -> None:
    model, (id, exp) = demo_head(), speech_like()
    offsets = model.landmark_offsets(id, exp)
    noisy = offsets + 0.01 * torch.randn(offsets.shape, generator=torch.Generator().manual_seed(0))
    found = model.landmark_offsets(*coefficients_of_offsets(model, noisy))
    assert (found - offsets).norm(dim=-1).mean() < 0.3 * (noisy - offsets).norm(dim=-1).mean()


def test_expressions_stay_within_their_bounds() -> None:
    model, (id, exp) = demo_head(), speech_like()
    beyond = model.landmark_offsets(id, 2.0 * exp - 0.3)
    low, high = (float(bound) for bound in (model.exp_bounds.min(), model.exp_bounds.max()))  # type: ignore[union-attr]
    _, found = coefficients_of_offsets(model, beyond)
    assert low <= float(found.min())
    assert float(found.max()) <= high
    _, free = coefficients_of_offsets(replace(model, exp_bounds=None), beyond)
    assert float(free.min()) < low
    assert float(free.max()) > high


def test_they_are_those_of_a_general_solver() -> None:
    """One frame and a known identity: bounded least squares with a row for each prior."""
    model, (id, exp) = demo_head(), speech_like()
    random = torch.Generator().manual_seed(1)
    offsets = model.landmark_offsets(id, exp[7:8]) + 0.02 * torch.randn(1, 68, 3, generator=random)
    _, found = coefficients_of_offsets(model, offsets, id)
    basis = model.landmark_exp_basis.flatten(0, 1).double().numpy() / NOISE_DECIMETRES
    target = (offsets - model.landmark_offsets(id, torch.zeros(model.num_exp))).flatten().double().numpy()
    rows = np.concatenate([basis, np.diag(1 / model.exp_sigma.double().numpy())])
    wanted = lsq_linear(rows, np.concatenate([target / NOISE_DECIMETRES, np.zeros(model.num_exp)]), (0.0, 1.0))
    np.testing.assert_allclose(found[0], wanted.x, atol=2e-3)


@pytest.mark.parametrize("shape", [(0, 68, 3), (4, 67, 3), (4, 204)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"offsets must be \[T, 68, 3\]"):
        coefficients_of_offsets(demo_head(), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"id must be \[16\]"):
        coefficients_of_offsets(demo_head(), torch.zeros(2, 68, 3), torch.zeros(3))
