"""Fit a face model to landmarks: one identity per clip, expression and pose per frame.

Algorithm: a closed-form pose for every frame (``start``); the identity from keyframes of the clip, chosen to differ in
pose and mouth opening, jointly with their expression and pose; then, with the identity frozen, expression and pose of
all frames under a smoothness prior. Both stages minimise the objective of ``terms`` by Levenberg-Marquardt
(``solver``). With as many keyframes as frames, the first stage is the joint fit of everything. Frames of many clips go
through each stage together; long clips are cut into overlapping windows, so a batch has bounded size (``windows``).

The result of a clip does not depend on the other clips. On a CPU, every product has the shape that it has for the
clip alone: only clips of one length share a batch, and with one thread results are equal to the bit. A GPU is slow with
small products, so there clips of many lengths share one; the solver then works in double precision, in which the order
of sums changes nothing that is stored by more than 1e-6.

Gauge: landmarks alone do not distinguish a large face far away from a small one nearby. Identities are held at the mean
face's size (``FitConfig.size_sigma``), so the depth tells how large the face appears, not where it was.

The noise model belongs to the face, not to the frame: landmark errors scale with the face, and so do all others, so
that a clip is fitted alike at any resolution.

Letters: N frames of all clips, concatenated; K points used (``points``), L = 68 landmarks, B sequences of a batch,
T frames of a sequence, I identity modes, E expression modes, D = E + 6 unknowns of a frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lrs3_loader.face.fit.axes import ExpressionAxes
from lrs3_loader.face.fit.curvature import ModeProducts
from lrs3_loader.face.fit.expression_prior import ExpressionPrior
from lrs3_loader.face.fit.points import MOUTH, FitPoints, identity_prior
from lrs3_loader.face.fit.solver import FitProblem, minimise
from lrs3_loader.face.fit.start import bridge_gaps, keyframe_features, spread, weak_perspective
from lrs3_loader.face.fit.terms import Observations, State
from lrs3_loader.face.fit.types import FitConfig, FitInput, FitResult
from lrs3_loader.face.fit.windows import Window, WindowBatch, batches, split_into_windows
from lrs3_loader.face.geometry.camera import DISTANCE, Camera, project
from lrs3_loader.face.geometry.rotation import matrix_to_euler
from lrs3_loader.face.model.morphable import IDEXP_SCALE, NUM_LANDMARKS, FaceModel
from lrs3_loader.runtime.transfer import to_device

__all__ = ["FitConfig", "FitInput", "FitResult", "LandmarkFitter"]

_MIN_POINTS = 6  # seen in a frame, for a closed-form pose
_MIN_WEIGHT = 1e-9


@dataclass(frozen=True)
class Measurements:
    """Points of all clips, concatenated, on the model's device."""

    normalized_xy: torch.Tensor  # [N, K, 2] f64, see ``terms``
    confidence: torch.Tensor  # [N, K] f64, 0 where not seen
    focal: torch.Tensor  # [N] f64, pixels
    valid: torch.Tensor  # [N] bool
    exp_mean: torch.Tensor  # [N, E] f64, of the expression prior
    exp_precision: torch.Tensor  # [N, E] f64
    clip_of: torch.Tensor  # [N] i64, clip number of each frame
    lengths: list[int]  # frames of each clip


class LandmarkFitter:
    """Fits one face model to clips, on the model's device: ``fitter(clips) -> results`` in the same order.

    ``batch_frames`` frames are fitted together (default 128 on a CPU, where more would leave the caches, 16384 on a
    GPU). With ``mixed`` (default: on a GPU), clips of different lengths share a batch and the solver works in double
    precision, see the module docstring. ``exp_prior`` takes the place of the one for the model and the config. Raises
    ``ValueError`` for dense points that the model, or later a clip, lacks.
    """

    def __init__(
        self,
        model: FaceModel,
        config: FitConfig | None = None,
        batch_frames: int | None = None,
        mixed: bool | None = None,
        exp_prior: ExpressionPrior | None = None,
    ) -> None:
        on_cpu = model.device.type == "cpu"
        self.model = model
        self.config = config or FitConfig.fast()
        self.batch_frames = batch_frames or (128 if on_cpu else 16_384)
        self.mixed = not on_cpu if mixed is None else mixed
        self._points = FitPoints(model, self.config)
        self._id_prior = identity_prior(model, self.config)
        self._exp_prior = exp_prior or ExpressionPrior(model, self.config)
        self._axes = self._expression_axes()
        self._basis = self._axes.of_basis(self._points.basis)
        dtype = torch.float64 if self.mixed else torch.float32
        self._products = ModeProducts(self._basis, dtype, self._axes.num_weak)

    @property
    def uses_blendshapes(self) -> bool:
        """True if the blendshape scores of a clip change its fit."""
        return self._exp_prior.uses_scores

    def _expression_axes(self) -> ExpressionAxes:
        """Axes of the expression that the fit's states, measurements and changes refer to."""
        bounded = self.model.exp_bounds is not None and math.isfinite(self.config.bound_sigma)
        if bounded or self._exp_prior.uses_scores:
            return ExpressionAxes.of_coefficients(self.model)
        return ExpressionAxes.principal(self.model, self._points)

    @torch.no_grad()
    def __call__(self, clips: Sequence[FitInput]) -> list[FitResult]:
        if not clips:
            return []
        measured = self._measure(clips)
        neutral = self._basis.mean.expand(len(clips), -1, -1)
        rotation, translation = self._closed_form_poses(measured, neutral[measured.clip_of])
        precision, correlated_share = self._points.precision(measured.confidence, rotation, translation, measured.focal)
        keyframes = self._keyframes(measured, rotation, translation)
        mean_id = torch.zeros(len(clips), self.model.num_id, dtype=torch.float64, device=self.model.device)
        bounds = self._basis.bounds
        start = State(mean_id, measured.exp_mean.maximum(bounds[0]).minimum(bounds[1]), rotation, translation)
        first, id_converged = self._fit(start, keyframes, measured, precision, correlated_share)
        start = self._second_start(start, first, keyframes, measured)
        state, converged = self._fit(start, split_into_windows(measured.lengths), measured, precision, None)
        return self._results(clips, state, (id_converged & converged).tolist())

    def _measure(self, clips: Sequence[FitInput]) -> Measurements:
        device = self.model.device
        lengths = [len(clip.valid) for clip in clips]
        clip_of = torch.repeat_interleave(torch.tensor(lengths))
        focal = [Camera.for_frame(clip.height, clip.width).focal_px for clip in clips]
        normalized_xy, confidence = zip(*(self._points.measure(clip) for clip in clips), strict=True)
        exp_mean, exp_precision = self._exp_prior(clips)
        if self._axes.modes is not None:  # the prior's mean is 0
            exp_precision = torch.full_like(exp_precision, self.config.exp_weight)
        return Measurements(
            normalized_xy=to_device(torch.cat(normalized_xy), device),
            confidence=to_device(torch.cat(confidence), device),
            focal=to_device(torch.tensor(focal, dtype=torch.float64)[clip_of], device),
            valid=to_device(torch.cat([clip.valid for clip in clips]), device),
            exp_mean=exp_mean,
            exp_precision=exp_precision,
            clip_of=to_device(clip_of, device),
            lengths=lengths,
        )

    def _closed_form_poses(self, measured: Measurements, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations [N, 3, 3] and translations [N, 3] for model points [N, K, 3].

        A frame in which too few points are seen takes its pose from the neighbouring frames.
        """
        clip_of, valid, confidence = measured.clip_of, measured.valid, measured.confidence
        enough = valid & ((confidence > 0).sum(1) >= _MIN_POINTS)
        none = torch.zeros_like(clip_of).index_add(0, clip_of, enough.long())[clip_of] == 0
        usable = torch.where(none, valid, enough)
        weights = torch.where(usable[:, None], confidence * self._points.weights + _MIN_WEIGHT, 1.0)
        rotations, translations = [], []
        for part in self._groups(measured.lengths):
            pose = weak_perspective(measured.normalized_xy[part], points[part], weights[part])
            rotation, translation = bridge_gaps(*pose, usable[part], clip_of[part])
            rotations.append(rotation)
            translations.append(translation)
        return torch.cat(rotations), torch.cat(translations)

    def _groups(self, lengths: Sequence[int]) -> list[slice]:
        """Frames [N] that are computed together where each frame counts by itself: all, or those of each clip."""
        if self.mixed:
            return [slice(0, sum(lengths))]
        return [slice(stop - length, stop) for length, stop in zip(lengths, itertools.accumulate(lengths), strict=True)]

    def _keyframes(self, measured: Measurements, rotation: torch.Tensor, translation: torch.Tensor) -> list[Window]:
        """One window per clip with the frames from which its identity is estimated."""
        lips = measured.normalized_xy[:, self._points.inner_lips]
        features = keyframe_features(rotation, lips, translation).cpu().numpy().astype(np.float64)
        usable = measured.valid.cpu().numpy()
        keyframes, start = [], 0
        for clip, length in enumerate(measured.lengths):
            frames = start + np.nonzero(usable[start : start + length])[0]
            chosen = frames[spread(features[frames], self.config.num_keyframes)]
            keyframes.append(Window(clip, torch.from_numpy(chosen), slice(0, len(chosen))))
            start += length
        return keyframes

    def _second_start(self, start: State, first: State, keyframes: Sequence[Window], measured: Measurements) -> State:
        """Initial state of the second stage.

        Keyframes keep the first stage's result. Other frames keep the expression of ``start``, moved as those of their
        clip's keyframes were in the mean, and have the closed-form pose for the identity found.
        """
        if sum(len(keyframe.frames) for keyframe in keyframes) == len(measured.valid):
            return first
        basis, is_key = self._basis, to_device(torch.cat([each.frames for each in keyframes]), self.model.device)
        moves = (first.exp[is_key] - start.exp[is_key]).split([len(keyframe.frames) for keyframe in keyframes])
        exp = start.exp + torch.stack([part.mean(0) for part in moves])[measured.clip_of]
        exp[is_key] = first.exp[is_key]
        offsets = torch.cat([basis.offsets(exp[None, part])[0] for part in self._groups(measured.lengths)])
        points = basis.neutral(first.id)[measured.clip_of] + offsets
        rotation, translation = self._closed_form_poses(measured, points)
        rotation[is_key], translation[is_key] = first.rotation[is_key], first.translation[is_key]
        return State(first.id, exp, rotation, translation)

    def _fit(
        self,
        start: State,
        windows: Sequence[Window],
        measured: Measurements,
        precision: torch.Tensor,
        correlated_share: torch.Tensor | None,
    ) -> tuple[State, torch.Tensor]:
        """Fit the frames of ``windows``, starting from ``start``: (new state, converged [clips] bool).

        States hold one identity per clip [clips, I] and the concatenated frames [N, ...]. ``precision`` [N, K] and
        ``correlated_share`` [N] (None: keep the identity) are those of ``FitPoints.precision``.
        """
        basis, final = self._basis, State(*(value.clone() for value in vars(start).values()))
        converged = torch.ones(len(start.id), dtype=torch.bool)
        for batch in batches(windows, self.batch_frames, precision.device, mixed=self.mixed):
            state = start.select(batch.clip, batch.index)
            observations = self._observations(batch, measured, precision, state.translation)
            if correlated_share is not None:
                # Where errors are fully correlated, all frames tell no more about the identity than one.
                num_frames = batch.real.sum(1)
                share = (correlated_share[batch.index] * batch.real).sum(1) / num_frames
                id_precision = self._id_prior * (1 + share * (num_frames - 1))[:, None, None]
                problem = FitProblem(basis, self._products, observations, id_precision=id_precision)
            else:
                problem = FitProblem(basis, self._products, observations, neutral=basis.neutral(state.id))
            state, done = minimise(state, problem, self.config)
            final.id[batch.clip] = state.id
            batch.scatter_state(final, state)
            for row, window in enumerate(batch.windows):
                converged[window.clip] &= done[row]
        return final, converged

    def _observations(
        self, batch: WindowBatch, measured: Measurements, precision: torch.Tensor, translation: torch.Tensor
    ) -> Observations:
        """Gather the measurements [N, K, ...] of a batch; ``translation`` [B, T, 3] is where its frames start."""
        config = self.config
        following = batch.index[:, 1:] == batch.index[:, :-1] + 1
        near = (batch.real[:, 1:] & following)[..., None]
        scales = (
            config.exp_acceleration_sigma,
            config.rotation_acceleration_sigma_radians,
            config.translation_acceleration_sigma_decimetres,
        )
        acceleration_precision = None
        if min(scales) < math.inf and batch.index.shape[1] > 2:
            sigma = self._change_sigma(translation, *scales)
            acceleration_precision = near[:, 1:] * near[:, :-1] / sigma[:, 1:-1].square()
        sigma = self._change_sigma(
            translation,
            config.exp_velocity_sigma,
            config.rotation_velocity_sigma_radians,
            config.translation_velocity_sigma_decimetres,
        )
        return Observations(
            normalized_xy=measured.normalized_xy[batch.index],
            precision=precision[batch.index] * batch.real[..., None],
            exp_precision=measured.exp_precision[batch.index] * batch.real[..., None],
            exp_mean=measured.exp_mean[batch.index],
            bound_precision=config.bound_sigma**-2,
            real=batch.real,
            velocity_precision=near / (sigma[:, 1:] * sigma[:, :-1]),
            acceleration_precision=acceleration_precision,
            outlier_sigma=config.outlier_sigma,
        )

    def _change_sigma(self, translation: torch.Tensor, exp: float, turn: float, shift: float) -> torch.Tensor:
        """Standard deviations [B, T, D] of changes from frame to frame."""
        by_exp = (exp * self._axes.sigma).expand(*translation.shape[:2], -1)
        by_turn = torch.full_like(translation, turn)
        by_shift = (shift / DISTANCE) * (DISTANCE - translation[..., 2:]).expand(-1, -1, 3)
        return torch.cat((by_exp, by_turn, by_shift), -1)

    def _results(self, clips: Sequence[FitInput], state: State, converged: Sequence[bool]) -> list[FitResult]:
        lengths = [len(clip.valid) for clip in clips]
        groups = self._groups(lengths)
        exp = torch.cat([self._axes.coefficients(state.exp[part]) for part in groups]).float()
        id, bounds = state.id.float(), self._points.basis.bounds.float()
        if self.config.clamp:
            exp = torch.clamp(exp, min=bounds[0], max=bounds[1])
        clip_of = to_device(torch.repeat_interleave(torch.tensor(lengths)), id.device)
        turn = torch.cat([matrix_to_euler(state.rotation[part]) for part in groups])
        offset = torch.cat([self.model.landmark_offsets(id[clip_of[part]], exp[part]) for part in groups])
        by_frame = exp, torch.cat((turn, state.translation), -1).float(), offset
        exps, poses, offsets = (value.cpu().split(lengths) for value in by_frame)
        mean = self.model.landmark_mean.cpu()
        id, results = id.cpu(), []
        for k, clip in enumerate(clips):
            camera = Camera.for_frame(clip.height, clip.width)
            error, size = _distances(clip, project(mean + offsets[k], poses[k], camera))
            means = error.nanmean(1), error[:, MOUTH].nanmean(1)
            results.append(FitResult(id[k], exps[k], poses[k], IDEXP_SCALE * offsets[k], *means, size, converged[k]))
        return results


def _distances(clip: FitInput, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances [T, L] in pixels of the landmarks from ``pixels`` [T, L, 2], and the size of the face [T].

    NaN where a landmark, or the whole face, was not seen.
    """
    gone = ~clip.valid.cpu()[:, None].expand(-1, NUM_LANDMARKS)
    if clip.confidence is not None:
        gone = gone | (clip.confidence.cpu() == 0)
    lm68 = clip.lm68.cpu().float()
    error = (pixels - lm68).norm(dim=-1).masked_fill(gone, torch.nan)
    lowest = lm68.masked_fill(gone[..., None], torch.inf).amin(1)
    highest = lm68.masked_fill(gone[..., None], -torch.inf).amax(1)
    extent = (highest - lowest).masked_fill(gone.all(1, keepdim=True), torch.nan)
    return error, extent.prod(1).sqrt()
