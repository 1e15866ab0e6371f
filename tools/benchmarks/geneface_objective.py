"""Fit configuration that minimises GeneFace++'s objective, for comparisons with its own fitting code."""

from __future__ import annotations

import math

from lrs3_loader.face.fit.fitter import FitConfig
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel


def geneface_config(model: FaceModel) -> FitConfig:
    """GeneFace++'s objective (its weights and priors) for landmarks in a frame of 224 x 224 pixels.

    It minimises the mean over frames, landmarks and both coordinates of ``weight * pixels^2``, plus 0.2 and 0.6
    times the mean squared coefficient of identity and expression, plus the mean squared second difference (halved)
    of expression (times 1) and of pose (times 0.3). Here everything is multiplied by 2 * 68 * T.
    The halves of the second difference at both ends of a clip are left out, and a translation counts by its angle.
    """
    scale = 2.0 * NUM_LANDMARKS
    pose_acceleration_sigma = 2 / math.sqrt(0.3 * scale / 3)
    return FitConfig(
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
        rotation_acceleration_sigma_radians=pose_acceleration_sigma,
        translation_acceleration_sigma_decimetres=pose_acceleration_sigma,
        num_keyframes=12,
        num_cg=2,
        tolerance=3e-3,
        hessian_reuse_tol=0.3,
    )
