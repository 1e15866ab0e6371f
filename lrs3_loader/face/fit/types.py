"""What goes into landmark fitting, what comes out, and what the fit believes.

Letters: T frames, I identity modes, E expression modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS
from lrs3_loader.face.image.crops import FaceCrops
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel


@dataclass(frozen=True)
class FitConfig:
    """What the fit believes, and how hard it tries.

    Noise, priors and steps were chosen by how well the expression and rotation of synthetic speech are recovered
    (by reprojection alone, weaker priors would always win); the weights of eyes and mouth follow GeneFace++.
    """

    correlated_noise_decimetres: float = 0.004
    """Expected error of an ordinary landmark on the face, detector and model together; alike in all frames."""
    correlated_noise_px: float = 0.01
    """The same in pixels of the source frame, added in quadrature: what matters for tiny faces."""
    noise_px: float = 0.4
    """Expected error in pixels that is new in every frame, added in quadrature."""
    outlier_sigma: float = 4.0
    """Landmarks further off than this many standard deviations pull with a constant force only; inf: all alike."""
    eye_weight: float = 3.0
    """Weight of the eyes' landmarks; others have 1."""
    upper_lid_weight: float = 3.0
    """Weight of the upper eyelids' landmarks."""
    mouth_weight: float = 5.0
    """Weight of the mouth's landmarks."""
    side_weight: float = 0.3
    """Weight of the contour's landmarks beside ear and hair, where detectors and models mean different points; 0: they
    are not used."""
    num_side_points: int = 5
    """How many landmarks at either end of the contour these are."""
    far_side_weight: float = 0.1
    """What is left of a contour landmark's weight on the side that a face in profile hides."""
    dense: bool = False
    """Fit MediaPipe's dense points besides the 68 landmarks; the face model needs a dense correspondence."""
    dense_weight: float = 0.1
    """Weight of a dense point where the correspondence is trusted most; lips and eyes count as above besides."""
    id_weight: float = 0.5
    """Weight of the identity prior for each frame, as far as landmark errors are alike in all frames."""
    exp_weight: float = 0.5
    """Weight of the expression prior."""
    size_sigma: float = 0.002
    """How far an identity's size may leave the mean face's (a fraction): pins the gauge; inf: it may."""
    bound_sigma: float = 0.01
    """How softly coefficients are held inside their bounds (a standard deviation of the excess); inf: not at all."""
    clamp: bool = True
    """Cut off what is left outside the bounds (1.06 -> 1.08 px on real clips of 224 px, 0.60 -> 0.64 at the mouth)."""
    exp_velocity_sigma: float = 0.5
    """Expected change of an expression coefficient from frame to frame, in its standard deviations."""
    rotation_velocity_sigma_radians: float = 0.01
    """Expected turn of the head from frame to frame; of a large face the landmarks say more, of a tiny one this."""
    translation_velocity_sigma_decimetres: float = 0.05
    """Expected shift from frame to frame of a face 10 decimetres away; grows with the distance."""
    exp_acceleration_sigma: float = 0.3
    """Expected change of that change, in the same units; inf: anything goes. Likewise for the two below."""
    rotation_acceleration_sigma_radians: float = math.inf
    translation_acceleration_sigma_decimetres: float = math.inf
    num_keyframes: int = 16
    """Frames from which the identity is estimated (all, where a clip has no more)."""
    max_iterations: int = 15
    """Levenberg-Marquardt iterations of each of the two steps."""
    num_cg: int = 6
    """Conjugate gradient steps in an iteration."""
    tolerance: float = 1e-3
    """A clip is converged when an iteration changes its objective by less than this share."""
    hessian_reuse_tol: float = 0.01
    """After an iteration that gained less than this share, the next one takes the same curvature: cheaper, and nearer
    the end hardly worse."""

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
        """``fast`` or ``best``, the latter with dense points where ``model`` has them; ``photometric`` starts fast."""
        if mode in ("fast", "photometric"):
            return cls.fast()
        if mode == "best":
            return cls.best(dense=model.dense is not None)
        raise ValueError(f"the fit must be fast, best or photometric, got {mode!r}")

    @classmethod
    def fast(cls) -> FitConfig:
        """For corpora: identity from 16 keyframes, then frozen."""
        return cls()

    @classmethod
    def best(cls, dense: bool = False) -> FitConfig:
        """Identity, expression and pose of all frames jointly (up to 1024 of them), to closer convergence."""
        return cls(dense=dense, num_keyframes=1024, max_iterations=30, num_cg=8, tolerance=1e-4)

    @classmethod
    def geneface(cls, model: FaceModel) -> FitConfig:
        """GeneFace++'s objective (its weights and priors) for landmarks in a frame of 224 x 224 pixels.

        It minimises the mean over frames, landmarks and both coordinates of ``weight * pixels^2``, plus 0.2 and 0.6
        times the mean squared coefficient of identity and expression, plus the mean squared second difference (halved)
        of expression (times 1) and of pose (times 0.3). Here everything is multiplied by 2 * 68 * T.
        The second difference's halves at a clip's ends are left out, and that of a translation counts by its angle.
        """
        scale = 2.0 * NUM_LANDMARKS
        pose_bend = 2 / math.sqrt(0.3 * scale / 3)
        return cls(
            correlated_noise_decimetres=1e-9,
            correlated_noise_px=1.0,
            noise_px=1e-9,
            outlier_sigma=math.inf,
            upper_lid_weight=20.0,
            side_weight=0.0,
            num_side_points=4,
            far_side_weight=1.0,
            id_weight=0.2 * scale / model.num_id,
            exp_weight=0.6 * scale / model.num_exp,
            size_sigma=math.inf,
            bound_sigma=math.inf,
            exp_velocity_sigma=math.inf,
            rotation_velocity_sigma_radians=math.inf,
            translation_velocity_sigma_decimetres=math.inf,
            exp_acceleration_sigma=2 / math.sqrt(scale / model.num_exp),
            rotation_acceleration_sigma_radians=pose_bend,
            translation_acceleration_sigma_decimetres=pose_bend,
            num_keyframes=12,
            num_cg=2,
            tolerance=3e-3,
            hessian_reuse_tol=0.3,
        )

    def jointly(self) -> FitConfig:
        """The same beliefs with the identity fitted jointly with all frames, as ``best`` does."""
        best = FitConfig.best()
        return replace(
            self,
            num_keyframes=best.num_keyframes,
            max_iterations=best.max_iterations,
            num_cg=best.num_cg,
            hessian_reuse_tol=best.hessian_reuse_tol,
            tolerance=best.tolerance,
        )


@dataclass(frozen=True)
class FitInput:
    """The landmarks of one clip."""

    lm68: torch.Tensor  # [T, 68, 2] f32, source pixels, y down; anything where not valid or without confidence
    valid: torch.Tensor  # [T] bool, at least one true
    height: int  # of the source frame
    width: int
    confidence: torch.Tensor | None = None  # [T, 68] f32 >= 0, factors of the landmarks' weights; 0: not seen
    lm468: torch.Tensor | None = None  # [T, 468 or more, 2] f32, dense points; not finite: not seen
    crops: FaceCrops | None = None  # the face's pixels, for a photometric fit

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
    """How well the drawn face of a clip agrees with the pictures: mean absolute difference of colours in 0..1."""

    error_before: float  # as the landmark fit has it; NaN where the face was never seen
    error: float  # as the result has it
    refined: bool  # whether the result is the refined one


@dataclass(frozen=True)
class FitResult:
    """What was fitted to one clip; all on the CPU. Frames without a face have interpolated coefficients."""

    id: torch.Tensor  # [I] f32
    exp: torch.Tensor  # [T, E] f32
    pose: torch.Tensor  # [T, 6] f32: rx, ry, rz, tx, ty, tz as camera.POSE_CONVENTION
    idexp_lm3d: torch.Tensor  # [T, 68, 3] f32, see FaceModel.idexp_lm3d
    reprojection_px: torch.Tensor  # [T] f32, mean distance of the landmarks seen; NaN where no face was found
    mouth_reprojection_px: torch.Tensor  # [T] f32, mean distance of the mouth points seen; NaN likewise
    face_size_px: torch.Tensor  # [T] f32, geometric mean of the landmarks' width and height; NaN likewise
    converged: bool
    photometric: PhotometricQuality | None = None  # of a photometric fit

    @property
    def relative_error(self) -> float:
        """Mean landmark distance as a fraction of the face size, over the frames with a face."""
        return float((self.reprojection_px / self.face_size_px).nanmean())

    @property
    def relative_mouth_error(self) -> float:
        """The same over the mouth's landmarks."""
        return float((self.mouth_reprojection_px / self.face_size_px).nanmean())
