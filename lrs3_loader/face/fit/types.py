"""Configuration, inputs and results of landmark fitting.

Letters: T frames, L = 68 landmarks, I identity modes, E expression modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES, NUM_MESH_POINTS
from lrs3_loader.face.image.crops import FaceCrops
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel

_MAY_BE_ZERO = ("side_weight", "correlated_noise_of_frame")
_GENEFACE_SIDE = 224  # pixels of the frames that GeneFace++ fits in


@dataclass(frozen=True)
class FitConfig:
    """Noise model, priors and effort of a landmark fit.

    Noise, priors and smoothness were chosen by how well the expression and rotation of synthetic speech are recovered
    (by reprojection alone, weaker priors would always win); the weights of eyes and mouth follow GeneFace++.
    A ``sigma`` is a standard deviation; inf switches it off. Raises ``ValueError`` for values that are not positive.
    """

    correlated_noise_decimetres: float = 0.004  # error on the face, of detector and model, the same in all frames
    correlated_noise_px: float = 0.01  # the same in pixels of the source frame, in quadrature: matters for tiny faces
    correlated_noise_of_frame: float = 0.0  # the same as a share of the frame's longer side, in quadrature
    noise_px: float = 0.4  # error in pixels that is independent in every frame, added in quadrature
    outlier_sigma: float = 4.0  # standard deviations beyond which a landmark's force is constant (pseudo-Huber)
    eye_weight: float = 3.0  # of landmarks; others have 1
    upper_lid_weight: float = 3.0
    mouth_weight: float = 5.0
    side_weight: float = 0.3  # at both ends of the contour, where detectors and models mean different points; 0: unused
    num_side_points: int = 5  # number of these at either end
    far_side_weight: float = 0.1  # factor of a contour landmark's weight on the side that a face in profile hides
    dense: bool = False  # also fit MediaPipe's dense points; the face model needs a dense correspondence
    dense_weight: float = 0.1  # of a dense point that is trusted most; times that of eyes there; lips: mouth_weight
    id_weight: float = 0.5  # of the identity prior per frame, to the extent that errors are the same in all frames
    exp_weight: float = 0.5  # of the expression prior where no blendshape score gives its mean
    score_sigma: float = 0.04  # of a coefficient about what its blendshape score says; inf: scores are not used
    size_sigma: float = 0.002  # relative size of an identity against the mean face: fixes the gauge of size and depth
    bound_sigma: float = 0.01  # softness of the bounds of expression coefficients (sigma of the excess)
    clamp: bool = True  # the result to the bounds (1.06 -> 1.08 px on real clips of 224 px, mouth 0.60 -> 0.64)
    exp_velocity_sigma: float = 0.5  # change of a coefficient from frame to frame, in units of FaceModel.exp_sigma
    rotation_velocity_sigma_radians: float = 0.01  # matters for tiny faces; for large ones the landmarks decide
    translation_velocity_sigma_decimetres: float = 0.05  # of a face 10 decimetres away; proportional to the distance
    exp_acceleration_sigma: float = 0.3  # second difference over three frames; these units as above
    rotation_acceleration_sigma_radians: float = math.inf
    translation_acceleration_sigma_decimetres: float = math.inf
    num_keyframes: int = 16  # frames from which the identity is estimated (all frames of a shorter clip)
    max_iterations: int = 15  # Levenberg-Marquardt iterations of each of the two stages, at most
    num_cg: int = 6  # conjugate gradient steps in an iteration
    tolerance: float = 1e-3  # a clip has converged when an iteration changes its objective by less than this fraction
    hessian_reuse_tol: float = 0.01  # after an iteration with a smaller relative gain, the next one reuses the Hessian

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _MAY_BE_ZERO and not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
            if not isinstance(value, bool) and name not in _MAY_BE_ZERO and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    @classmethod
    def named(cls, mode: str, model: FaceModel) -> FitConfig:
        """Return the configuration of a ``--fit`` mode.

        ``best`` has dense points where ``model`` has them; ``photometric`` starts from ``fast``.
        """
        if mode == "geneface":
            return cls.geneface(model)
        return cls.best(dense=model.dense is not None) if mode == "best" else cls.fast()

    @classmethod
    def fast(cls) -> FitConfig:
        """Configuration for large corpora: the identity is estimated from 16 keyframes, then frozen."""
        return cls()

    @classmethod
    def best(cls, dense: bool = False) -> FitConfig:
        """Identity, expression and pose of all frames jointly (up to 1024 of them), to closer convergence."""
        return cls(dense=dense, num_keyframes=1024, max_iterations=30, num_cg=8, tolerance=1e-4)

    @classmethod
    def geneface(cls, model: FaceModel) -> FitConfig:
        """GeneFace++'s objective, with its weights and priors, minimised by this package's solver.

        That is, with the landmarks scaled to a frame whose longer side is 224 pixels: the mean over frames, landmarks
        and both coordinates of ``weight * pixels^2``, plus 0.2 and 0.6 times the mean squared coefficient of identity
        and expression, plus the mean squared second difference (halved) of expression (times 1) and of pose (times
        0.3). Here everything is multiplied by 2 * 68 * T. Coefficients have no bounds. The halves of the second
        difference at both ends of a clip are left out, and a translation counts by its angle.
        """
        scale = 2.0 * NUM_LANDMARKS
        pose_acceleration_sigma = 2 / math.sqrt(0.3 * scale / 3)
        return cls(
            correlated_noise_decimetres=1e-9,
            correlated_noise_px=1e-9,
            correlated_noise_of_frame=1 / _GENEFACE_SIDE,
            noise_px=1e-9,
            outlier_sigma=math.inf,
            upper_lid_weight=20.0,
            side_weight=0.0,
            num_side_points=4,
            far_side_weight=1.0,
            id_weight=0.2 * scale / model.num_id,
            exp_weight=0.6 * scale / model.num_exp,
            score_sigma=math.inf,
            size_sigma=math.inf,
            bound_sigma=math.inf,
            clamp=False,
            exp_velocity_sigma=math.inf,
            rotation_velocity_sigma_radians=math.inf,
            translation_velocity_sigma_decimetres=math.inf,
            exp_acceleration_sigma=2 / math.sqrt(scale / model.num_exp),
            rotation_acceleration_sigma_radians=pose_acceleration_sigma,
            translation_acceleration_sigma_decimetres=pose_acceleration_sigma,
            num_keyframes=12,
            num_cg=2,
            tolerance=3e-3,
            hessian_reuse_tol=0.3,
        )


@dataclass(frozen=True)
class FitInput:
    """Landmarks of one clip. Raises ``ValueError`` if they are not finite where used, or no frame is valid."""

    lm68: torch.Tensor  # [T, 68, 2] f32, source pixels, y down; ignored where not valid or without confidence
    valid: torch.Tensor  # [T] bool, at least one true
    height: int  # pixels of the source frame
    width: int
    confidence: torch.Tensor | None = None  # [T, 68] f32 >= 0, factors of the landmarks' weights; 0: not seen
    lm468: torch.Tensor | None = None  # [T, 468 or more, 2] f32, dense points; not finite: not seen
    crops: FaceCrops | None = None  # pixels of the face, for a photometric fit
    blendshapes: torch.Tensor | None = None  # [T, 52] scores, ``BLENDSHAPE_NAMES``; ignored where not valid

    def __post_init__(self) -> None:
        num_frames = len(self.valid)
        if self.lm68.shape != (num_frames, NUM_LANDMARKS, 2) or self.valid.dtype != torch.bool:
            raise ValueError(
                f"lm68 must be [T, 68, 2] and valid bool [T], got {list(self.lm68.shape)} and "
                f"{self.valid.dtype} {list(self.valid.shape)}"
            )
        if not bool(self.valid.any()):
            raise ValueError("a clip without a single valid frame cannot be fitted")
        seen = self.valid[:, None].expand(-1, NUM_LANDMARKS)
        if self.confidence is not None:
            if self.confidence.shape != (num_frames, NUM_LANDMARKS):
                raise ValueError(f"confidence must be [T, 68], got {list(self.confidence.shape)}")
            used = self.confidence[self.valid]
            if not bool(((used >= 0) & torch.isfinite(used)).all()):
                raise ValueError("confidence must be finite and at least 0")
            seen = seen & (self.confidence > 0)
        if not bool(torch.isfinite(self.lm68[seen]).all()):
            raise ValueError("lm68 must be finite in valid frames, where the confidence is above 0")
        if self.lm468 is not None and (
            self.lm468.ndim != 3 or len(self.lm468) != num_frames or self.lm468.shape[1] < NUM_MESH_POINTS
        ):
            raise ValueError(f"lm468 must be [T, {NUM_MESH_POINTS} or more, 2], got {list(self.lm468.shape)}")
        if self.blendshapes is not None:
            if self.blendshapes.shape != (num_frames, len(BLENDSHAPE_NAMES)):
                raise ValueError(
                    f"blendshapes must be [T, {len(BLENDSHAPE_NAMES)}], got {list(self.blendshapes.shape)}"
                )
            if not bool(torch.isfinite(self.blendshapes[self.valid]).all()):
                raise ValueError("blendshapes must be finite in valid frames")
        Camera.for_frame(self.height, self.width)


@dataclass(frozen=True)
class PhotometricQuality:
    """Mean absolute difference between a clip's frames and its drawn face; colours in 0..1."""

    error_before: float  # for the landmark fit; NaN if the face was never seen
    error: float  # for the returned result
    refined: bool  # true if the returned result is the photometric fit, false if it is the landmark fit


@dataclass(frozen=True)
class FitResult:
    """Coefficients and pose of one clip, on the CPU. Frames without a face have interpolated values."""

    id: torch.Tensor  # [I] f32
    exp: torch.Tensor  # [T, E] f32
    pose: torch.Tensor  # [T, 6] f32: rx, ry, rz (radians), tx, ty, tz (decimetres), see camera.POSE_CONVENTION
    idexp_lm3d: torch.Tensor  # [T, 68, 3] f32, decimetres times 10, see FaceModel.idexp_lm3d
    reprojection_px: torch.Tensor  # [T] f32, mean distance of the landmarks seen; NaN where no face was found
    mouth_reprojection_px: torch.Tensor  # [T] f32, mean distance of the mouth points seen; NaN likewise
    face_size_px: torch.Tensor  # [T] f32, geometric mean of the landmarks' width and height; NaN likewise
    converged: bool
    photometric: PhotometricQuality | None = None  # set by a photometric fit

    @property
    def relative_error(self) -> float:
        """Mean landmark distance as a fraction of the face size, over the frames with a face."""
        return float((self.reprojection_px / self.face_size_px).nanmean())

    @property
    def relative_mouth_error(self) -> float:
        """Mean distance of the mouth's landmarks as a fraction of the face size, over the frames with a face."""
        return float((self.mouth_reprojection_px / self.face_size_px).nanmean())
