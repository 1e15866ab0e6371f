"""Rotations in three dimensions: Euler angles, matrices, quaternions and axis-angle vectors, batched.

All functions take any leading dimensions ``...``, keep dtype and device, and are differentiable except
where said. Matrices act on column vectors: ``rotated = R x``, for rows of points ``points @ R.T``. Angles
are radians, positive by the right-hand rule.

Euler angles (rx, ry, rz) mean ``R = Rz(rz) Ry(ry) Rx(rx)``: first about x (nodding), then y (turning), then z
(tilting), all about the fixed axes of the camera. This is Deep3DFaceRecon's order, and scipy's ``"xyz"``.
"""

from __future__ import annotations

import torch

_GIMBAL_COSINE = 1e-6  # below this cos(ry), rx and rz turn about the same axis


def euler_to_matrix(angles: torch.Tensor) -> torch.Tensor:
    """R = Rz Ry Rx [..., 3, 3] of ``angles`` [..., 3] = (rx, ry, rz)."""
    (sx, sy, sz), (cx, cy, cz) = torch.sin(angles).unbind(-1), torch.cos(angles).unbind(-1)
    return _matrix(
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )


def matrix_to_euler(rotation: torch.Tensor) -> torch.Tensor:
    """(rx, ry, rz) [..., 3] of ``rotation`` [..., 3, 3]; ry in [-pi/2, pi/2], rx and rz in [-pi, pi].

    Where ry = +-pi/2 only rx -+ rz is determined: rz = 0 is chosen there.
    """
    r = rotation
    cos_y = torch.hypot(r[..., 0, 0], r[..., 1, 0])
    ry = torch.atan2(-r[..., 2, 0], cos_y)
    locked = cos_y < _GIMBAL_COSINE
    rx = torch.where(locked, torch.atan2(-r[..., 1, 2], r[..., 1, 1]), torch.atan2(r[..., 2, 1], r[..., 2, 2]))
    rz = torch.where(locked, torch.zeros_like(rx), torch.atan2(r[..., 1, 0], r[..., 0, 0]))
    return torch.stack((rx, ry, rz), -1)


def axis_angle_to_matrix(vector: torch.Tensor) -> torch.Tensor:
    """exp([v]x) [..., 3, 3] of ``vector`` [..., 3], whose length is the angle (Rodrigues' formula), smooth at 0."""
    squared = (vector * vector).sum(-1)[..., None, None]
    small = squared < 1e-6
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    versine = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / (angle * angle))
    cross = cross_matrix(vector)
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return identity + sine * cross + versine * (cross @ cross)


def cross_matrix(vector: torch.Tensor) -> torch.Tensor:
    """[v]x [..., 3, 3], so that ``[v]x w = v x w``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return _matrix((zero, -z, y), (z, zero, -x), (-y, x, zero))


def matrix_to_quaternion(rotation: torch.Tensor) -> torch.Tensor:
    """Unit quaternion (w, x, y, z) [..., 4] with w >= 0 of ``rotation`` [..., 3, 3].

    Each component squared follows from the diagonal; the largest is taken as divisor (Shepperd's method), so
    no rotation is badly conditioned.
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
    """Rotation [..., 3, 3] of ``quaternion`` [..., 4] = (w, x, y, z), which need not have unit length."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    return _matrix(
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def interpolate_rotations(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Rotations [..., 3, 3] on the shortest way from ``first`` (share 0) to ``second`` (share 1), [..., 3, 3] each.

    Normalised linear interpolation of quaternions: the same path as slerp at a slightly uneven speed.
    ``share`` is [...], in 0..1.
    """
    start, end = matrix_to_quaternion(first), matrix_to_quaternion(second)
    end = torch.where((start * end).sum(-1, keepdim=True) < 0, -end, end)
    return quaternion_to_matrix(start + share[..., None] * (end - start))


def angle_between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angle [...] in [0, pi] between rotations [..., 3, 3]; exact for small angles too (through the quaternion)."""
    quaternion = matrix_to_quaternion(first.transpose(-1, -2) @ second)
    return 2 * torch.atan2(quaternion[..., 1:].norm(dim=-1), quaternion[..., 0])


def _matrix(*rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
