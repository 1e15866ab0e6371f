"""The meaning of MediaPipe's face landmarks: iBUG-68 points, blendshape inputs and blendshape names.

The mesh has 468 points (the older network) or 478 (with two irises, 468-477, in the newer one); point numbers are the
same in both and are defined by MediaPipe's canonical face model. "Right" and "left" are the subject's: the right eye
is on the left of the image.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Points = TypeVar("Points", np.ndarray, Tensor)
NUM_MESH_POINTS = 468

#: The 68 points of the iBUG 300-W scheme (Sagonas et al., 2013), in its order, as points of the mesh. The contour is
#: the mesh's face oval, from the right temple over the chin to the left one: in profile poses it follows the head,
#: while iBUG annotators follow the visible outline. All other points are at the same feature of the face.
IBUG68: tuple[int, ...] = (
    # 0-16 contour: right temple, jaw, chin (8), jaw, left temple
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,
    # 17-21 right brow from the outside in, 22-26 left brow from the inside out: upper edges
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    # 27-30 bridge of the nose from the top to the tip, 31-35 its lower edge from right to left
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    # 36-41 right eye: outer corner, upper lid (2), inner corner, lower lid (2)
    33, 160, 158, 133, 153, 144,
    # 42-47 left eye: inner corner, upper lid (2), outer corner, lower lid (2)
    362, 385, 387, 263, 373, 380,
    # 48-59 outer lips: right corner, upper lip, left corner (54), lower lip
    61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91,
    # 60-67 inner lips: right corner, upper lip, left corner (64), lower lip
    78, 81, 13, 311, 308, 402, 14, 178,
)  # fmt: skip

#: iBUG point i becomes IBUG68_MIRROR[i] when the image is mirrored.
IBUG68_MIRROR: tuple[int, ...] = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46,
    39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1),
    *range(64, 59, -1), *range(67, 64, -1),
)  # fmt: skip

#: The points, in order, whose pixel positions the blendshape network reads (MediaPipe's face blendshapes graph).
BLENDSHAPE_POINTS: tuple[int, ...] = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80,
    81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153,
    154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251,
    263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318,
    321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386,
    387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
)  # fmt: skip

#: Names of the 52 scores, in the network's order. The first is not an ARKit blendshape and stays near 0.
BLENDSHAPE_NAMES: tuple[str, ...] = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip


def to_ibug68(points: Points) -> Points:
    """Select the 68 iBUG points of mesh points [..., L, D], L >= 468: [..., 68, D] in the same units."""
    if points.ndim < 2 or points.shape[-2] < NUM_MESH_POINTS:
        raise ValueError(f"points must be [..., {NUM_MESH_POINTS} or more, D], got {list(points.shape)}")
    if isinstance(points, Tensor):
        return points.index_select(-2, _ibug68_on(points.device))
    return points[..., list(IBUG68), :]


@functools.cache
def _ibug68_on(device: torch.device) -> Tensor:
    """The index stays on the device: sent there each time, it would block the host until the device has caught up."""
    with torch.inference_mode(False):
        return torch.tensor(IBUG68, device=device)
