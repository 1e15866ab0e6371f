"""Where fitting starts: a closed-form pose for every frame, gaps bridged, and the choice of keyframes.

Letters as in ``terms``; N frames of any clips.
"""

from __future__ import annotations

import numpy as np
import torch

from lrs3_loader.face.geometry.camera import DISTANCE
from lrs3_loader.face.geometry.rotation import interpolate_rotations

_MIN_SCALE = 1e-4  # normalized image coordinates per decimetre: a face 1 km away; keeps degenerate landmarks finite
KEYFRAME_FEATURES = 4


def weak_perspective(
    normalized_xy: torch.Tensor, points: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rotation [N, 3, 3], translation [N, 3]) that bring ``points`` [N, K, 3] near ``normalized_xy`` [N, K, 2].

    Scaled orthographic projection: the affine map is fitted by least squares with ``weights`` [N, K], its two rows are
    replaced by the nearest orthogonal pair ``(M M^T)^(-1/2) M``, and their length gives the depth. Within about 2
    degrees of the perspective answer (DeMenthon and Davis 1995 begin so).
    """
    weights = (weights / weights.sum(-1, keepdim=True))[..., None]
    point_mean = (weights * points).sum(-2, keepdim=True)
    xy_mean = (weights * normalized_xy).sum(-2, keepdim=True)
    centred = points - point_mean
    moments = (weights * centred).transpose(-1, -2) @ centred
    ridge = 1e-6 * torch.diagonal(moments, dim1=-2, dim2=-1).sum(-1)  # points on a line are no reason to stop
    moments = moments + ridge[:, None, None] * torch.eye(3, dtype=moments.dtype, device=moments.device)
    cross = (weights * (normalized_xy - xy_mean)).transpose(-1, -2) @ centred
    affine = torch.linalg.solve(moments, cross.transpose(-1, -2)).transpose(-1, -2)  # [N, 2, 3]
    rows, scale = _orthogonal_rows(affine)
    rotation = torch.cat((rows, torch.linalg.cross(rows[..., :1, :], rows[..., 1:, :])), -2)
    depth = 1 / scale.clamp(min=_MIN_SCALE)
    centre = torch.cat((xy_mean[..., 0, :] * depth[..., None], (DISTANCE - depth)[..., None]), -1)
    return rotation, centre - (point_mean @ rotation.transpose(-1, -2))[..., 0, :]


def _orthogonal_rows(affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest orthonormal rows [N, 2, 3] of ``affine`` [N, 2, 3], and its mean singular value [N].

    With G = M M^T (2 x 2): sqrt(G) = (G + sqrt(det G) 1) / sqrt(tr G + 2 sqrt(det G)), inverted in closed form.
    """
    gram = affine @ affine.transpose(-1, -2)
    a, b, c = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
    root_det = (a * c - b * b).clamp(min=1e-24).sqrt()
    root_trace = (a + c + 2 * root_det).sqrt()
    adjugate = torch.stack((torch.stack((c + root_det, -b), -1), torch.stack((-b, a + root_det), -1)), -2)
    inverse_root = adjugate / (root_det * root_trace)[..., None, None]
    return inverse_root @ affine, root_trace / 2


def bridge_gaps(
    rotation: torch.Tensor, translation: torch.Tensor, valid: torch.Tensor, clip_of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses of frames that are not ``valid`` [N], interpolated between the nearest valid ones of the same clip.

    Before the first and after the last valid frame the nearest one is repeated. ``clip_of`` [N] numbers the clips,
    rising; every clip needs a valid frame.
    """
    index = torch.arange(len(valid), device=valid.device)
    before = torch.where(valid, index, -1).cummax(0).values
    after = torch.where(valid, index, len(valid)).flip(0).cummin(0).values.flip(0)
    before_fits = (before >= 0) & (clip_of[before.clamp(min=0)] == clip_of)
    after_fits = (after < len(valid)) & (clip_of[after.clamp(max=len(valid) - 1)] == clip_of)
    before = torch.where(before_fits, before, after)
    after = torch.where(after_fits, after, before)
    share = (index - before) / (after - before).clamp(min=1)
    share = share.to(translation.dtype)
    moved = translation[before] + share[:, None] * (translation[after] - translation[before])
    turned = interpolate_rotations(rotation[before], rotation[after], share)
    return (
        torch.where(valid[:, None, None], rotation, turned),
        torch.where(valid[:, None], translation, moved),
    )


def keyframe_features(rotation: torch.Tensor, lips: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """[N, 4] what keyframes should differ in: where the face looks (2), how it is tilted, how open the mouth is.

    In units that make a turn of 11 degrees count as much as an opening of 2 cm. ``lips`` [N, 2, 2] are the normalized
    image coordinates of the middles of the inner lips.
    """
    depth = (DISTANCE - translation[:, 2:]).clamp(min=1e-3)
    opening = (lips[:, 0] - lips[:, 1]).norm(dim=-1, keepdim=True) * depth
    tilt = rotation[:, 1:2, 0]
    return torch.cat((rotation[:, :2, 2] / 0.2, 0.5 * tilt / 0.2, opening / 0.2), -1)


def spread(features: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` rows of ``features`` [n, 4] (all where n <= count), rising, as far apart as can be.

    Farthest-point sampling from the row nearest the median. Ties go to the first.
    """
    if len(features) <= count:
        return np.arange(len(features))
    distance = np.square(features - np.median(features, axis=0)).sum(1)
    chosen = [int(distance.argmin())]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(1))
        nearest[chosen] = -1.0  # never twice, even where all frames are alike
        chosen.append(int(nearest.argmax()))
    return np.sort(np.array(chosen))
