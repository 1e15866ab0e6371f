"""Configuration, inputs and results of landmark fitting.

Letters: T frames, L = 68 landmarks, I identity modes, E expression modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS
from lrs3_loader.face.image.crops import FaceCrops
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel


@dataclass(frozen=True)
class FitConfig:
    """Noise model, priors and effort of a landmark fit.

    Noise, priors and smoothness were chosen by how well the expression and rotation of synthetic speech are recovered
    (by reprojection alone, weaker priors would always win); the weights of eyes and mouth follow GeneFace++.
    A ``sigma`` is a standard deviation. Raises ``ValueError`` for values that are not positive.
    """

    correlated_noise_decimetres: float = 0.004
    """Error of a landmark on the face, from detector and model together, that is the same in all frames of a clip."""
    correlated_noise_px: float = 0.01
    """Error of the same kind in pixels of the source frame, added in quadrature: it matters for tiny faces."""
    noise_px: float = 0.4
    """Error in pixels that is independent in every frame, added in quadrature."""
    outlier_sigma: float = 4.0
    """Number of standard deviations beyond which a landmark pulls with a constant force (pseudo-Huber); inf: never."""
    eye_weight: float = 3.0
    """Weight of the landmarks of the eyes; other landmarks have 1."""
    upper_lid_weight: float = 3.0
    """Weight of the landmarks of the upper eyelids."""
    mouth_weight: float = 5.0
    """Weight of the landmarks of the mouth."""
    side_weight: float = 0.3
    """Weight of the landmarks at both ends of the contour, near ear and hair, where detectors and models mean different
    points; 0: they are not used."""
    num_side_points: int = 5
    """Number of such landmarks at either end of the contour."""
    far_side_weight: float = 0.1
    """Factor of a contour landmark's weight on the side that a face in profile hides."""
    dense: bool = False
    """Also fit MediaPipe's dense points; the face model needs a dense correspondence."""
    dense_weight: float = 0.1
    """Weight of a dense point where the correspondence is trusted most; multiplied by those of eyes and mouth there."""
    id_weight: float = 0.5
    """Weight of the identity prior for each frame, to the extent that landmark errors are the same in all frames."""
    exp_weight: float = 0.5
    """Weight of the expression prior."""
    size_sigma: float = 0.002
    """Relative difference of an identity's size from the mean face's: fixes the gauge of size and depth; inf: free."""
    bound_sigma: float = 0.01
    """Softness of the bounds of expression coefficients (sigma of the excess); inf: no bounds."""
    clamp: bool = True
    """Clamp the result to the bounds (1.06 -> 1.08 px on real clips of 224 px, 0.60 -> 0.64 at the mouth)."""
    exp_velocity_sigma: float = 0.5
    """Change of an expression coefficient from frame to frame, in units of ``FaceModel.exp_sigma``; inf: free."""
    rotation_velocity_sigma_radians: float = 0.01
    """Rotation of the head from frame to frame. It matters for tiny faces; for large ones the landmarks decide."""
    translation_velocity_sigma_decimetres: float = 0.05
    """Translation from frame to frame of a face 10 decimetres away; proportional to the distance."""
    exp_acceleration_sigma: float = 0.3
    """Second difference of an expression coefficient over three frames, in units of ``FaceModel.exp_sigma``;
    inf: free."""
    rotation_acceleration_sigma_radians: float = math.inf
    """Second difference of the rotation over three frames."""
    translation_acceleration_sigma_decimetres: float = math.inf
    """Second difference of the translation over three frames, of a face 10 decimetres away."""
    num_keyframes: int = 16
    """Number of frames from which the identity is estimated (all frames of a shorter clip)."""
    max_iterations: int = 15
    """Maximum number of Levenberg-Marquardt iterations of each of the two stages."""
    num_cg: int = 6
    """Number of conjugate gradient steps in an iteration."""
    tolerance: float = 1e-3
    """A clip has converged when an iteration changes its objective by less than this fraction."""
    hessian_reuse_tol: float = 0.01
    """After an iteration with a relative gain below this, the next one reuses the Hessian: cheaper, and near the
    minimum hardly worse."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool):
                continue
            if name == "side_weight":
                if not value >= 0:
                    raise ValueError(f"{name} must be at least 0, got {value}")
            elif not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    @classmethod
    def named(cls, mode: str, model: FaceModel) -> FitConfig:
        """Configuration of a ``--fit`` mode.

        Args:
            mode: ``fast``, ``best`` (with dense points where ``model`` has them) or ``photometric`` (starts from the
                fast fit).
            model: The face model to be fitted.

        Raises:
            ValueError: For any other mode.
        """
        if mode in ("fast", "photometric"):
            return cls.fast()
        if mode == "best":
            return cls.best(dense=model.dense is not None)
        raise ValueError(f"the fit must be fast, best or photometric, got {mode!r}")

    @classmethod
    def fast(cls) -> FitConfig:
        """Configuration for large corpora: the identity is estimated from 16 keyframes, then frozen."""
        return cls()

    @classmethod
    def best(cls, dense: bool = False) -> FitConfig:
        """Identity, expression and pose of all frames jointly (up to 1024 of them), to closer convergence."""
        return cls(dense=dense, num_keyframes=1024, max_iterations=30, num_cg=8, tolerance=1e-4)


@dataclass(frozen=True)
class FitInput:
    """Landmarks of one clip, as ``LandmarkFitter`` takes them.

    Raises ``ValueError`` for wrong shapes, values that are not finite where they are used, or no valid frame at all.
    """

    lm68: torch.Tensor  # [T, 68, 2] f32, source pixels, y down; ignored where not valid or without confidence
    valid: torch.Tensor  # [T] bool, at least one true
    height: int  # pixels of the source frame
    width: int
    confidence: torch.Tensor | None = None  # [T, 68] f32 >= 0, factors of the landmarks' weights; 0: not seen
    lm468: torch.Tensor | None = None  # [T, 468 or more, 2] f32, dense points; not finite: not seen
    crops: FaceCrops | None = None  # pixels of the face, for a photometric fit

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
            if not bool((self.confidence[self.valid] >= 0).all() and torch.isfinite(self.confidence[self.valid]).all()):
                raise ValueError("confidence must be finite and at least 0")
            seen = seen & (self.confidence > 0)
        if not bool(torch.isfinite(self.lm68[seen]).all()):
            raise ValueError("lm68 must be finite in valid frames, where the confidence is above 0")
        if self.lm468 is not None and (
            self.lm468.ndim != 3 or len(self.lm468) != num_frames or self.lm468.shape[1] < NUM_MESH_POINTS
        ):
            raise ValueError(f"lm468 must be [T, {NUM_MESH_POINTS} or more, 2], got {list(self.lm468.shape)}")
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
