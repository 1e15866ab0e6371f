"""Estimate a person's appearance in one clip, a colour per vertex and the light, from frames of known shape.

    colour of vertex v in frame k = albedo[v] * shading(normal of v in k)
    shading(n) = sum_k light[k] Y_k(n),   n a unit normal in camera axes (x right, y up, z towards the viewer)

Y_k are the real spherical harmonics of orders 0, 1 and 2, orthonormal over the sphere, one coefficient per colour
channel. A matt surface reflects at least 98 % of the energy of any distant light in these nine (Ramamoorthi and
Hanrahan, "An efficient representation for irradiance environment maps", SIGGRAPH 2001). With ``light[0] = FLAT`` and
zeros otherwise, all shading is 1.

Both are fitted alternately to the colours seen in a few frames, by iteratively reweighted least squares, whose weights
reject outliers (highlights, a hand, hair; Cauchy loss). A model with texture modes has its albedo in their span, the
modes' coefficients having unit standard deviation. Without such modes every vertex has its own albedo, weakly tied to
its neighbours'. In that case only the product of light and albedo is determined: the mean shading is set to 1, so the
albedo is the mean colour.

Letters: K frames, V vertices of ``region``, X texture modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lrs3_loader.face.photometric.region import Region

FLAT = 2 * math.sqrt(math.pi)  # 1 / Y_0
_Y0 = 0.5 / math.sqrt(math.pi)
_Y1, _Y2, _Y20 = math.sqrt(3) * _Y0, math.sqrt(15) * _Y0, math.sqrt(5) / 2 * _Y0
NOISE = 0.03  # sigma of colours in 0..1: sensor, compression, errors of the shading model
MISALIGNMENT_PX = 1.0  # pixels of the crop, between frames after the landmark fit
_ROUNDS = 16
_LIGHT_PRIOR = 0.001  # relative to the observations: pulls the light towards a uniform one of the same brightness
_NEIGHBOUR_WEIGHT = 0.5  # of a vertex's neighbours, relative to one frame in which it is seen
_UNSEEN_SIGMA = 0.5  # of the colour of a vertex that is hardly ever seen: large, so that it does not count
_MIN_SEEN = 3.0  # frames
_MIN_SHADING = 0.05


@dataclass(frozen=True)
class Appearance:
    """Appearance of the person in one clip."""

    albedo: torch.Tensor  # [V, 3] f32, about 0..1
    light: torch.Tensor  # [9, 3] f32
    variance: torch.Tensor  # [V] f32, residual variance of a vertex's colour, mean over the channels

    def colours(self, normals: torch.Tensor) -> torch.Tensor:
        """Colours [..., V, 3] for unit normals [..., V, 3] in camera axes."""
        shading = (harmonics(normals) @ self.light).clamp(min=_MIN_SHADING)
        return self.albedo * shading


def harmonics(normals: torch.Tensor) -> torch.Tensor:
    """Spherical harmonics [..., 9] in the directions ``normals`` [..., 3], unit vectors.

    In order: 1, y, z, x, x y, y z, 3 z^2 - 1, x z, x^2 - y^2, each with its constant.
    """
    x, y, z = normals.unbind(-1)
    linear = torch.full_like(x, _Y0), _Y1 * y, _Y1 * z, _Y1 * x
    square = _Y2 * x * y, _Y2 * y * z, _Y20 * (3 * z * z - 1), _Y2 * x * z, _Y2 / 2 * (x * x - y * y)
    return torch.stack((*linear, *square), -1)


def estimate_appearance(
    colours: torch.Tensor, slopes: torch.Tensor, seen: torch.Tensor, normals: torch.Tensor, region: Region
) -> Appearance:
    """Estimate albedo and light from the colours seen at each vertex.

    Args:
        colours: [K, V, 3] in 0..1.
        slopes: [K, V] mean square over the channels of the image gradient there, per pixel of the crop. Frames are not
            aligned to one another yet: differences that ``MISALIGNMENT_PX`` explains do not count as variance, or the
            features of the face would have the lowest weight.
        seen: [K, V] bool; colours are ignored elsewhere.
        normals: [K, V, 3] unit vectors, camera axes.
        region: The part of the face model.
    """
    basis = harmonics(normals)
    weight = seen.to(colours.dtype)
    mean = (weight[..., None] * colours).sum((0, 1)) / weight.sum().clamp(min=1)
    albedo = mean.expand(colours.shape[1], 3)
    light = colours.new_zeros(9, 3)
    light[0] = FLAT
    trust = weight
    for _ in range(_ROUNDS):
        light = _fit_light(colours, albedo, basis, trust)
        shading = (basis @ light).clamp(min=_MIN_SHADING)
        if region.tex_basis is None:
            level = (weight[..., None] * shading).sum((0, 1)) / weight.sum().clamp(min=1)
            light, shading = light / level, shading / level
            albedo = _fit_albedo(colours, shading, trust, region, mean)
        else:
            albedo = _fit_texture(colours, shading, trust, region)
        excess = (colours - albedo * shading).square().mean(-1) / (4 * NOISE**2)
        trust = weight / (1 + excess)
    residual = (colours - albedo * shading).square().mean(-1)
    count = weight.sum(0)
    unexplained = (weight * (residual - MISALIGNMENT_PX**2 / 2 * slopes)).sum(0) / count.clamp(min=1)
    rarely = ((_MIN_SEEN - count) / _MIN_SEEN).clamp(min=0)
    return Appearance(albedo, light, unexplained.clamp(min=0) + rarely * _UNSEEN_SIGMA**2)


def _fit_light(colours: torch.Tensor, albedo: torch.Tensor, basis: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """Light [9, 3] by weighted least squares per channel, with a prior for uniform light."""
    columns = []
    rows = basis.flatten(0, 1).double()
    prior = _LIGHT_PRIOR * torch.eye(rows.shape[1], dtype=torch.float64, device=colours.device)
    for channel in range(3):
        paint = albedo[:, channel].expand(len(colours), -1)
        strength = (trust * paint.square()).flatten().double()
        scale = strength.sum().clamp(min=1e-9)
        moments = (strength[:, None] * rows).T @ rows / scale
        target = ((trust * paint * colours[..., channel]).flatten().double()[:, None] * rows).sum(0) / scale
        pull = torch.zeros_like(target)
        pull[0] = target[0] / moments[0, 0].clamp(min=1e-9)
        columns.append(torch.linalg.solve(moments + prior, target + prior @ pull))
    return torch.stack(columns, 1).to(colours.dtype)


def _fit_albedo(
    colours: torch.Tensor, shading: torch.Tensor, trust: torch.Tensor, region: Region, mean: torch.Tensor
) -> torch.Tensor:
    """Albedo [V, 3] of each vertex, weighted with that of its neighbours; ``mean`` [3] if it was never seen."""
    strength = (trust[..., None] * shading.square()).sum(0)
    total = (trust[..., None] * shading * colours).sum(0)
    own = torch.where(strength > 1e-6, total / strength.clamp(min=1e-6), mean)
    return (total + _NEIGHBOUR_WEIGHT * region.smoothed(own)) / (strength + _NEIGHBOUR_WEIGHT)


def _fit_texture(colours: torch.Tensor, shading: torch.Tensor, trust: torch.Tensor, region: Region) -> torch.Tensor:
    """Albedo [V, 3] in the span of the model's texture modes, coefficients of unit standard deviation."""
    assert region.tex_mean is not None
    assert region.tex_basis is not None
    num_modes = region.tex_basis.shape[-1]
    strength = ((trust[..., None] * shading.square()).sum(0) / NOISE**2).flatten().double()
    total = ((trust[..., None] * shading * colours).sum(0) / NOISE**2).flatten().double()
    modes = region.tex_basis.flatten(0, 1).double()
    # Vertices of a smooth texture are not independent observations: together they count as X squared observations.
    share = min(1.0, num_modes**2 / len(modes))
    moments = share * (strength[:, None] * modes).T @ modes
    target = share * modes.T @ (total - strength * region.tex_mean.flatten().double())
    eye = torch.eye(num_modes, dtype=torch.float64, device=colours.device)
    coefficients = torch.linalg.solve(moments + eye, target).to(colours.dtype)
    return region.tex_mean + region.tex_basis @ coefficients
