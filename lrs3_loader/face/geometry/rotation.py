"""Rotations in three dimensions: Euler angles, matrices, quaternions and axis-angle vectors, batched.

All functions take any leading dimensions ``...``, keep dtype and device, and are differentiable unless stated
otherwise. Matrices act on column vectors: ``rotated = R x``, for rows of points ``points @ R.T``. Angles are radians,
positive by the right-hand rule.

Euler angles (rx, ry, rz) mean ``R = Rz(rz) Ry(ry) Rx(rx)``: first about x (nodding), then y (turning), then z
(tilting), all about the fixed axes of the camera. This is Deep3DFaceRecon's order, and scipy's ``"xyz"``.
"""

from __future__ import annotations

import math

import torch

_GIMBAL_COSINE = 1e-6  # below this cos(ry), rx and rz turn about the same axis


def euler_to_matrix(angles: torch.Tensor) -> torch.Tensor:
    """Convert Euler angles [..., 3] = (rx, ry, rz) to matrices R = Rz Ry Rx [..., 3, 3]."""
    (sx, sy, sz), (cx, cy, cz) = torch.sin(angles).unbind(-1), torch.cos(angles).unbind(-1)
    return _matrix(
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )


def matrix_to_euler(rotation: torch.Tensor) -> torch.Tensor:
    """Convert matrices [..., 3, 3] to Euler angles (rx, ry, rz) [..., 3].

    ry is in [-pi/2, pi/2], rx and rz are in [-pi, pi]. At ry = +-pi/2 only rx -+ rz is determined; rz is 0 there.
    """
    r = rotation
    cos_y = torch.hypot(r[..., 0, 0], r[..., 1, 0])
    ry = torch.atan2(-r[..., 2, 0], cos_y)
    locked = cos_y < _GIMBAL_COSINE
    rx = torch.where(locked, torch.atan2(-r[..., 1, 2], r[..., 1, 1]), torch.atan2(r[..., 2, 1], r[..., 2, 2]))
    rz = torch.where(locked, torch.zeros_like(rx), torch.atan2(r[..., 1, 0], r[..., 0, 0]))
    return torch.stack((rx, ry, rz), -1)


def axis_angle_to_matrix(vector: torch.Tensor) -> torch.Tensor:
    """Convert vectors [..., 3], whose length is the angle, to matrices exp([v]x) [..., 3, 3].

    Rodrigues' formula, differentiable at 0.
    """
    half_turns = torch.linalg.vector_norm(vector, dim=-1)[..., None, None] / math.pi
    sine = torch.sinc(half_turns)  # over the angle
    versine = 0.5 * torch.sinc(0.5 * half_turns).square()  # over the angle's square
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    cross = torch.linalg.cross(vector[..., None, :], identity.expand(*vector.shape[:-1], 3, 3)).mT
    return torch.addcmul(torch.addcmul(identity, sine, cross), versine, cross @ cross)


def matrix_to_quaternion(rotation: torch.Tensor) -> torch.Tensor:
    """Convert matrices [..., 3, 3] to unit quaternions (w, x, y, z) [..., 4] with w >= 0.

    Shepperd's method: the largest component is the divisor, so that no rotation is badly conditioned.
    """
    r = rotation
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    wx, wy, wz = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    xy, xz, yz = r[..., 0, 1] + r[..., 1, 0], r[..., 0, 2] + r[..., 2, 0], r[..., 1, 2] + r[..., 2, 1]
    # row i is 4 q_i (w, x, y, z)
    rows = _matrix(
        (1 + xx + yy + zz, wx, wy, wz),
        (wx, 1 + xx - yy - zz, xy, xz),
        (wy, xy, 1 - xx + yy - zz, yz),
        (wz, xz, yz, 1 - xx - yy + zz),
    )
    largest = torch.diagonal(rows, dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(rows, largest[..., None, None], dim=-2)[..., 0, :]
    unit = torch.nn.functional.normalize(row, dim=-1)
    return torch.where(unit[..., :1] < 0, -unit, unit)


def quaternion_to_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Convert quaternions (w, x, y, z) [..., 4], which need not have unit length, to matrices [..., 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    return _matrix(
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def interpolate_rotations(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Interpolate from ``first`` to ``second`` [..., 3, 3] along the shortest path, at ``share`` [...] in 0..1 of it.

    Normalised linear interpolation of quaternions: the path of slerp at a slightly uneven speed.
    """
    start, end = matrix_to_quaternion(first), matrix_to_quaternion(second)
    end = torch.where((start * end).sum(-1, keepdim=True) < 0, -end, end)
    return quaternion_to_matrix(start + share[..., None] * (end - start))


def _matrix(*rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
