"""Conversions between poses of this package and cameras of pytorch3d, which only tests need in both directions."""

from __future__ import annotations

from typing import Any

import torch

from lrs3_loader.face.geometry.camera import DISTANCE, Camera
from lrs3_loader.face.photometric.render import MIRROR, make_cameras

_EULER_ORDER = "ZYX"  # pytorch3d multiplies in the order of the letters: Rz Ry Rx, angles given as (rz, ry, rx)


def matrix_from_pytorch3d(rotation: torch.Tensor, translation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of ``render.matrix_to_pytorch3d``."""
    mirror = rotation.new_tensor(MIRROR)
    away = translation.new_tensor((0.0, 0.0, DISTANCE))
    return (rotation * mirror).transpose(-1, -2), (translation - away) * mirror


def cameras_of_pose(pose: torch.Tensor, camera: Camera, height: int, width: int) -> Any:
    """pytorch3d's ``PerspectiveCameras`` for poses [N, 6] as ``geometry.camera``: model points are its world."""
    from pytorch3d.transforms import euler_angles_to_matrix

    rotation = euler_angles_to_matrix(pose[:, :3].flip(-1), _EULER_ORDER)
    pinhole = pose.new_tensor([camera.focal_px, camera.focal_px, camera.centre_x_px, camera.centre_y_px])
    return make_cameras(rotation, pose[:, 3:], pinhole.expand(len(pose), 4), height, width)


def pose_of_cameras(cameras: Any, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses [N, 6] and pinholes [N, 4] (as ``make_cameras`` takes them) of pytorch3d's NDC ``PerspectiveCameras``."""
    from pytorch3d.transforms import matrix_to_euler_angles

    rotation, translation = matrix_from_pytorch3d(cameras.R, cameras.T)
    angles = matrix_to_euler_angles(rotation, _EULER_ORDER).flip(-1)
    side, size = min(height, width), cameras.T.new_tensor((width, height))
    focal = cameras.focal_length * side / 2
    centre = (size - side * cameras.principal_point - 1) / 2
    return torch.cat((angles, translation), -1), torch.cat((focal, centre), -1)
