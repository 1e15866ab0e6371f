"""The camera and the pose that turn a face model's points into pixels.

    camera space = points @ R.T + translation, R = Rz Ry Rx of (rx, ry, rz)
    depth = distance - z
    x_px = centre_x + focal * x / depth
    y_px = centre_y - focal * y / depth

Deep3DFaceRecon's convention (Deng et al. 2019): axes as the face model's (x right, y up, z towards the
viewer), the camera at z = ``distance`` = 10 decimetres, looking along -z. Pixels: (0, 0) is the centre of
the top left pixel and y goes down, so a frame reaches from -0.5 to width - 0.5.

A pose is [..., 6] = (rx, ry, rz, tx, ty, tz): radians and decimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lrs3_loader.face.geometry.rotation import euler_to_matrix

#: Stored beside every pose, so that a reader need not guess.
POSE_CONVENTION = (
    "rx,ry,rz[rad],tx,ty,tz[dm]; R=Rz@Ry@Rx; p=x@R.T+t; x right,y up,z to viewer; "
    "f=1015/224*max(H,W); u=(W-1)/2+f*px/(10-pz); v=(H-1)/2-f*py/(10-pz)"
)

DISTANCE = 10.0  # decimetres
_CROP_SIZE = 224
_CROP_FOCAL = 1015.0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion or skew. Pixels as in the module docstring."""

    focal_px: float
    centre_x_px: float
    centre_y_px: float
    distance: float = DISTANCE  # decimetres

    @classmethod
    def for_frame(cls, height: int, width: int) -> Camera:
        """Deep3D's field of view (12.6 degrees over the longer side), the axis through the middle of the frame."""
        if height < 1 or width < 1:
            raise ValueError(f"a frame needs a positive size, got {height} x {width}")
        focal = _CROP_FOCAL / _CROP_SIZE * max(height, width)
        return cls(focal_px=focal, centre_x_px=(width - 1) / 2, centre_y_px=(height - 1) / 2)

    @classmethod
    def deep3d_crop(cls) -> Camera:
        """Deep3DFaceRecon's camera for its 224 x 224 crops, to the pixel.

        There the centre is 112 in both directions with y counted upwards as 223 - row: 112, 111 in our
        pixels, half a pixel right and up of the middle that ``for_frame`` takes.
        """
        return cls(focal_px=_CROP_FOCAL, centre_x_px=112.0, centre_y_px=_CROP_SIZE - 1 - 112.0)


def apply_pose(points: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """``points`` [..., V, 3] moved into camera space by ``pose`` [..., 6]; leading dimensions broadcast."""
    rotation = euler_to_matrix(pose[..., :3])
    return points @ rotation.transpose(-1, -2) + pose[..., None, 3:]


def project(points: torch.Tensor, pose: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Pixels [..., V, 2] (y down) of model points [..., V, 3] in decimetres under ``pose`` [..., 6].

    Points must lie in front of the camera (camera space z < distance); behind it the result has no meaning.
    """
    x, y, z = apply_pose(points, pose).unbind(-1)
    scale = camera.focal_px / (camera.distance - z)
    return torch.stack((camera.centre_x_px + x * scale, camera.centre_y_px - y * scale), -1)
