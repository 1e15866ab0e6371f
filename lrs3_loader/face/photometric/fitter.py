"""Expression and pose refined on pixels, after the landmark fit: ``--fit photometric``. Needs pytorch3d.

For each clip in turns: the face is drawn as fitted so far (``face.render``); what is seen gives albedo and light
(``face.appearance``) and samples of the surface with the colours they should have; then expression and pose of all
frames are fitted to landmarks and pixels together, by the landmark fit's own solver with its priors, bounds and
smoothness (``face.photometric_terms``). The identity stays as it was.

A clip keeps the landmark fit where pixels do not help: where the mean difference between picture and drawn face did not
become smaller, or the landmarks' mean error grew by more than ``max_landmark_loss``.

Letters: N frames of a batch in a row, S side of a crop, R of the drawing, V vertices of ``face.region``, P samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lrs3_loader.face.fit.fitter import LandmarkFitter
from lrs3_loader.face.fit.solver import SolverSettings, minimise
from lrs3_loader.face.fit.terms import Observations, State
from lrs3_loader.face.fit.types import FitConfig, FitInput, FitResult, PhotometricQuality
from lrs3_loader.face.fit.windows import WindowBatch, batches, split_into_windows
from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.face.photometric import render
from lrs3_loader.face.photometric.appearance import Appearance
from lrs3_loader.face.photometric.drawing import Views, draw_samples, find_appearance
from lrs3_loader.face.photometric.region import Region
from lrs3_loader.face.photometric.terms import PhotometricProblem, Samples

_BATCH_FRAMES = 1024  # of samples and crops held at once: 100 KiB a frame


@dataclass(frozen=True)
class PhotometricConfig:
    """What the refinement believes; chosen by the expression recovered from drawn faces of known truth."""

    num_rounds: int = 2
    """How often the face is drawn and fitted again."""
    num_keyframes: int = 24
    """Frames from which albedo and light are estimated."""
    drawing_size: int = 64
    """Side of the drawing that tells which points are seen, over the same square as the crop of 128."""
    num_samples: int = 2048
    """At most this many samples of a frame."""
    pixel_weight: float = 0.5
    """Weight of a sample against that of a landmark with the same number of standard deviations off."""
    outlier_sigma: float = 3.0
    """Samples further off than this many standard deviations pull with a constant force only."""
    max_iterations: int = 8
    """Levenberg-Marquardt iterations of a round."""
    max_landmark_loss: float = 0.15
    """The landmarks' mean error may grow by this share; beyond it a clip keeps its landmark fit."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


class PhotometricFitter(LandmarkFitter):
    """As ``LandmarkFitter``, for clips with crops (``FitInput.crops``); results carry ``photometric``."""

    def __init__(
        self,
        model: FaceModel,
        config: FitConfig | None = None,
        batch_frames: int | None = None,
        photometric: PhotometricConfig | None = None,
    ) -> None:
        """Raises ``RunError`` where pytorch3d is missing, ``ValueError`` for a model without a surface."""
        render.require_pytorch3d("--fit photometric")
        super().__init__(model, config, batch_frames)
        self.photometric = photometric or PhotometricConfig()
        self.region = Region(model)

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
        state = self._state_of(first)
        before, converged = self._round(clips, state, fit=True)
        for _ in range(self.photometric.num_rounds - 1):
            converged = self._round(clips, state, fit=True)[1]
        after, _ = self._round(clips, state, fit=False)
        cameras = [Camera.for_frame(clip.height, clip.width) for clip in clips]
        refined = self._results(clips, cameras, state, converged.tolist())
        lengths = [len(clip.valid) for clip in clips]
        errors = zip(before.split(lengths), after.split(lengths), strict=True)
        return [self._better(a, b, *error) for a, b, error in zip(first, refined, errors, strict=True)]

    def _better(self, first: FitResult, refined: FitResult, before: torch.Tensor, after: torch.Tensor) -> FitResult:
        """Which of the two fits a clip keeps."""
        errors = float(before.nanmean()), float(after.nanmean())
        allowed = first.relative_error * (1 + self.photometric.max_landmark_loss)
        keep = errors[1] < errors[0] and refined.relative_error <= allowed
        quality = PhotometricQuality(errors[0], errors[1] if keep else errors[0], keep)
        return replace(refined if keep else first, photometric=quality, converged=first.converged)

    def _state_of(self, results: Sequence[FitResult]) -> State:
        device = self.model.device
        pose = torch.cat([result.pose for result in results]).double().to(device)
        return State(
            id=torch.stack([result.id for result in results]).double().to(device),
            exp=torch.cat([result.exp for result in results]).double().to(device),
            rotation=euler_to_matrix(pose[:, :3]),
            translation=pose[:, 3:].clone(),
        )

    def _round(self, clips: Sequence[FitInput], state: State, *, fit: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw all frames as in ``state`` and, with ``fit``, move it: (error of the drawing [N], converged [clips])."""
        lengths = [len(clip.valid) for clip in clips]
        starts = [0, *itertools.accumulate(lengths)]
        appearances = [self._appearance(clip, state, number, starts[number]) for number, clip in enumerate(clips)]
        normalized_xy, confidence, focal, _ = self._measured(clips)
        precision, _ = self._points.precision(confidence, state.rotation, state.translation, focal)
        errors = torch.full((len(normalized_xy),), torch.nan)
        converged = torch.ones(len(clips), dtype=torch.bool)
        moved = State(state.id, state.exp.clone(), state.rotation.clone(), state.translation.clone())
        for batch in batches(split_into_windows(lengths), min(self.batch_frames, _BATCH_FRAMES), normalized_xy.device):
            clip, index = batch.clip, batch.index
            part = State(state.id[clip], state.exp[index], state.rotation[index], state.translation[index])
            samples = self._samples(batch, clips, starts, appearances, part)
            batch.scatter(errors, samples.error().view(index.shape).cpu())
            if not fit:
                continue
            frames = self._frames(batch, normalized_xy[index], precision[index], part.translation)
            part, done = self._move(part, frames, samples)
            for name in _MOVED:
                batch.scatter(getattr(moved, name), getattr(part, name))
            for row, number in enumerate(clip.tolist()):
                converged[number] &= done[row].cpu()
        for name in _MOVED:
            getattr(state, name).copy_(getattr(moved, name))
        return errors, converged

    def _move(self, start: State, frames: Observations, samples: Samples) -> tuple[State, torch.Tensor]:
        """Sequences fitted to landmarks and pixels."""
        problem = PhotometricProblem(
            self._points.basis,
            self._products,
            frames,
            neutral=self._points.basis.neutral(start.id),
            region=self.region,
            surface=self.region.neutral(start.id),
            samples=samples,
            pixel_weight=self.photometric.pixel_weight,
            outlier=self.photometric.outlier_sigma,
        )
        settings = SolverSettings(self.config.num_cg, self.photometric.max_iterations, self.config.tolerance)
        return minimise(start, problem, settings)

    def _appearance(self, clip: FitInput, state: State, number: int, start: int) -> Appearance:
        """What the person in the clip of this number, whose frames begin at ``start``, appearances like."""
        assert clip.crops is not None
        there = torch.nonzero(clip.crops.transforms.isfinite().all(1))[:, 0]
        count = min(self.photometric.num_keyframes, len(there))
        frames = there[(torch.arange(count) * 2 + 1) * len(there) // (2 * max(count, 1))]
        rows = (frames + start).to(self.model.device)
        neutral = self.region.neutral(state.id[number]).expand(count, -1, -1)
        views = self._views(clip, frames, neutral, state.exp[rows], state.rotation[rows], state.translation[rows])
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
        neutral = self.region.neutral(part.id)
        for row, number in enumerate(batch.clip.tolist()):
            frames = (batch.index[row] - starts[number]).cpu()
            same = neutral[row].expand(len(frames), -1, -1)
            views.append(
                self._views(clips[number], frames, same, part.exp[row], part.rotation[row], part.translation[row])
            )
            chosen += [appearances[number]] * len(frames)
        samples = draw_samples(
            Views.cat(views), chosen, self.region, self.photometric.drawing_size, self.photometric.num_samples
        )
        return replace(samples, precision=samples.precision * batch.real.flatten()[:, None])

    def _views(
        self,
        clip: FitInput,
        frames: torch.Tensor,
        neutral: torch.Tensor,
        exp: torch.Tensor,
        rotation: torch.Tensor,
        translation: torch.Tensor,
    ) -> Views:
        assert clip.crops is not None
        crops = clip.crops.read(frames), clip.crops.transforms[frames]
        return Views.from_crops(
            self.region.expressed(neutral, exp), rotation, translation, crops, (clip.height, clip.width)
        )


_MOVED = ("exp", "rotation", "translation")
