"""Turns the decoded chunks of a shard into features or a reject for each clip, in two steps.

    process_frames:  chunks -> batches of frames -> landmarks (-> regression)    as chunks arrive; frames are freed
    process_clips:   rejects (no face) -> audio features -> fit                  all clips of the shard together

Batches never cross a shard and follow the plan's order, so the numbers of a shard do not depend on other shards. The
two steps share nothing but the models: one thread may process the clips of one shard while another processes the frames
of the next.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from lrs3_loader.config import RunConfig
from lrs3_loader.errors import ClipError, NotSpeakingError, PoorFitError
from lrs3_loader.extraction.batch import FrameSpan, fixed_batches
from lrs3_loader.extraction.media import MediaStage, media_fields, media_with
from lrs3_loader.extraction.models import Models
from lrs3_loader.extraction.quality import QualityStage
from lrs3_loader.extraction.sample import make_sample
from lrs3_loader.extraction.state import ClipState, Clock, Count, ShardInProgress
from lrs3_loader.extraction.tracks import finish_tracks
from lrs3_loader.face.deep3d.regressor import Deep3DRegressor, PreparedBatch, idexp_lm3d
from lrs3_loader.face.fit.fitter import FitInput, FitResult
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.image.crops import FaceCrops, crop_to_landmarks
from lrs3_loader.face.landmarks.landmarker import DetectedFaces, FrameLandmarks
from lrs3_loader.quality.figures import rounded_number
from lrs3_loader.runtime.pipelining import one_behind
from lrs3_loader.runtime.transfer import copy_to_host, to_device
from lrs3_loader.speaking.choice import SpeakerChooser
from lrs3_loader.speaking.scorer import ClipFaces, SpeakingScorer
from lrs3_loader.types import ClipFeatures, DecodedChunk, Reject

MAX_FRAME_BYTES = 12 << 20  # on average in a batch, twice as much as 1080p; batches of larger frames hold fewer

_Batch = list[FrameSpan[ClipState]]


class ShardExtractor:
    """Runs all models of one rank over clips: ``extract(items)`` turns a shard's chunks into features and rejects.

    Args:
        config: a resolved config (see ``config.resolve``).
        models: the models loaded for ``config``, on ``device``.
        device: where frames are processed.
    """

    def __init__(self, config: RunConfig, models: Models, device: torch.device):
        self.config = config
        self.models = models
        self.device = device
        self._chooser: SpeakerChooser | None = None
        if config.speaking.track == "speaking" and models.speaking is not None:
            bound = config.landmarks.min_valid_fraction
            self._chooser = SpeakerChooser(models.landmarker, models.speaking, bound)
        self._quality = QualityStage(config.quality, models.speech_detector)
        self._media = MediaStage(config.media, device)
        self._only: frozenset[str] | None = None
        self._clip_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def only(self, fields: Collection[str]) -> ShardExtractor:
        """Return an extractor of some fields alone, of those that ``addable_fields`` names, by the same models."""
        part = copy.copy(self)
        part._only = frozenset(fields)
        part._media = MediaStage(media_with(self.config.media, fields), self.device)
        part._quality = QualityStage(dataclasses.replace(self.config.quality, level="none"), None)
        return part

    def addable_fields(self) -> frozenset[str]:
        """Return the fields that the config stores and that can be extracted without the others."""
        dense = {"lm478"} if self.config.landmarks.store_lm478 else set[str]()
        return frozenset({*dense, *self.models.speech_fields, *media_fields(self.config.media)})

    def _skips(self, *fields: str) -> bool:
        """Return whether none of these fields is wanted."""
        return self._only is not None and not self._only & set(fields)

    def clip_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Context for ``process_clips`` in a thread: its kernels do not wait for those of ``process_frames``."""
        return contextlib.nullcontext() if self._clip_stream is None else torch.cuda.stream(self._clip_stream)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def extract(
        self, items: Iterable[DecodedChunk | Reject], timings: dict[str, float], count: Count
    ) -> Iterator[ClipFeatures | Reject]:
        """Yield features or a reject for every clip of one shard, in order: both steps, one after the other."""
        return self.process_clips(self.process_frames(items, timings, count))

    def process_frames(
        self, items: Iterable[DecodedChunk | Reject], timings: dict[str, float], count: Count
    ) -> ShardInProgress:
        """Locate the face in all frames of one shard.

        Args:
            items: the shard's chunks, clip by clip; a Reject ends its clip.
            timings: filled with the seconds that the calling thread spends in each stage.
            count: called with numbers of clips, frames and rejects (see ``progress.COUNTERS``), from any thread.
        """
        shard = ShardInProgress(timings, count)
        if self._skips("lm478", "face", "mouth"):  # frames are decoded and dropped
            for _ in self._open_clips(items, shard):
                pass
            return shard
        size = self.models.landmarker.batch_size
        batches = fixed_batches(self._open_clips(items, shard), size, size * MAX_FRAME_BYTES)
        found = one_behind(batches, partial(self._detect, shard), partial(self._locate, shard.clock))
        if self._quality.needs_pixels:
            found = map(partial(self._measure_pixels, shard.clock), found)
        if self.models.needs_pixels and self._only is None:
            found = map(partial(self._keep_crops, shard.clock), found)
        if self.models.speaking is not None and self.config.speaking.store and self._only is None:
            found = map(partial(self._keep_faces, shard.clock, self.models.speaking), found)
        found = self._media.pass_through(found, shard.clock)
        if self.models.regressor is None or self._only is not None:
            for _ in found:
                pass
        else:
            arguments = (shard.clock, self.models.regressor)
            for _ in one_behind(found, partial(self._align, *arguments), partial(self._regress, *arguments)):
                pass
        if self.device.type == "cuda":
            shard.frames_done = torch.cuda.current_stream(self.device).record_event()
        return shard

    def process_clips(self, shard: ShardInProgress) -> Iterator[ClipFeatures | Reject]:
        """Yield features or a reject for every clip of a shard whose frames were processed, in order."""
        clock = shard.clock
        self._wait_for_frames(shard)
        alive = [state for state in shard.states if isinstance(state, ClipState) and state.reject is None]
        with clock("landmarks"):
            if not self._skips("lm478", "face", "mouth"):
                finish_tracks(alive, self.config, self._quality, keeps_dense=self.models.fitter.config.dense)
            alive = [state for state in alive if state.reject is None]
        if self.models.speaking is not None and self.config.speaking.store and self._only is None:
            with clock("speaking"):
                self._score_speaking(alive, self.models.speaking)
            alive = [state for state in alive if state.reject is None]
        with clock("sound"):
            self._audio_features(alive, shard.count)
        with clock("fit"):
            if self._only is None:
                self._fit(alive)
        for each in shard.states:
            result = (
                each
                if isinstance(each, Reject)
                else each.reject or make_sample(each, self.models, self.config, self._media, self._only)
            )
            if isinstance(result, Reject):
                shard.count(rejects=1)
            yield result

    def _open_clips(
        self, items: Iterable[DecodedChunk | Reject], shard: ShardInProgress
    ) -> Iterator[FrameSpan[ClipState]]:
        """Yield the frames of each chunk, and add a state to ``shard`` for each clip."""
        states = shard.states
        for item in shard.clock.iterate("decode_wait", items):
            clip = item.clip
            last = states[-1] if states else None
            current = last if isinstance(last, ClipState) and last.clip == clip else None
            if isinstance(item, Reject):
                if current is None:
                    states.append(item)
                else:
                    current.reject = item
                shard.count(clips=1)
                continue
            frames = to_device(item.frames, self.device)
            if current is None:
                assert item.head is not None, "the first chunk of a clip carries its head"
                current = ClipState(clip, item.num_frames, item.head)
                if self._chooser is not None:
                    with shard.clock("speaking"):
                        current.track = self._chooser.track(frames, item.head.waveform)
                states.append(current)
                try:
                    current.media = self._media.open_clip(item.num_frames)
                except ClipError as error:
                    current.fail(error)
            current.damaged += item.damaged
            yield FrameSpan(current, item.start, frames)
            if item.is_last:
                shard.count(clips=1, frames=item.num_frames)

    def _detect(self, shard: ShardInProgress, batch: _Batch) -> tuple[_Batch, DetectedFaces]:
        shard.count(frame_slots=self.models.landmarker.batch_size)
        with shard.clock("landmarks"):
            return batch, self.models.landmarker.detect_faces([(span.frames, span.owner.track) for span in batch])

    def _locate(self, clock: Clock, detected: tuple[_Batch, DetectedFaces]) -> tuple[_Batch, list[FrameLandmarks]]:
        batch, faces = detected
        with clock("landmarks"):
            found = self.models.landmarker.find_landmarks(faces)
        for span, landmarks in zip(batch, found, strict=True):
            span.owner.landmarks.append(landmarks)
        return batch, found

    def _measure_pixels(
        self, clock: Clock, located: tuple[_Batch, list[FrameLandmarks]]
    ) -> tuple[_Batch, list[FrameLandmarks]]:
        with clock("quality"):
            for span, landmarks in zip(*located, strict=True):
                self._quality.measure_pixels(span.owner.picture, span, landmarks)
        return located

    def _keep_crops(
        self, clock: Clock, located: tuple[_Batch, list[FrameLandmarks]]
    ) -> tuple[_Batch, list[FrameLandmarks]]:
        """Keep the face region of each frame for a photometric fit, so that whole frames can be freed."""
        with clock("crops"):
            for span, landmarks in zip(*located, strict=True):
                if span.owner.crops is None:
                    span.owner.crops = FaceCrops()
                span.owner.crops.append(*crop_to_landmarks(span.frames, to_ibug68(landmarks.points)[..., :2]))
        return located

    def _keep_faces(
        self, clock: Clock, scorer: SpeakingScorer, located: tuple[_Batch, list[FrameLandmarks]]
    ) -> tuple[_Batch, list[FrameLandmarks]]:
        """Keep the lower face of each frame for active-speaker scores."""
        with clock("speaking"):
            for span, landmarks in zip(*located, strict=True):
                if span.owner.faces is None:
                    span.owner.faces = ClipFaces(span.owner.num_frames)
                scorer.append(span.owner.faces, span.frames, landmarks.points)
        return located

    def _align(
        self, clock: Clock, regressor: Deep3DRegressor, located: tuple[_Batch, list[FrameLandmarks]]
    ) -> tuple[_Batch, PreparedBatch]:
        batch, found = located
        points = [to_ibug68(landmarks.points)[..., :2] for landmarks in found]
        with clock("regression"):
            return batch, regressor.prepare([(span.frames, part) for span, part in zip(batch, points, strict=True)])

    def _regress(self, clock: Clock, regressor: Deep3DRegressor, aimed: tuple[_Batch, PreparedBatch]) -> None:
        batch, crops = aimed
        with clock("regression"):
            values = regressor.regress(crops)
        for span, coefficients in zip(batch, values, strict=True):
            span.owner.coefficients.append(coefficients)

    def _wait_for_frames(self, shard: ShardInProgress) -> None:
        """Make this stream wait for the one that processed the frames, and keep its tensors allocated."""
        if shard.frames_done is None:
            return
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(shard.frames_done)
        for state in shard.states:
            if isinstance(state, ClipState):
                for tensor in state.tensors:
                    tensor.record_stream(stream)

    def _score_speaking(self, states: list[ClipState], scorer: SpeakingScorer) -> None:
        """Score whether each clip's face speaks; clips in which it hardly ever does are rejected."""
        faces = [state.faces for state in states if state.faces is not None]
        bound = self.config.speaking.min_share
        for state, scores in zip(states, scorer(faces, [state.head.waveform for state in states]), strict=True):
            state.faces = None
            stored = scores.to(torch.float16).cpu()
            state.arrays["speaking"] = stored.numpy()
            share = float((stored > 0).float().mean())
            state.quality["speaking_fraction"] = round(share, 4)
            if bound is not None and share < bound:
                state.fail(NotSpeakingError(f"the face speaks in {share:.0%} of the frames, {bound:.0%} are needed"))

    @torch.inference_mode()
    def _audio_features(self, states: list[ClipState], count: Count) -> None:
        waveforms = [state.head.waveform for state in states]
        count(**self.models.speech.count_padding([len(waveform) for waveform in waveforms]))
        dtype = getattr(torch, self.config.speech.store)
        mels = self.models.mel([state.head.mel_source for state in states]) if self._only is None else []
        for state, mel in zip(states, copy_to_host(mels), strict=False):
            state.arrays["mel"] = mel.numpy()
        for number, encoder in enumerate(self.models.encoders):
            fields = list(self.models.speech_fields)[number * len(encoder.layers) :][: len(encoder.layers)]
            if self._skips(*fields):
                continue
            for name, layer in zip(fields, zip(*encoder.encode(waveforms), strict=True), strict=False):
                for state, rows in zip(states, copy_to_host(layer, dtype), strict=True):
                    state.arrays[name] = rows.numpy()
        for state in states:
            state.arrays["f0"] = state.head.f0_hz.numpy().copy()
            state.quality["sound_rms"] = rounded_number(state.head.waveform.square().mean().sqrt(), 6)
        for state, figures in zip(states, self._quality.audio([state.head for state in states]), strict=True):
            state.quality |= figures

    def _fit(self, states: list[ClipState]) -> None:
        inputs = [
            FitInput(
                torch.from_numpy(state.arrays["lm68"]),
                torch.from_numpy(state.arrays["valid"]),
                state.head.source.height,
                state.head.source.width,
                crops=state.crops,
                lm468=state.dense,
                blendshapes=None if state.blendshapes is None else state.blendshapes.float(),
            )
            for state in states
        ]
        for state, fit in zip(states, self.models.fitter(inputs), strict=True):
            state.dense = state.blendshapes = None
            self._take_fit(state, fit)
            state.crops = None

    def _take_fit(self, state: ClipState, fit: FitResult) -> None:
        for name in ("id", "exp", "pose", "idexp_lm3d"):
            state.arrays[name] = getattr(fit, name).numpy()
        if self.config.regression.idexp != "fit":
            coefficients = torch.from_numpy(state.arrays["coeff"]).to(self.models.face_model.device)
            off_by_one = self.config.regression.idexp == "geneface"
            offsets = idexp_lm3d(self.models.face_model, coefficients, off_by_one=off_by_one)
            state.arrays["idexp_lm3d"] = offsets.cpu().numpy()
        state.quality |= {
            "reprojection_px": rounded_number(fit.reprojection_px.nanmean()),
            "mouth_reprojection_px": rounded_number(fit.mouth_reprojection_px.nanmean()),
            "relative_error": rounded_number(fit.relative_error, 5),
            "relative_mouth_error": rounded_number(fit.relative_mouth_error, 5),
            "face_size_px": rounded_number(fit.face_size_px.nanmean(), 1),
            "converged": fit.converged,
            **self._quality.face(state.arrays, state.head),
        }
        if fit.photometric is not None:
            state.quality |= {  # mean absolute colour difference (0..1) between rendered face and frames
                "photometric_error_landmark_fit": rounded_number(fit.photometric.error_before, 5),
                "photometric_error": rounded_number(fit.photometric.error, 5),
                "photometric_refined": fit.photometric.refined,
            }
        bound = self.config.face.max_reprojection
        if bound is not None and fit.relative_error > bound:
            state.fail(PoorFitError(f"landmarks are {fit.relative_error:.4f} face sizes off, {bound:.4f} allowed"))
