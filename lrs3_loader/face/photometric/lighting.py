"""Distant light as spherical harmonics: nine coefficients per colour channel give the brightness of each direction.

    shading(n) = sum_k light[k] Y_k(n),   n a unit normal in camera axes

Y_k are the real spherical harmonics of orders 0, 1 and 2, orthonormal over the sphere. A matt surface reflects at
least 98 % of the energy of any distant light in these nine (Ramamoorthi and Hanrahan, "An efficient representation for
irradiance environment maps", SIGGRAPH 2001). With ``light[0] = FLAT`` and zeros otherwise, all shading is 1.

Axes as in ``geometry.camera``: x right, y up, z towards the viewer.
"""

from __future__ import annotations

import math

import torch

NUM_HARMONICS = 9
FLAT = 2 * math.sqrt(math.pi)  # 1 / Y_0
_Y0 = 0.5 / math.sqrt(math.pi)
_Y1 = math.sqrt(3) * _Y0
_Y2 = math.sqrt(15) * _Y0
_Y20 = math.sqrt(5) / 2 * _Y0


def harmonics(normals: torch.Tensor) -> torch.Tensor:
    """Spherical harmonics Y_0 .. Y_8 [..., 9] in the directions ``normals`` [..., 3], unit vectors.

    In order: 1, y, z, x, x y, y z, 3 z^2 - 1, x z, x^2 - y^2, each with its constant.
    """
    x, y, z = normals.unbind(-1)
    return torch.stack(
        (
            torch.full_like(x, _Y0),
            _Y1 * y,
            _Y1 * z,
            _Y1 * x,
            _Y2 * x * y,
            _Y2 * y * z,
            _Y20 * (3 * z * z - 1),
            _Y2 * x * z,
            _Y2 / 2 * (x * x - y * y),
        ),
        -1,
    )
