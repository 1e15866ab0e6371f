"""Spherical harmonics, the face's region, and albedo and light found again; no pytorch3d needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrs3_loader.demo import demo_head
from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.face.photometric.appearance import FLAT, MISALIGNMENT_PX, Appearance, estimate_appearance, harmonics
from lrs3_loader.face.photometric.region import Region
from support.textured_face import NUM_TEXTURES, grid_face, paint, random_light


def sphere(count: int = 40_000) -> torch.Tensor:
    """[n, 3] evenly spread directions (a Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    z, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z * z)
    return torch.from_numpy(np.stack((ring * np.cos(turn), ring * np.sin(turn), z), 1))


def test_harmonics_are_orthonormal_and_hold_a_distant_lamp() -> None:
    directions = sphere()
    values = harmonics(directions)
    gram = 4 * np.pi * values.T @ values / len(values)
    assert (gram - torch.eye(9, dtype=torch.float64)).abs().max() < 1e-3
    lamp = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    lambert = (directions @ lamp).clamp(min=0)
    light = 4 * np.pi * values.T @ lambert / len(values)
    assert (lambert - values @ light).square().sum() / lambert.square().sum() < 0.02


def test_a_flat_light_shades_with_one() -> None:
    light = torch.zeros(9, 3)
    light[0] = FLAT
    shading = harmonics(sphere(50).float()) @ light
    assert torch.allclose(shading, torch.ones(50, 3))
    light[2] = 3 * FLAT  # darker than black behind
    shown = Appearance(torch.ones(2, 3), light, torch.zeros(2)).colours(torch.tensor([[0.0, 0, -1], [0, 0, 1]]))
    assert (shown[0] == 0.05).all()
    assert (shown[1] > 1).all()


def test_a_region_is_the_front_of_the_face_and_moves_as_the_model() -> None:
    model = demo_head()
    region = Region(model)
    assert 1000 < len(region) < model.num_vertices
    rng = np.random.default_rng(0)
    id = torch.tensor(rng.standard_normal((2, model.num_id)), dtype=torch.float32)
    exp = torch.tensor(rng.uniform(0, 1, (2, model.num_exp)), dtype=torch.float32)
    vertices = region.expressed(region.neutral(id), exp)
    whole = model.vertices(id, exp)
    assert torch.allclose(vertices, whole[:, region.verts], atol=1e-5)
    inner = torch.bincount(model.triangles.flatten(), minlength=model.num_vertices)[region.verts]
    inner = inner == torch.bincount(region.triangles.flatten(), minlength=len(region))
    assert inner.float().mean() > 0.85
    assert torch.allclose(
        region.normals(vertices)[:, inner], model.normals(whole)[:, region.verts][:, inner], atol=1e-4
    )
    inside = torch.isin(model.landmark_verts[27:], region.verts)
    assert inside.float().mean() > 0.8  # nose, eyes, mouth
    constant = torch.full((len(region), 2), 3.0)
    assert torch.allclose(region.smoothed(constant), constant)


def observed(textured: bool) -> tuple[Region, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(region, true albedo, colours, seen, normals) of 12 frames with turned heads, a few points hidden or wrong."""
    model = grid_face(textured=textured)
    region = Region(model)
    rng = np.random.default_rng(2)
    coefficients = torch.tensor(rng.standard_normal(NUM_TEXTURES), dtype=torch.float32)
    albedo = paint(model, 3) if model.tex_mean is None else model.tex_mean + model.tex_basis @ coefficients
    albedo = albedo[region.verts]
    turns = euler_to_matrix(torch.tensor(rng.uniform(-0.35, 0.35, (12, 3)), dtype=torch.float32))
    normals = region.normals(region.mean[None]).expand(12, -1, -1) @ turns.transpose(-1, -2)
    colours = Appearance(albedo, random_light(4), torch.zeros(len(albedo))).colours(normals)
    colours = colours + 0.01 * torch.tensor(rng.standard_normal(colours.shape), dtype=torch.float32)
    seen = torch.tensor(rng.uniform(size=colours.shape[:2]) > 0.2)
    wrong = torch.tensor(rng.uniform(size=colours.shape[:2]) > 0.97)
    return region, albedo, torch.where(wrong[..., None], 1.0, colours), seen, normals


@pytest.mark.parametrize("textured", [False, True])
def test_albedo_and_light_are_found_again(textured: bool) -> None:
    region, albedo, colours, seen, normals = observed(textured)
    look = estimate_appearance(colours, torch.zeros_like(colours[..., 0]), seen, normals, region)
    truth = Appearance(albedo, random_light(4), look.variance).colours(normals)
    assert (look.colours(normals) - truth).abs().mean() < 0.015
    flat = colours[seen].mean(0)
    assert (flat - truth).abs().mean() > 0.08  # what a single colour would reach
    # Up to one factor a channel, the albedo is the true one, not the product.
    found = look.albedo / look.albedo.mean(0) * albedo.mean(0)
    assert (found - albedo).abs().mean() < 0.012
    assert (albedo - albedo.mean(0)).abs().mean() > 0.03


def test_points_that_change_or_are_hardly_seen_count_less_but_misaligned_edges_do_not() -> None:
    region, _, colours, seen, normals = observed(False)
    colours, seen = colours.clone(), seen.clone()
    colours[::2, 40:60] = 0.1  # there and gone
    seen[:, 70:80] = False
    slopes = torch.zeros_like(colours[..., 0])
    variance = estimate_appearance(colours, slopes, seen, normals, region).variance
    usual = variance[100:].median()
    assert variance[40:60].min() > 10 * usual
    assert variance[70:80].min() > 0.2
    slopes[:, 40:60] = 2 / MISALIGNMENT_PX**2 * colours[:, 40:60].var(0).mean()
    assert (
        estimate_appearance(colours, slopes, seen, normals, region).variance[40:60].mean() < variance[40:60].mean() / 2
    )
