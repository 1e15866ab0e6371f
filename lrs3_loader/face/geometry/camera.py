"""The camera and the pose that project a face model's points to pixels.

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

#: Stored with every pose, so that readers know its convention.
POSE_CONVENTION = (
    "rx,ry,rz[rad],tx,ty,tz[dm]; R=Rz@Ry@Rx; p=x@R.T+t; x right,y up,z to viewer; "
    "f=1015/224*max(H,W); u=(W-1)/2+f*px/(10-pz); v=(H-1)/2-f*py/(10-pz)"
)

DISTANCE = 10.0  # decimetres
FOCAL_PER_SIDE = 1015.0 / 224  # Deep3DFaceRecon's focal length over the side of its crops


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion or skew. Pixels as in the module docstring."""

    focal_px: float
    centre_x_px: float
    centre_y_px: float
    distance: float = DISTANCE  # decimetres

    @classmethod
    def for_frame(cls, height: int, width: int) -> Camera:
        """Return the camera with Deep3D's field of view (12.6 degrees over the longer side), centred in the frame.

        Raises ``ValueError`` for an empty frame.
        """
        if height < 1 or width < 1:
            raise ValueError(f"a frame needs a positive size, got {height} x {width}")
        return cls(FOCAL_PER_SIDE * max(height, width), (width - 1) / 2, (height - 1) / 2)


def apply_pose(points: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """Move ``points`` [..., V, 3] into camera space by ``pose`` [..., 6]; leading dimensions broadcast."""
    return points @ euler_to_matrix(pose[..., :3]).transpose(-1, -2) + pose[..., None, 3:]


def project(points: torch.Tensor, pose: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Project points [..., V, 3] (decimetres, in front of the camera) in ``pose`` [..., 6] to pixels [..., V, 2].

    Leading dimensions broadcast.
    """
    x, y, z = apply_pose(points, pose).unbind(-1)
    scale = camera.focal_px / (camera.distance - z)
    return torch.stack((camera.centre_x_px + x * scale, camera.centre_y_px - y * scale), -1)
