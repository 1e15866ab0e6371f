"""Draw meshes with pytorch3d, in this package's conventions. Optional: no other module imports pytorch3d.

pytorch3d's views have x to the left, y up and z away from the camera, whose centre is the origin; points are rows,
``view = X @ R + T``; normalised device coordinates (NDC) run over -1..1 on the shorter side of the image, x to the
left and y up, and pixels are counted from their edges. Here (``geometry.camera``) x goes to the right, z towards the
viewer, the camera stands at z = distance, and whole numbers are pixel centres. So with M = diag(-1, 1, -1)

    R_p3d = R^T M,  T_p3d = M t + (0, 0, distance),
    focal_ndc = 2 focal_px / s,  principal_ndc = (W, H) / s - (2 c_px + 1) / s,  s = min(H, W)

Letters: N images of H x W pixels, V vertices, F triangles, D values per vertex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.camera import DISTANCE

MIRROR = (-1.0, 1.0, -1.0)


def require_pytorch3d(purpose: str) -> None:
    """Raise ``RunError``, which says what to do, if pytorch3d cannot be imported for ``purpose``."""
    try:
        import pytorch3d.renderer
    except ImportError as error:
        raise RunError(
            f"{purpose} needs pytorch3d (the extra `render`), which is not installed here: {error}. It has no wheel on "
            "the package index: see its own installation notes"
        ) from error
    assert pytorch3d.renderer


def pytorch3d_version() -> str:
    import pytorch3d

    return str(pytorch3d.__version__)


def matrix_to_pytorch3d(rotation: torch.Tensor, translation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """pytorch3d's (R [..., 3, 3], T [..., 3]) for a rotation and a translation (decimetres) to our camera space."""
    mirror = rotation.new_tensor(MIRROR)
    return rotation.mT * mirror, translation * mirror + translation.new_tensor((0.0, 0.0, DISTANCE))


def make_cameras(
    rotation: torch.Tensor, translation: torch.Tensor, pinhole: torch.Tensor, height: int, width: int
) -> Any:
    """pytorch3d's ``PerspectiveCameras`` for ``rotation`` [N, 3, 3] and ``translation`` [N, 3] in our conventions.

    ``pinhole`` [N, 4] is the focal length along x and y, and the centre x and y, in our pixels.
    """
    from pytorch3d.renderer import PerspectiveCameras

    turned, moved = matrix_to_pytorch3d(rotation, translation)
    side, size = min(height, width), pinhole.new_tensor((width, height))
    return PerspectiveCameras(
        focal_length=2 * pinhole[:, :2] / side,
        principal_point=(size - 2 * pinhole[:, 2:] - 1) / side,
        R=turned,
        T=moved,
        device=rotation.device,
    )


@dataclass(frozen=True)
class Fragments:
    """For each pixel, the nearest triangle that faces the camera."""

    triangle: torch.Tensor  # [N, H, W] i64, -1 if there is none
    barycentric: torch.Tensor  # [N, H, W, 3] f32, perspective-correct
    depth: torch.Tensor  # [N, H, W] f32, decimetres from the camera; inf if there is none

    def interpolate(self, values: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
        """Interpolate ``values`` [N, V, D] at the vertices to [N, H, W, D]; 0 where there is no triangle."""
        corners = triangles[self.triangle.clamp(min=0)].flatten(1, 3)  # [N, H W 3]
        found = torch.take_along_dim(values, corners[..., None], 1).unflatten(1, (*self.triangle.shape[1:], 3))
        seen = (self.triangle >= 0)[..., None]
        return (found * self.barycentric[..., None]).sum(-2) * seen


def rasterize(vertices: torch.Tensor, triangles: torch.Tensor, cameras: Any, height: int, width: int) -> Fragments:
    """Rasterise meshes of ``vertices`` [N, V, 3] f32 and ``triangles`` [F, 3] with N pytorch3d cameras.

    Differentiable in the barycentric coordinates and the depth.
    """
    from pytorch3d.renderer import MeshRasterizer, RasterizationSettings
    from pytorch3d.structures import Meshes

    settings = RasterizationSettings(image_size=(height, width), perspective_correct=True, cull_backfaces=True)
    meshes = Meshes(verts=vertices, faces=triangles.expand(len(vertices), -1, -1))
    fragments = MeshRasterizer(cameras, settings)(meshes)
    packed = fragments.pix_to_face[..., 0]  # numbered consecutively over all images
    seen = packed >= 0
    first = torch.arange(len(vertices), device=packed.device)[:, None, None] * len(triangles)
    return Fragments(
        triangle=torch.where(seen, packed - first, -1),
        barycentric=fragments.bary_coords[..., 0, :],
        depth=torch.where(seen, fragments.zbuf[..., 0], torch.inf),
    )


def render(
    vertices: torch.Tensor,
    colours: torch.Tensor,
    triangles: torch.Tensor,
    cameras: Any,
    height: int,
    width: int,
    supersampling: int = 1,
) -> torch.Tensor:
    """Images [N, H, W, 4] f32 of meshes with ``colours`` [N, V, 3] at their vertices: RGB times coverage, coverage.

    Anti-aliased: drawn ``supersampling`` times as fine in both directions, and averaged.
    """
    hits = rasterize(vertices, triangles, cameras, supersampling * height, supersampling * width)
    covered = (hits.triangle >= 0)[..., None].to(colours.dtype)
    planes = torch.cat((hits.interpolate(colours, triangles), covered), -1).permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(planes, supersampling).permute(0, 2, 3, 1)
