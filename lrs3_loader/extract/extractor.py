"""From the decoded chunks of a shard's clips to each clip's features or reject, in two steps.

    watch:   chunks -> fixed batches of frames -> landmarks        as they arrive; frames are let go at once
                                               -> regression       (where asked for)
    finish:  rejects (no face) -> sound features -> fit            over all clips of the shard together

Everything is formed inside the shard, in the plan's order, so a shard's numbers are its own. Nothing is shared between
the two steps but the models: one shard may be finished on one thread while another is watched on the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from lrs3_loader.config import RunConfig
from lrs3_loader.errors import ClipError, PoorFitError
from lrs3_loader.extract.batch import FrameSpan, fixed_batches
from lrs3_loader.extract.models import Models
from lrs3_loader.face.deep3d.regressor import Aimed, Deep3DRegressor, finish_coefficients, idexp_lm3d
from lrs3_loader.face.fit.fitter import FitInput, FitResult
from lrs3_loader.face.fit.types import PhotometricQuality
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.image.crops import FaceCrops, cut_faces
from lrs3_loader.face.landmarks.landmarker import Detected, FrameLandmarks, finish_track
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.runtime.pipelining import one_behind
from lrs3_loader.runtime.transfer import to_device
from lrs3_loader.types import ROWS_PER_FRAME, Clip, ClipFeatures, ClipHead, DecodedChunk, Reject

Count = Callable[..., None]  # count(clips=, frames=, rejects=, ...), see ``progress.COUNTERS``


@dataclass
class _ClipState:
    """What is known of one clip while its shard goes through the stages."""

    clip: Clip
    num_frames: int
    head: ClipHead
    track: FaceTrack = field(default_factory=FaceTrack)
    landmarks: list[FrameLandmarks] = field(default_factory=list)
    coefficients: list[torch.Tensor] = field(default_factory=list)
    crops: FaceCrops | None = None  # of a photometric fit
    dense: torch.Tensor | None = None  # [T, L, 2], where the fit needs them
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    reject: Reject | None = None

    def fail(self, error: ClipError) -> None:
        self.reject = Reject(self.clip, error.reason, str(error))
        self.crops = None


class Watched:
    """A shard between the two steps: what was seen of each of its clips."""

    def __init__(self, timings: dict[str, float], count: Count) -> None:
        self.states: list[_ClipState | Reject] = []
        self.clock = _Clock(timings)
        self.count = count
        self.seen: torch.cuda.Event | None = None  # on a GPU: all of it is there


_Batch = list[FrameSpan[_ClipState]]


class Extractor:
    """Puts clips through all models of one rank: ``extract(items)`` turns a shard's chunks into features and rejects.

    The config must be resolved (``config.resolve``), the models loaded for it, on ``device``.
    """

    def __init__(self, config: RunConfig, models: Models, device: torch.device):
        self.config = config
        self.models = models
        self.device = device
        self._finishing = torch.cuda.Stream(device) if device.type == "cuda" else None

    def own_stream(self) -> contextlib.AbstractContextManager[Any]:
        """For a thread that finishes: on a GPU, what runs within need not wait for what is watched meanwhile."""
        return contextlib.nullcontext() if self._finishing is None else torch.cuda.stream(self._finishing)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def extract(
        self, items: Iterable[DecodedChunk | Reject], timings: dict[str, float], count: Count
    ) -> Iterator[ClipFeatures | Reject]:
        """Features or reject of every clip of one shard, in order: ``finish(watch(...))``."""
        return self.finish(self.watch(items, timings, count))

    def watch(self, items: Iterable[DecodedChunk | Reject], timings: dict[str, float], count: Count) -> Watched:
        """Take in one shard's frames.

        Args:
            items: the shard's chunks, clip by clip; a Reject ends its clip.
            timings: filled with seconds per stage, as spent by the calling thread.
            count: told of clips, frames and rejects as they pass; from another thread, too.
        """
        watched = Watched(timings, count)
        batches = fixed_batches(self._open_clips(items, watched), self.models.landmarker.batch_size)
        found = one_behind(batches, partial(self._detect, watched), partial(self._locate, watched.clock))
        if self.models.wants_pixels:
            found = map(partial(self._keep_crops, watched.clock), found)
        if self.models.regressor is None:
            for _ in found:
                pass
        else:
            with_it = (watched.clock, self.models.regressor)
            for _ in one_behind(found, partial(self._aim, *with_it), partial(self._regress, *with_it)):
                pass
        if self.device.type == "cuda":
            watched.seen = torch.cuda.current_stream(self.device).record_event()
        return watched

    def finish(self, watched: Watched) -> Iterator[ClipFeatures | Reject]:
        """Features or reject of every clip of a shard that was watched, in order."""
        clock = watched.clock
        self._take_over(watched)
        alive = [state for state in watched.states if isinstance(state, _ClipState) and state.reject is None]
        with clock("landmarks"):
            alive = _keep(alive, self._finish_track)
        with clock("sound"):
            self._hear(alive, watched.count)
        with clock("fit"):
            self._fit(alive)
        for state in watched.states:
            result = state if isinstance(state, Reject) else self._result(state)
            if isinstance(result, Reject):
                watched.count(rejects=1)
            yield result

    def _open_clips(self, items: Iterable[DecodedChunk | Reject], watched: Watched) -> Iterator[FrameSpan[_ClipState]]:
        """Pass frames on, and open a state for each clip that arrives."""
        states = watched.states
        for item in watched.clock.iterate("decode_wait", items):
            clip = item.clip
            last = states[-1] if states else None
            current = last if isinstance(last, _ClipState) and last.clip == clip else None
            if isinstance(item, Reject):
                if current is None:
                    states.append(item)
                else:
                    current.reject = item
                watched.count(clips=1)
                continue
            if current is None:
                assert item.head is not None, "the first chunk of a clip carries its head"
                # The sound outlives the frames: a copy of its own does not hold on to shared memory.
                head = dataclasses.replace(item.head, waveform=item.head.waveform.clone())
                current = _ClipState(clip, item.num_frames, head)
                states.append(current)
            yield FrameSpan(current, item.start, to_device(item.frames, self.device))
            if item.is_last:
                watched.count(clips=1, frames=item.num_frames)

    def _detect(self, watched: Watched, batch: _Batch) -> tuple[_Batch, Detected]:
        watched.count(frame_slots=self.models.landmarker.batch_size)
        with watched.clock("landmarks"):
            return batch, self.models.landmarker.detect([(span.frames, span.owner.track) for span in batch])

    def _locate(self, clock: _Clock, detected: tuple[_Batch, Detected]) -> tuple[_Batch, list[FrameLandmarks]]:
        batch, faces = detected
        with clock("landmarks"):
            found = self.models.landmarker.locate(faces)
        for span, landmarks in zip(batch, found, strict=True):
            span.owner.landmarks.append(landmarks)
        return batch, found

    def _keep_crops(
        self, clock: _Clock, located: tuple[_Batch, list[FrameLandmarks]]
    ) -> tuple[_Batch, list[FrameLandmarks]]:
        """Keep the part of each frame with the face, for a photometric fit: the frames themselves are let go."""
        with clock("crops"):
            for span, landmarks in zip(*located, strict=True):
                if span.owner.crops is None:
                    span.owner.crops = FaceCrops()
                span.owner.crops.append(*cut_faces(span.frames, to_ibug68(landmarks.points)[..., :2]))
        return located

    def _aim(
        self, clock: _Clock, regressor: Deep3DRegressor, located: tuple[_Batch, list[FrameLandmarks]]
    ) -> tuple[_Batch, Aimed]:
        batch, found = located
        points = [to_ibug68(landmarks.points)[..., :2] for landmarks in found]
        with clock("regression"):
            return batch, regressor.aim([(span.frames, part) for span, part in zip(batch, points, strict=True)])

    def _regress(self, clock: _Clock, regressor: Deep3DRegressor, aimed: tuple[_Batch, Aimed]) -> None:
        batch, crops = aimed
        with clock("regression"):
            values = regressor.regress(crops)
        for span, coefficients in zip(batch, values, strict=True):
            span.owner.coefficients.append(coefficients)

    def _take_over(self, watched: Watched) -> None:
        """Have this stream wait for what was watched on another, and keep that memory as long as this one needs it."""
        if watched.seen is None:
            return
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(watched.seen)
        for state in watched.states:
            if isinstance(state, _ClipState):
                parts = [value for part in state.landmarks for value in vars(part).values() if value is not None]
                for tensor in (*parts, *state.coefficients):
                    tensor.record_stream(stream)

    def _finish_track(self, state: _ClipState) -> None:
        """Join a clip's landmarks, fill short gaps, and refuse it where the face is missing too often."""
        config = self.config.landmarks
        found = finish_track(
            FrameLandmarks.cat(state.landmarks),
            min_valid_fraction=config.min_valid_fraction,
            max_gap_frames=config.max_gap_frames,
        )
        state.landmarks.clear()
        if state.coefficients:
            filled = finish_coefficients(
                torch.cat(state.coefficients),
                min_valid_fraction=config.min_valid_fraction,
                max_gap_frames=config.max_gap_frames,
            )
            state.coefficients.clear()
            state.arrays["coeff"] = filled.cpu().numpy()
        state.arrays["lm68"] = to_ibug68(found.points)[..., :2].cpu().numpy()
        state.arrays["valid"] = found.found.cpu().numpy()
        if self.models.fitter.config.dense:
            state.dense = found.points[..., :2].cpu()
        if config.store_lm478:
            state.arrays["lm478"] = found.points.cpu().numpy()
        if found.blendshapes is not None:
            state.arrays["blendshapes"] = found.blendshapes.to(torch.float16).cpu().numpy()
        state.quality |= {
            "valid_fraction": _rounded(found.found.float().mean()),
            "face_score": _rounded(found.score[found.found].mean()),
            "num_frames_with_several_faces": state.track.num_frames_with_several_faces,
            "num_track_switches": state.track.num_switches,
        }

    @torch.inference_mode()
    def _hear(self, states: list[_ClipState], count: Count) -> None:
        waveforms = [state.head.waveform for state in states]
        count(**self.models.speech.fill([len(waveform) for waveform in waveforms]))
        dtype = getattr(torch, self.config.speech.store)
        for state, mel in zip(states, self.models.mel(waveforms) if waveforms else [], strict=True):
            state.arrays["mel"] = mel.cpu().numpy()
        for state, rows in zip(states, self.models.speech(waveforms), strict=True):
            state.arrays["hubert"] = rows.to(dtype).cpu().numpy()
            state.arrays["f0"] = state.head.f0_hz.numpy().copy()
            state.quality["sound_rms"] = _rounded(state.head.waveform.square().mean().sqrt(), 6)

    def _fit(self, states: list[_ClipState]) -> None:
        inputs = [
            FitInput(
                torch.from_numpy(state.arrays["lm68"]),
                torch.from_numpy(state.arrays["valid"]),
                state.head.source.height,
                state.head.source.width,
                crops=state.crops,
                lm468=state.dense,
            )
            for state in states
        ]
        for state, fit in zip(states, self.models.fitter(inputs), strict=True):
            state.dense = None
            self._take_fit(state, fit)
            state.crops = None

    def _take_fit(self, state: _ClipState, fit: FitResult) -> None:
        for name in ("id", "exp", "pose", "idexp_lm3d"):
            state.arrays[name] = getattr(fit, name).numpy()
        if self.config.regression.idexp != "fit":
            state.arrays["idexp_lm3d"] = self._regressed_idexp(state.arrays["coeff"])
        state.quality |= {
            "reprojection_px": _rounded(fit.reprojection_px.nanmean()),
            "mouth_reprojection_px": _rounded(fit.mouth_reprojection_px.nanmean()),
            "relative_error": _rounded(fit.relative_error, 5),
            "relative_mouth_error": _rounded(fit.relative_mouth_error, 5),
            "face_size_px": _rounded(fit.face_size_px.nanmean(), 1),
            "converged": fit.converged,
        }
        if fit.photometric is not None:
            state.quality |= _photometric_quality(fit.photometric)
        bound = self.config.face.max_reprojection
        if bound is not None and fit.relative_error > bound:
            state.fail(PoorFitError(f"landmarks are {fit.relative_error:.4f} face sizes off, {bound:.4f} allowed"))

    def _regressed_idexp(self, coefficients: np.ndarray) -> np.ndarray:
        on_device = torch.from_numpy(coefficients).to(self.models.face_model.device)
        off_by_one = self.config.regression.idexp == "geneface"
        return idexp_lm3d(self.models.face_model, on_device, off_by_one=off_by_one).cpu().numpy()

    def _result(self, state: _ClipState) -> ClipFeatures | Reject:
        if state.reject is not None:
            return state.reject
        return ClipFeatures(state.clip, state.num_frames, state.arrays, self._meta(state))

    def _meta(self, state: _ClipState) -> dict[str, Any]:
        clip, head = state.clip, state.head
        true_rows = ROWS_PER_FRAME * state.num_frames - 1
        meta: dict[str, Any] = {
            "key": clip.key,
            "split": clip.split,
            "speaker": clip.speaker,
            "utterance": clip.utterance,
            "num_frames": state.num_frames,
            "num_rows": {"mel": true_rows, "hubert": true_rows, "f0": head.num_f0_rows},
            "source": dataclasses.asdict(head.source),
            "models": self.models.names,
            "conventions": self.models.conventions(self.config),
            "quality": state.quality,
        }
        if clip.text is not None:
            meta["text"] = clip.text
        if head.transcript is not None:
            transcript = head.transcript
            meta |= {
                "text": transcript.text,
                "conf": transcript.conf,
                "ref": transcript.ref,
                "words": [list(word) for word in transcript.words],
                "boxes": transcript.boxes.tolist(),
            }
        return meta


def _photometric_quality(found: PhotometricQuality) -> dict[str, Any]:
    """Mean absolute difference of the drawn face's colours (0..1), as fitted to landmarks and as stored."""
    return {
        "photometric_error_landmark_fit": _rounded(found.error_before, 5),
        "photometric_error": _rounded(found.error, 5),
        "photometric_refined": found.refined,
    }


def _keep(states: list[_ClipState], stage: Callable[[_ClipState], None]) -> list[_ClipState]:
    """Put each clip through a stage; those it refuses are marked and left out."""
    kept = []
    for state in states:
        try:
            stage(state)
            kept.append(state)
        except ClipError as error:
            state.fail(error)
    return kept


def _rounded(value: float | torch.Tensor, digits: int = 4) -> float:
    return round(float(value), digits)


class _Clock:
    """Adds up seconds per stage."""

    def __init__(self, timings: dict[str, float]):
        self._timings = timings

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._timings[stage] = self._timings.get(stage, 0.0) + time.perf_counter() - started

    def iterate(self, stage: str, items: Iterable[DecodedChunk | Reject]) -> Iterator[DecodedChunk | Reject]:
        """Count the time that drawing each item takes."""
        iterator = iter(items)
        while True:
            with self(stage):
                item = next(iterator, None)
            if item is None:
                return
            yield item
