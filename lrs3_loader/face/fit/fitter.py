"""Fit a face model to landmarks: one identity for a clip, expression and pose for every frame.

How: a closed-form pose for every frame; the identity from keyframes of the clip, chosen to differ in pose and mouth
opening, jointly with their expression and pose; then, identity frozen, expression and pose of all frames under a
smoothness prior. Both steps by Levenberg-Marquardt (``solver``). With as many keyframes as frames the first step is
the joint fit of everything. Frames of many clips go through each step at once; long clips are cut into overlapping
windows, so a batch has bounded size. What comes out for a clip does not depend on the others.

Gauge: landmarks alone do not tell a large face far away from a small one close by. Identities are held at the mean
face's size (``FitConfig.size_sigma``), so the depth says how large the face appears, not where it was.

The noise model is of the face, not of the frame: landmark errors scale with the face, and so do all others, so that
a clip fits alike at any resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lrs3_loader.face.fit.curvature import ModeProducts
from lrs3_loader.face.fit.points import MOUTH, FitPoints, identity_prior
from lrs3_loader.face.fit.solver import FitProblem, SolverSettings, minimise
from lrs3_loader.face.fit.start import bridge_gaps, keyframe_features, spread, weak_perspective
from lrs3_loader.face.fit.terms import Observations, State
from lrs3_loader.face.fit.types import FitConfig, FitInput, FitResult
from lrs3_loader.face.fit.windows import Window, WindowBatch, batches, split_into_windows
from lrs3_loader.face.geometry.camera import DISTANCE, Camera, project
from lrs3_loader.face.geometry.rotation import matrix_to_euler
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel

__all__ = ["FitConfig", "FitInput", "FitResult", "LandmarkFitter"]

_MIN_POINTS = 6  # seen in a frame, for a pose of its own to start from
_MIN_WEIGHT = 1e-9
_GPU_LENGTH_STEP = 16  # frames: kernels and memory for a few lengths instead of any


class LandmarkFitter:
    """Fits one face model to clips, on the model's device: ``fitter(clips) -> results`` in the same order."""

    def __init__(self, model: FaceModel, config: FitConfig | None = None, batch_frames: int | None = None) -> None:
        """``batch_frames``: frames fitted at once (default 128 on a CPU, where more would leave the caches, 16384 on
        a GPU). It changes nothing but the last bits."""
        self.model = model
        self.config = config or FitConfig.fast()
        self.batch_frames = batch_frames or (128 if model.device.type == "cpu" else 16_384)
        self._length_step = 1 if model.device.type == "cpu" else _GPU_LENGTH_STEP
        self._points = FitPoints(model, self.config)
        self._products = ModeProducts(self._points.basis)
        self._id_prior = identity_prior(model, self.config)
        self._settings = SolverSettings(
            self.config.num_cg, self.config.max_iterations, self.config.tolerance, self.config.hessian_reuse_tol
        )

    @torch.no_grad()
    def __call__(self, clips: Sequence[FitInput]) -> list[FitResult]:
        """Raises ``ValueError`` where a dense fit is asked for and a clip has no dense points."""
        if not clips:
            return []
        device = self.model.device
        lengths = [len(clip.valid) for clip in clips]
        valid = torch.cat([clip.valid for clip in clips]).to(device)
        cameras = [Camera.for_frame(clip.height, clip.width) for clip in clips]
        normalized_xy, confidence, focal, clip_of = self._measured(clips)

        neutral = self._points.basis.mean.expand(len(clips), -1, -1)
        rotation, translation = self._start(normalized_xy, confidence, neutral[clip_of], valid, clip_of)
        precision, correlated_share = self._points.precision(confidence, rotation, translation, focal)
        keys = self._keyframes(rotation, normalized_xy, translation, valid, lengths)
        nothing = torch.zeros(len(clips), self.model.num_id, dtype=torch.float64, device=device)
        start = State(nothing, self._neutral_exp().expand(len(normalized_xy), -1), rotation, translation)
        found, id_converged = self._fit(start, keys, normalized_xy, precision, correlated_share)
        start = self._restart(found, keys, normalized_xy, confidence, valid, clip_of)
        state, converged = self._fit(start, split_into_windows(lengths), normalized_xy, precision, None)
        return self._results(clips, cameras, state, (id_converged & converged).tolist())

    def _measured(self, clips: Sequence[FitInput]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Concatenate the frames of all clips.

        Returns normalized image coordinates [N, K, 2], confidence [N, K], focal length in pixels [N], clip number [N].
        """
        device = self.model.device
        clip_of = torch.repeat_interleave(torch.arange(len(clips)), torch.tensor([len(clip.valid) for clip in clips]))
        clip_of = clip_of.to(device)
        cameras = [Camera.for_frame(clip.height, clip.width) for clip in clips]
        focal = torch.tensor([camera.focal_px for camera in cameras], dtype=torch.float64).to(device)[clip_of]
        normalized_xy = torch.cat(
            [self._points.normalized_xy(clip, cam) for clip, cam in zip(clips, cameras, strict=True)]
        ).to(device)
        confidence = torch.cat([self._points.confidence(clip) for clip in clips]).to(device)
        return normalized_xy, confidence, focal, clip_of

    def _start(
        self,
        normalized_xy: torch.Tensor,
        confidence: torch.Tensor,
        points: torch.Tensor,
        valid: torch.Tensor,
        clip_of: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Closed-form poses of all frames [N] for ``points`` [N, K, 3]; where too little is seen, the neighbours'."""
        enough = valid & ((confidence > 0).sum(1) >= _MIN_POINTS)
        none = torch.zeros_like(clip_of).index_add(0, clip_of, enough.long())[clip_of] == 0
        usable = torch.where(none, valid, enough)
        weights = torch.where(usable[:, None], confidence * self._points.weights + _MIN_WEIGHT, 1.0)
        rotation, translation = weak_perspective(normalized_xy, points, weights)
        return bridge_gaps(rotation, translation, usable, clip_of)

    def _keyframes(
        self,
        rotation: torch.Tensor,
        normalized_xy: torch.Tensor,
        translation: torch.Tensor,
        valid: torch.Tensor,
        lengths: Sequence[int],
    ) -> list[Window]:
        lips = normalized_xy[:, self._points.inner_lips]
        features = keyframe_features(rotation, lips, translation).cpu().numpy().astype(np.float64)
        usable = valid.cpu().numpy()
        keys, start = [], 0
        for clip, length in enumerate(lengths):
            frames = start + np.nonzero(usable[start : start + length])[0]
            chosen = frames[spread(features[frames], self.config.num_keyframes)]
            keys.append(Window(clip, torch.from_numpy(chosen), slice(0, len(chosen))))
            start += length
        return keys

    def _restart(
        self,
        found: State,
        keys: Sequence[Window],
        normalized_xy: torch.Tensor,
        confidence: torch.Tensor,
        valid: torch.Tensor,
        clip_of: torch.Tensor,
    ) -> State:
        """Where the second step starts: keyframes as ``found``, others with the keyframes' mean expression and the
        closed-form pose of the identity found."""
        exp, rotation, translation = found.exp.clone(), found.rotation.clone(), found.translation.clone()
        is_key = torch.zeros_like(valid)
        for key in keys:
            frames = key.frames.to(valid.device)
            exp[clip_of == key.clip] = found.exp[frames].mean(0)
            is_key[frames] = True
        exp[is_key] = found.exp[is_key]
        if not bool(is_key.all()):
            basis = self._points.basis
            points = basis.neutral(found.id)[clip_of] + (exp @ basis.exp.flatten(0, 1).T).unflatten(-1, (-1, 3))
            turned, moved = self._start(normalized_xy, confidence, points, valid, clip_of)
            rotation = torch.where(is_key[:, None, None], found.rotation, turned)
            translation = torch.where(is_key[:, None], found.translation, moved)
        return State(found.id, exp, rotation, translation)

    def _fit(
        self,
        start: State,
        parts: Sequence[Window],
        normalized_xy: torch.Tensor,
        precision: torch.Tensor,
        correlated_share: torch.Tensor | None,
    ) -> tuple[State, torch.Tensor]:
        """``start`` with the frames of ``parts`` fitted, and whether each clip's converged [clips].

        States hold one identity a clip [clips, I] and all frames in a row [N, ...]. The identity is fitted where
        ``correlated_share`` [N] is given, the share of the landmarks' error variance that is the same in all frames.
        """
        final = State(start.id.clone(), start.exp.clone(), start.rotation.clone(), start.translation.clone())
        converged = torch.ones(len(start.id), dtype=torch.bool, device=normalized_xy.device)
        for batch in batches(parts, self.batch_frames, normalized_xy.device, self._length_step):
            clip, index = batch.clip, batch.index
            state = State(start.id[clip], start.exp[index], start.rotation[index], start.translation[index])
            frames = self._frames(batch, normalized_xy[index], precision[index], state.translation)
            if correlated_share is not None:
                id_precision = self._id_prior * _num_errors(correlated_share[index], batch.real)[:, None, None]
                problem = FitProblem(self._points.basis, self._products, frames, id_precision=id_precision)
            else:
                problem = FitProblem(
                    self._points.basis, self._products, frames, neutral=self._points.basis.neutral(state.id)
                )
            state, done = minimise(state, problem, self._settings)
            final.id[clip] = state.id
            batch.scatter(final.exp, state.exp)
            batch.scatter(final.rotation, state.rotation)
            batch.scatter(final.translation, state.translation)
            for row, number in enumerate(clip.tolist()):
                converged[number] &= done[row]
        return final, converged

    def _frames(
        self, batch: WindowBatch, normalized_xy: torch.Tensor, precision: torch.Tensor, translation: torch.Tensor
    ) -> Observations:
        config = self.config
        exp_sigma = self.model.exp_sigma.double()
        near = batch.neighbours[..., None]
        scales = (
            config.exp_acceleration_sigma,
            config.rotation_acceleration_sigma_radians,
            config.translation_acceleration_sigma_decimetres,
        )
        bend = None
        if min(scales) < math.inf and batch.index.shape[1] > 2:
            sigma = self._change_sigma(translation, *scales)
            bend = near[:, 1:] * near[:, :-1] / sigma[:, 1:-1].square()
        sigma = self._change_sigma(
            translation,
            config.exp_velocity_sigma,
            config.rotation_velocity_sigma_radians,
            config.translation_velocity_sigma_decimetres,
        )
        return Observations(
            normalized_xy=normalized_xy,
            precision=precision * batch.real[..., None],
            exp_precision=config.exp_weight / exp_sigma.square(),
            bound_precision=config.bound_sigma**-2,
            velocity_precision=near / (sigma[:, 1:] * sigma[:, :-1]),
            acceleration_precision=bend,
            outlier_sigma=config.outlier_sigma,
        )

    def _change_sigma(self, translation: torch.Tensor, exp: float, turn: float, shift: float) -> torch.Tensor:
        """[B, T, D] standard deviations of changes from frame to frame."""
        by_exp = (exp * self.model.exp_sigma.double()).expand(*translation.shape[:2], -1)
        by_turn = torch.full_like(translation, turn)
        by_shift = (shift / DISTANCE) * (DISTANCE - translation[..., 2:]).expand(-1, -1, 3)
        return torch.cat((by_exp, by_turn, by_shift), -1)

    def _neutral_exp(self) -> torch.Tensor:
        """[E] zero, or the nearest the bounds allow."""
        bounds = self._points.basis.bounds
        return torch.clamp(torch.zeros_like(bounds[0]), min=bounds[0], max=bounds[1])

    def _results(
        self, clips: Sequence[FitInput], cameras: Sequence[Camera], state: State, converged: Sequence[bool]
    ) -> list[FitResult]:
        id, exp, bounds = state.id.float(), state.exp.float(), self._points.basis.bounds.float()
        if self.config.clamp:
            exp = torch.clamp(exp, min=bounds[0], max=bounds[1])
        pose = torch.cat((matrix_to_euler(state.rotation), state.translation), -1).float()
        clip_of = torch.repeat_interleave(torch.tensor([len(clip.valid) for clip in clips])).to(id.device)
        points = self.model.landmarks(id[clip_of], exp).cpu()
        offsets = self.model.idexp_lm3d(id[clip_of], exp).cpu()
        id, exp, pose = id.cpu(), exp.cpu(), pose.cpu()
        results, start = [], 0
        for number, (clip, camera) in enumerate(zip(clips, cameras, strict=True)):
            part = slice(start, start + len(clip.valid))
            start = part.stop
            error, extent = _distances(clip, project(points[part], pose[part], camera))
            results.append(
                FitResult(
                    id=id[number],
                    exp=exp[part],
                    pose=pose[part],
                    idexp_lm3d=offsets[part],
                    reprojection_px=error.nanmean(1),
                    mouth_reprojection_px=error[:, MOUTH].nanmean(1),
                    face_size_px=extent.prod(1).sqrt(),
                    converged=converged[number],
                )
            )
        return results


def _num_errors(correlated_share: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Number of frames [B] whose errors count as one when the identity is estimated from a sequence.

    The number of frames where errors are fully correlated (``correlated_share`` [B, T] is 1: more frames tell no more
    about the identity), 1 where they are independent.
    """
    num_frames = real.sum(1)
    share = (correlated_share * real).sum(1) / num_frames
    return 1 + share * (num_frames - 1)


def _distances(clip: FitInput, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """([T, 68] px between the landmarks and ``pixels`` [T, 68, 2], [T, 2] the landmarks' extent); NaN if not seen."""
    gone = ~clip.valid.cpu()[:, None].expand(-1, NUM_LANDMARKS)
    if clip.confidence is not None:
        gone = gone | (clip.confidence.cpu() == 0)
    lm68 = clip.lm68.cpu().float()
    error = (pixels - lm68).norm(dim=-1).masked_fill(gone, torch.nan)
    lowest = lm68.masked_fill(gone[..., None], torch.inf).amin(1)
    highest = lm68.masked_fill(gone[..., None], -torch.inf).amax(1)
    extent = (highest - lowest).masked_fill(gone.all(1, keepdim=True), torch.nan)
    return error, extent
