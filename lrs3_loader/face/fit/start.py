"""Initialisation of a landmark fit: closed-form poses, gap filling and the choice of keyframes.

Letters: N frames (of one or more clips, concatenated), K landmarks.
"""

from __future__ import annotations

import numpy as np
import torch

from lrs3_loader.face.geometry.camera import DISTANCE
from lrs3_loader.face.geometry.rotation import interpolate_rotations

_MIN_SCALE = 1e-4  # normalized image coordinates per decimetre: a face 1 km away; keeps degenerate landmarks finite


def weak_perspective(
    normalized_xy: torch.Tensor, points: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Closed-form rotation [N, 3, 3] and translation [N, 3] under scaled orthographic (weak perspective) projection.

    The affine map M [2, 3] from points to image is fitted by weighted least squares; its rows are replaced by the
    nearest orthogonal pair ``(M M^T)^(-1/2) M``, and their length gives the depth. The result lies within about 2
    degrees of the perspective pose. DeMenthon and Davis, "Model-based object pose in 25 lines of code" (IJCV 1995),
    start from the same approximation.

    Args:
        normalized_xy: [N, K, 2] normalized image coordinates, see ``fit.terms``.
        points: [N, K, 3] the same landmarks in model space, decimetres.
        weights: [N, K], positive.
    """
    weights = (weights / weights.sum(-1, keepdim=True))[..., None]
    point_mean = (weights * points).sum(-2, keepdim=True)
    xy_mean = (weights * normalized_xy).sum(-2, keepdim=True)
    centred = points - point_mean
    moments = (weights * centred).mT @ centred
    ridge = 1e-6 * torch.diagonal(moments, dim1=-2, dim2=-1).sum(-1)  # points on a line are no reason to stop
    moments = moments + ridge[:, None, None] * torch.eye(3, dtype=moments.dtype, device=moments.device)
    cross = (weights * (normalized_xy - xy_mean)).mT @ centred
    affine = torch.linalg.solve(moments, cross.mT).mT  # [N, 2, 3]
    rows, scale = _orthogonal_rows(affine)
    rotation = torch.cat((rows, torch.linalg.cross(rows[..., :1, :], rows[..., 1:, :])), -2)
    depth = 1 / scale.clamp(min=_MIN_SCALE)
    centre = torch.cat((xy_mean[..., 0, :] * depth[..., None], (DISTANCE - depth)[..., None]), -1)
    return rotation, centre - (point_mean @ rotation.mT)[..., 0, :]


def _orthogonal_rows(affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest matrix with orthonormal rows [N, 2, 3] to ``affine`` [N, 2, 3], and the mean singular value [N].

    With G = M M^T (2 x 2): sqrt(G) = (G + sqrt(det G) 1) / sqrt(tr G + 2 sqrt(det G)), inverted in closed form.
    """
    gram = affine @ affine.mT
    a, b, c = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
    root_det = (a * c - b * b).clamp(min=1e-24).sqrt()
    root_trace = (a + c + 2 * root_det).sqrt()
    adjugate = torch.stack((torch.stack((c + root_det, -b), -1), torch.stack((-b, a + root_det), -1)), -2)
    inverse_root = adjugate / (root_det * root_trace)[..., None, None]
    return inverse_root @ affine, root_trace / 2


def bridge_gaps(
    rotation: torch.Tensor, translation: torch.Tensor, valid: torch.Tensor, clip_of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Interpolate the poses of invalid frames between the nearest valid frames of the same clip.

    Before the first and after the last valid frame of a clip, the nearest valid pose is repeated. ``valid`` [N] is true
    at least once per clip; ``clip_of`` [N] is each frame's clip number, ascending.
    """
    if valid.device.type == "cpu" and bool(valid.all()):
        return rotation, translation
    index = torch.arange(len(valid), device=valid.device)
    before = torch.where(valid, index, -1).cummax(0).values
    after = torch.where(valid, index, len(valid)).flip(0).cummin(0).values.flip(0)
    before_fits = (before >= 0) & (clip_of[before.clamp(min=0)] == clip_of)
    after_fits = (after < len(valid)) & (clip_of[after.clamp(max=len(valid) - 1)] == clip_of)
    before = torch.where(before_fits, before, after)
    after = torch.where(after_fits, after, before)
    share = ((index - before) / (after - before).clamp(min=1)).to(translation.dtype)
    moved = translation[before] + share[:, None] * (translation[after] - translation[before])
    turned = interpolate_rotations(rotation[before], rotation[after], share)
    return torch.where(valid[:, None, None], rotation, turned), torch.where(valid[:, None], translation, moved)


def keyframe_features(rotation: torch.Tensor, lips: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """Features [N, 4] in which keyframes should differ: gaze of the head (2), its tilt, opening of the mouth.

    Scaled so that a rotation by 11 degrees counts as much as an opening by 2 cm. ``lips`` [N, 2, 2] are the normalized
    image coordinates of the middles of the upper and the lower inner lip.
    """
    depth = (DISTANCE - translation[:, 2:]).clamp(min=1e-3)
    opening = (lips[:, 0] - lips[:, 1]).norm(dim=-1, keepdim=True) * depth
    tilt = rotation[:, 1:2, 0]
    return torch.cat((rotation[:, :2, 2] / 0.2, 0.5 * tilt / 0.2, opening / 0.2), -1)


def spread(features: np.ndarray, count: int) -> np.ndarray:
    """Choose ``count`` rows (at most n) of ``features`` [n, C] that are far apart, by farthest-point sampling.

    Starts from the row nearest the median; ties go to the first row. Returns ascending row numbers.
    """
    if len(features) <= count:
        return np.arange(len(features))
    features = features.round(9)  # equal frames stay equal, whatever the rounding where they were computed
    distance = np.square(features - np.median(features, axis=0)).sum(1)
    chosen = [int(distance.argmin())]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(1))
        nearest[chosen] = -1.0  # never twice, even if all frames are equal
        chosen.append(int(nearest.argmax()))
    return np.sort(np.array(chosen))
