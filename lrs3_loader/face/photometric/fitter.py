"""Refine expression and pose on pixels after the landmark fit: ``--fit photometric``. Needs pytorch3d.

For each clip, a few times: the face is drawn as fitted so far (``render``); what is seen gives albedo and light
(``appearance``) and samples of the surface with the colours they should have (``drawing``); then expression and pose of
all frames are fitted to landmarks and pixels together, by the landmark fit's own solver with its priors, bounds and
smoothness (``terms``). The identity stays as it was. This is analysis by synthesis (Blanz and Vetter, "A morphable
model for the synthesis of 3D faces", SIGGRAPH 1999), with visibility and appearance fixed during each fit.

A clip keeps the landmark fit where pixels do not help: where the mean difference between frames and drawn face did not
become smaller, or the landmarks' mean error grew by more than ``max_landmark_loss``.

Letters: N frames of all clips, concatenated; B sequences of a batch, T frames of a sequence, E expression modes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lrs3_loader.face.fit.axes import ExpressionAxes
from lrs3_loader.face.fit.fitter import LandmarkFitter, Measurements
from lrs3_loader.face.fit.solver import minimise
from lrs3_loader.face.fit.terms import State
from lrs3_loader.face.fit.types import FitConfig, FitInput, FitResult, PhotometricQuality
from lrs3_loader.face.fit.windows import WindowBatch, batches, split_into_windows
from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.face.photometric import render
from lrs3_loader.face.photometric.appearance import Appearance
from lrs3_loader.face.photometric.drawing import Views, draw_samples, find_appearance
from lrs3_loader.face.photometric.region import Region
from lrs3_loader.face.photometric.terms import PhotometricProblem, Samples

_BATCH_FRAMES = 1024  # bounds the memory for samples and crops: 100 KiB per frame


@dataclass(frozen=True)
class PhotometricConfig:
    """Noise model and effort of the refinement; chosen by the expression recovered from drawn faces of known truth.

    Raises ``ValueError`` for values that are not positive.
    """

    num_rounds: int = 2  # times that the face is drawn and fitted
    num_keyframes: int = 24  # frames from which albedo and light are estimated
    drawing_size: int = 64  # pixels; side of the drawing that tells which points are seen, as wide as a crop
    num_samples: int = 2048  # per frame, at most
    pixel_weight: float = 0.5  # of a sample relative to a landmark whose error is as many standard deviations
    outlier_sigma: float = 3.0  # standard deviations beyond which a sample's force is constant (pseudo-Huber)
    max_iterations: int = 8  # Levenberg-Marquardt iterations of a round, at most
    max_landmark_loss: float = 0.15  # growth of the landmarks' mean error beyond which a clip keeps its landmark fit

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


class PhotometricFitter(LandmarkFitter):
    """A ``LandmarkFitter`` for clips with crops (``FitInput.crops``), whose results carry ``photometric``.

    Raises ``RunError`` if pytorch3d is missing, and ``ValueError`` for a model without a surface between its landmarks
    or a clip without crops.
    """

    def __init__(
        self,
        model: FaceModel,
        config: FitConfig | None = None,
        batch_frames: int | None = None,
        photometric: PhotometricConfig | None = None,
    ) -> None:
        render.require_pytorch3d("--fit photometric")
        super().__init__(model, config, batch_frames)
        self.photometric = photometric or PhotometricConfig()
        self.region = Region(model)

    def _expression_axes(self) -> ExpressionAxes:
        """Return those of coefficients, which pixels are described by."""
        return ExpressionAxes.of_coefficients(self.model)

    @torch.no_grad()
    def __call__(self, clips: Sequence[FitInput]) -> list[FitResult]:
        for clip in clips:
            if clip.crops is None or len(clip.crops) != len(clip.valid):
                raise ValueError("a photometric fit needs the crops of every frame of a clip")
            if not bool(clip.crops.transforms.isfinite().all(1).any()):
                raise ValueError("a clip without a single crop cannot be fitted to pixels")
        first = super().__call__(clips)
        if not clips:
            return first
        state, measured = self._state_of(first), self._measure(clips)
        errors = [self._round(clips, measured, state, fit=True) for _ in range(self.photometric.num_rounds)]
        errors.append(self._round(clips, measured, state, fit=False))
        refined = self._results(clips, state, [result.converged for result in first])
        before, after = (each.split(measured.lengths) for each in (errors[0], errors[-1]))
        return [self._better(*each) for each in zip(first, refined, before, after, strict=True)]

    def _better(self, first: FitResult, refined: FitResult, before: torch.Tensor, after: torch.Tensor) -> FitResult:
        """Choose between the two fits of a clip, given the errors [T] of the drawing before and after."""
        errors = float(before.nanmean()), float(after.nanmean())
        allowed = first.relative_error * (1 + self.photometric.max_landmark_loss)
        keep = errors[1] < errors[0] and refined.relative_error <= allowed
        quality = PhotometricQuality(errors[0], errors[1] if keep else errors[0], keep)
        return replace(refined if keep else first, photometric=quality)

    def _state_of(self, results: Sequence[FitResult]) -> State:
        device = self.model.device
        pose = torch.cat([result.pose for result in results]).double().to(device)
        return State(
            id=torch.stack([result.id for result in results]).double().to(device),
            exp=torch.cat([result.exp for result in results]).double().to(device),
            rotation=euler_to_matrix(pose[:, :3]),
            translation=pose[:, 3:].clone(),
        )

    def _round(self, clips: Sequence[FitInput], measured: Measurements, state: State, *, fit: bool) -> torch.Tensor:
        """Draw all frames at ``state`` and, with ``fit``, update it in place; returns the error of the drawing [N]."""
        starts = [0, *itertools.accumulate(measured.lengths)]
        appearances = [self._appearance(clip, state, number, starts[number]) for number, clip in enumerate(clips)]
        precision, _ = self._points.precision(measured.confidence, state.rotation, state.translation, measured.focal)
        errors = torch.full((starts[-1],), torch.nan)
        moved = State(*(value.clone() for value in vars(state).values()))
        windows = split_into_windows(measured.lengths)
        for batch in batches(windows, min(self.batch_frames, _BATCH_FRAMES), self.model.device, mixed=self.mixed):
            part = state.select(batch.clip, batch.index)
            samples = self._samples(batch, clips, starts, appearances, part)
            batch.scatter(errors, samples.error().view(batch.index.shape).cpu())
            if not fit:
                continue
            problem = PhotometricProblem(
                self._points.basis,
                self._products,
                self._observations(batch, measured, precision, part.translation),
                neutral=self._points.basis.neutral(part.id),
                region=self.region,
                surface=self.region.neutral(part.id),
                samples=samples,
                pixel_weight=self.photometric.pixel_weight,
                outlier=self.photometric.outlier_sigma,
            )
            part, _ = minimise(part, problem, replace(self.config, max_iterations=self.photometric.max_iterations))
            batch.scatter_state(moved, part)
        for name, value in vars(moved).items():
            getattr(state, name).copy_(value)
        return errors

    def _appearance(self, clip: FitInput, state: State, number: int, start: int) -> Appearance:
        """Appearance of the person in the clip of this number, whose first frame is ``start`` of [N]."""
        assert clip.crops is not None
        available = torch.nonzero(clip.crops.transforms.isfinite().all(1))[:, 0]
        count = min(self.photometric.num_keyframes, len(available))
        frames = available[(torch.arange(count) * 2 + 1) * len(available) // (2 * count)]
        chosen = state.select(torch.tensor(number), (frames + start).to(self.model.device))
        views = Views.of_clip(clip, frames, self._vertices(chosen.id, chosen.exp), chosen)
        return find_appearance(views, self.region, self.photometric.drawing_size)

    def _samples(
        self,
        batch: WindowBatch,
        clips: Sequence[FitInput],
        starts: Sequence[int],
        appearances: list[Appearance],
        part: State,
    ) -> Samples:
        """Samples of a batch's frames [B T], none in the padding; ``part`` is the batch's state."""
        views, chosen = [], []
        for row, number in enumerate(batch.clip.tolist()):
            frames = (batch.index[row] - starts[number]).cpu()
            state = State(*(value[row] for value in vars(part).values()))
            views.append(Views.of_clip(clips[number], frames, self._vertices(state.id, state.exp), state))
            chosen += [appearances[number]] * len(frames)
        config = self.photometric
        samples = draw_samples(Views.cat(views), chosen, self.region, config.drawing_size, config.num_samples)
        return replace(samples, precision=samples.precision * batch.real.flatten()[:, None])

    def _vertices(self, id: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
        """Vertices [n, V, 3] of the region for one identity [I] and the expressions [n, E]."""
        return self.region.expressed(self.region.neutral(id).expand(len(exp), -1, -1), exp)
