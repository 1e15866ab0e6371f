"""Points that a fit uses, of iBUG's 68 landmarks and MediaPipe's dense points, with their weights and precisions.

Letters: T frames of a clip, N frames of one or more clips, K points used (landmarks first, then dense points),
I identity modes, E expression modes.
"""

from __future__ import annotations

import torch

from lrs3_loader.face.fit.terms import Basis
from lrs3_loader.face.fit.types import FitConfig, FitInput
from lrs3_loader.face.geometry.camera import DISTANCE, FOCAL_PER_SIDE, Camera
from lrs3_loader.face.geometry.topology import IBUG68, NUM_MESH_POINTS
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel

MOUTH = slice(48, 68)
_EYES = slice(36, 48)
_UPPER_LIDS = [37, 38, 43, 44]
_CONTOUR = 17
_INNER_LIPS = (62, 66)  # middles of the upper and the lower inner lip
# MediaPipe's points on the contours of eyes and lips, both sides.
_EYE_RINGS = (
    33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7,
    263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249,
)  # fmt: skip
_LIPS = (
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146,
    78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95,
)  # fmt: skip
# Sines of the yaw between which the contour's hidden side loses its weight: 20 and 50 degrees.
_TURNING, _TURNED = 0.34, 0.77


class FitPoints:
    """Points of one face model that a configuration fits, on the model's device.

    ``weights`` [K] f64 and ``basis`` are those of the K points; ``inner_lips`` are the places among them of the middles
    of the upper and the lower inner lip. Raises ``ValueError`` for dense points that the model lacks.
    """

    def __init__(self, model: FaceModel, config: FitConfig) -> None:
        self.config = config
        device = model.device
        of_landmarks = _landmark_weights(config)
        self.landmarks = torch.nonzero(of_landmarks)[:, 0]  # used landmarks, on the CPU
        self.inner_lips = torch.searchsorted(self.landmarks, torch.tensor(_INNER_LIPS)).tolist()
        weights = [of_landmarks[self.landmarks].to(device)]
        columns = (model.landmark_mean, model.landmark_id_basis, model.landmark_exp_basis)
        parts = [tuple(column[self.landmarks.to(device)] for column in columns)]
        self.mesh_points = torch.zeros(0, dtype=torch.int64, device=device)
        if config.dense:
            if model.dense is None:
                raise ValueError(f"the face model {model.name} has no dense correspondence: convert it again with one")
            dense = _dense_weights(config).to(device) * model.dense.weight.double()
            (self.mesh_points,) = torch.nonzero(dense, as_tuple=True)
            weights.append(dense[self.mesh_points])
            columns = (model.dense_mean, model.dense_id_basis, model.dense_exp_basis)
            parts.append(tuple(column[self.mesh_points] for column in columns))
        self.weights = torch.cat(weights)
        mean, id, exp = (torch.cat(column).double() for column in zip(*parts, strict=True))
        bounds = model.exp_bounds
        if bounds is None:
            infinite = torch.full((model.num_exp,), torch.inf, device=device)
            bounds = torch.stack((-infinite, infinite))
        self.basis = Basis(mean, id, exp, bounds.double())

    def measure(self, clip: FitInput) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized image coordinates [T, K, 2] f64 of a clip's points, see ``fit.terms``; confidence [T, K] f64.

        Confidences are factors of the points' weights. Both are 0 where a point was not seen.
        """
        pixels = clip.lm68[:, self.landmarks.to(clip.lm68.device)]
        seen = torch.ones(pixels.shape[:2])
        if clip.confidence is not None:
            seen = clip.confidence.cpu()[:, self.landmarks]
        if len(self.mesh_points):
            if clip.lm468 is None:
                raise ValueError("a dense fit needs lm468")
            dense = clip.lm468[:, self.mesh_points.to(clip.lm468.device)]
            pixels = torch.cat((pixels, dense), 1)
            seen = torch.cat((seen, torch.isfinite(dense).all(-1).cpu().to(seen.dtype)), 1)
        seen = (seen * clip.valid.cpu()[:, None]).double().to(pixels.device)
        camera = Camera.for_frame(clip.height, clip.width)
        x, y = pixels.double().unbind(-1)
        normalized_xy = torch.stack((x - camera.centre_x_px, camera.centre_y_px - y), -1) / camera.focal_px
        return torch.where((seen > 0)[..., None], normalized_xy, 0.0), seen

    def precision(
        self, confidence: torch.Tensor, rotation: torch.Tensor, translation: torch.Tensor, focal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Precision (weight / variance) [N, K] of the normalized image coordinates.

            variance = (correlated_noise_decimetres / depth)^2 + (correlated_noise_px^2 + noise_px^2) / focal^2
                + (correlated_noise_of_frame * longer side / focal)^2

        Args:
            confidence: [N, K], see ``measure``.
            rotation: [N, 3, 3] approximate; decides which side of the contour a face in profile hides.
            translation: [N, 3] approximate.
            focal: [N] pixels.

        Returns:
            The precision, and the share [N] of the variance that is the same in all frames of a clip.
        """
        config = self.config
        on_face = config.correlated_noise_decimetres / (DISTANCE - translation[:, 2])
        correlated = on_face.square() + (config.correlated_noise_px / focal).square()
        correlated = correlated + (config.correlated_noise_of_frame / FOCAL_PER_SIDE) ** 2
        variance = correlated + (config.noise_px / focal).square()
        precision = confidence * self.weights / variance[:, None]
        contour = self.landmarks[self.landmarks < _CONTOUR]
        side = torch.sign(contour - _CONTOUR // 2).to(rotation)
        hidden = ((rotation[:, 0, 2, None] * side - _TURNING) / (_TURNED - _TURNING)).clamp(0, 1)
        precision[:, : len(contour)] *= 1 - (1 - config.far_side_weight) * hidden
        return precision, correlated / variance


def _landmark_weights(config: FitConfig) -> torch.Tensor:
    """Weights [68] f64 of iBUG's landmarks."""
    weights = torch.ones(NUM_LANDMARKS, dtype=torch.float64)
    weights[_EYES] = config.eye_weight
    weights[_UPPER_LIDS] = config.upper_lid_weight
    weights[MOUTH] = config.mouth_weight
    weights[: config.num_side_points] = config.side_weight
    weights[_CONTOUR - config.num_side_points : _CONTOUR] = config.side_weight
    return weights


def _dense_weights(config: FitConfig) -> torch.Tensor:
    """Weights [468] f64 of MediaPipe's points, 0 for those that are among iBUG's landmarks.

    Those on the lips, in between landmarks, count as landmarks do: with less, the many points around pull the lips away
    from where they were seen (held-out points of the lips are 6 % nearer than with landmarks alone, not 1 % farther).
    """
    weights = torch.full((NUM_MESH_POINTS,), config.dense_weight, dtype=torch.float64)
    weights[list(_EYE_RINGS)] *= config.eye_weight
    weights[list(_LIPS)] = config.mouth_weight
    weights[list(IBUG68)] = 0.0
    return weights


def identity_prior(model: FaceModel, config: FitConfig) -> torch.Tensor:
    """Precision matrix [I, I] f64 of the identity prior, for one frame.

    Coefficients are near 0, and the size (the root mean square distance of the landmarks from their centroid, to first
    order) is near the mean face's.
    """
    points = model.landmark_mean.double()
    points = points - points.mean(0)
    growth = torch.einsum("kc,kci->i", points, model.landmark_id_basis.double()) / points.square().sum()
    prior = torch.diag(config.id_weight / model.id_sigma.double().square())
    return prior + torch.outer(growth, growth) / config.size_sigma**2
