"""Face alignment of Deep3DFaceRecon: from landmarks to a 224 x 224 crop of the resized frame.

Five points of the face are matched with the same points of a standard 3D face under a scaled orthographic camera:

    [x, y] = [[r1 . X + tx], [r2 . X + ty]]    solved for r1, r2, tx, ty in the least-squares sense

(Dementhon and Davis, "Model-based object pose in 25 lines of code", 1995). The frame is resized by 102 over the mean
length of r1 and r2, so that a decimetre of face takes 102 pixels, and cropped around (tx, ty), the standard face's
origin. Here y points upwards from the lowest row: y = H - 1 - row. Sizes and positions are truncated to whole pixels,
in f64, at the same steps as in the original, so that the crops are equal to the pixel.

Letters: n frames, H W source size, S = 224.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrs3_loader.errors import RunError
from lrs3_loader.face.image.resample import resize_crop
from lrs3_loader.io.mat_files import read_mat
from lrs3_loader.runtime.transfer import to_device

CROP_SIZE = 224
PIXELS_PER_UNIT = 102.0  # of the standard face, after resizing
MAX_RESIZED = 1 << 16  # pixels; landmarks that would enlarge the frame beyond this are hardly apart

_EYES = ((36, 39), (42, 45))  # iBUG-68: outer and inner corners
_OTHERS = (30, 48, 54)  # tip of the nose, corners of the mouth


def five_points(landmarks: Tensor) -> Tensor:
    """Compute the five points [..., 5, D] for the alignment from iBUG-68 ``landmarks`` [..., 68, D].

    They are the centres of the eye on the left of the image and of the other one, the tip of the nose, the left and the
    right corner of the mouth.
    """
    eyes = [(landmarks[..., a, :] + landmarks[..., b, :]) / 2 for a, b in _EYES]
    return torch.stack([*eyes, *(landmarks[..., k, :] for k in _OTHERS)], -2)


def load_standard_face(path: Path) -> Tensor:
    """Read the five points f32 [5, 3] of the standard face from Deep3DFaceReconstruction's ``similarity_Lm3D_all.mat``.

    They lie on the Basel Face Model's mean face: x right, y up, z to the viewer, decimetres. Raises ``RunError`` for a
    file that is damaged or another one.
    """
    try:
        arrays = read_mat(path, ("lm",))
        if "lm" not in arrays:
            raise ValueError("it has no lm")
        landmarks = arrays["lm"].astype(np.float32)
        if landmarks.shape != (68, 3):
            raise ValueError(f"its lm is {list(landmarks.shape)}, not [68, 3]")
        points = five_points(torch.from_numpy(landmarks))
        if not torch.isfinite(points).all():
            raise ValueError("its points are not finite")
        spread = torch.linalg.svdvals((points - points.mean(0)).double())
        if spread[2] <= 1e-3 * spread[0]:
            raise ValueError("the points of the standard face lie in one plane")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not Deep3DFaceRecon's similarity_Lm3D_all.mat: {error}") from error
    return points


@dataclass(frozen=True)
class Alignment:
    """The resizing and cropping of n frames; all tensors are on the CPU."""

    resized: Tensor  # i64 [n, 2], width and height of the whole frame
    corner: Tensor  # i64 [n, 2], left and top of the crop in it; it may lie partly outside
    usable: Tensor  # bool [n]; false where landmarks are not finite or hardly apart, and the crop has no meaning


def align(points: Tensor, standard: Tensor, height: int, width: int) -> Alignment:
    """Compute the crop of every frame.

    Args:
        points: f32 [n, 5, 2], pixels of the source, y down, NaN where there is no face.
        standard: f32 [5, 3], not all in one plane.
        height, width: size of the frames.
    """
    x, row = points.cpu().unbind(-1)
    target = torch.stack([x, height - 1 - row], -1).double()  # the subtraction in f32, as in the original
    ones = torch.ones(len(standard), 1, dtype=torch.float64)
    solution = torch.linalg.pinv(torch.cat([standard.cpu().double(), ones], 1)) @ target  # [n, 4, 2]
    centre = solution[:, 3]
    scale = PIXELS_PER_UNIT / torch.linalg.vector_norm(solution[:, :3], dim=1).mean(1, keepdim=True)  # [n, 1]

    size = torch.tensor([width, height], dtype=torch.float64)
    resized = (size * scale).trunc()
    away = torch.stack([centre[:, 0] - size[0] / 2, size[1] / 2 - centre[:, 1]], 1) * scale
    corner = (resized / 2 - CROP_SIZE / 2 + away).trunc()
    usable = ((resized >= 1) & (resized <= MAX_RESIZED) & (corner.abs() <= MAX_RESIZED)).all(1)
    return Alignment(resized.where(usable[:, None], 1.0).long(), corner.where(usable[:, None], 0.0).long(), usable)


def crop_faces(frames: Tensor, alignment: Alignment) -> Tensor:
    """Crop the k usable ones of the frames u8 [n, H, W, 3]; returns u8 [k, S, S, 3] on their device.

    The crops equal those of Pillow's bicubic ``resize`` and ``crop`` bit for bit (see ``image.resample``).
    """
    usable = alignment.usable
    if not usable.all():
        frames = frames[to_device(usable.nonzero()[:, 0], frames.device)]
    return resize_crop(frames, alignment.resized[usable], alignment.corner[usable], CROP_SIZE)
