"""What is known of the clips of a shard while they are extracted, and where the time goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lrs3_loader.errors import ClipError
from lrs3_loader.extraction.media import ClipMedia
from lrs3_loader.face.image.crops import FaceCrops
from lrs3_loader.face.landmarks.landmarker import FrameLandmarks
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.quality.picture import PictureMeter
from lrs3_loader.speaking.scorer import ClipFaces
from lrs3_loader.types import Clip, ClipHead, DecodedChunk, Reject

Count = Callable[..., None]  # count(clips=, frames=, rejects=, ...), see ``progress.COUNTERS``


@dataclass
class ClipState:
    """Intermediate results of one clip while its shard is processed."""

    clip: Clip
    num_frames: int
    head: ClipHead
    damaged: list[int] = field(default_factory=list)  # frames that could not be decoded faithfully
    track: FaceTrack = field(default_factory=FaceTrack)
    landmarks: list[FrameLandmarks] = field(default_factory=list)
    coefficients: list[torch.Tensor] = field(default_factory=list)
    crops: FaceCrops | None = None  # for a photometric fit
    faces: ClipFaces | None = None  # for active-speaker scores
    picture: PictureMeter = field(default_factory=PictureMeter)
    media: ClipMedia | None = None  # for crops that are stored
    dense: torch.Tensor | None = None  # dense landmarks [T, L, 2] px, if the fit uses them
    blendshapes: torch.Tensor | None = None  # [T, 52] f16 scores, if they are stored or the fit uses them
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    reject: Reject | None = None

    def fail(self, error: ClipError) -> None:
        self.reject = Reject(self.clip, error.reason, str(error))
        self.crops = self.faces = self.media = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors that are kept on the device, for whoever hands them to another stream."""
        parts = [value for part in self.landmarks for value in vars(part).values() if value is not None]
        faces = self.faces.tensors if self.faces is not None else []
        return [*parts, *self.coefficients, *self.picture.tensors, *faces]


class ShardInProgress:
    """A shard between the two steps: the state of each of its clips after its frames were processed."""

    def __init__(self, timings: dict[str, float], count: Count) -> None:
        self.states: list[ClipState | Reject] = []
        self.clock = Clock(timings)
        self.count = count
        self.frames_done: torch.cuda.Event | None = None  # on a GPU: recorded after the last kernel of the step


class Clock:
    """Adds up the seconds spent in each stage."""

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
        """Yield the items, counting the time spent waiting for each."""
        iterator = iter(items)
        while True:
            with self(stage):
                item = next(iterator, None)
            if item is None:
                return
            yield item
