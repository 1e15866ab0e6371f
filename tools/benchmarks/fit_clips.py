"""Landmarks of real clips for the fitting benchmark, and the same clips placed in other frames.

Letters: T frames, L dense points (468 or more).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, DecodeConfig
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.errors import ClipError
from lrs3_loader.extraction.batch import FrameSpan, fixed_batches
from lrs3_loader.face.fit.fitter import FitInput
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, FrameLandmarks, fill_track_gaps, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.types import Clip, DecodedChunk, Reject


@dataclass(frozen=True)
class Measured:
    """What was measured in one clip."""

    name: str
    lm68: torch.Tensor  # [T, 68, 2] f32, pixels of the source frame, y down
    valid: torch.Tensor  # [T] bool
    height: int
    width: int
    dense: torch.Tensor | None = None  # [T, L, 2] f32
    blendshapes: torch.Tensor | None = None  # [T, 52] f32 scores

    @property
    def face_share(self) -> float:
        """Size of the face (geometric mean of its landmarks' width and height) over the frame's longer side."""
        extent = self.lm68[self.valid].amax(1) - self.lm68[self.valid].amin(1)
        return float(extent.prod(1).sqrt().mean()) / max(self.height, self.width)

    def fit_input(self) -> FitInput:
        return FitInput(self.lm68, self.valid, self.height, self.width, lm468=self.dense, blendshapes=self.blendshapes)

    def in_square(self, size: int, share: float = 1.0) -> Measured:
        """The clip's 68 landmarks in a square frame: its longer side scaled to ``share`` of ``size``, in the middle."""
        scale = share * size / max(self.height, self.width)
        middle = torch.tensor([(self.width - 1) / 2, (self.height - 1) / 2])
        points = (self.lm68 - middle) * scale + (size - 1) / 2
        return Measured(self.name, points.contiguous(), self.valid, size, size)


def read_clips(corpus: Path, assets: Assets) -> Iterator[Measured]:
    """All clips of a folder in which a face is found, as a run finds it.

    Raises ``RunError`` where there is no clip or no landmark model.
    """
    config = CorpusConfig(corpus=corpus, layout="folder")
    landmarker = FaceLandmarker(load_landmarker_files(assets.ensure_landmarker()))
    dataset = ClipDataset(corpus_root(config), DecodeConfig(), f0_praat)
    for clip in scan_corpus(config):
        found = _measure(clip, dataset, landmarker)
        if found is not None:
            yield found


def _measure(clip: Clip, dataset: ClipDataset, landmarker: FaceLandmarker) -> Measured | None:
    track, parts, size = FaceTrack(), list[FrameLandmarks](), [0, 0]
    spans = (FrameSpan(clip, chunk.start, chunk.frames) for chunk in chunks_of(clip, dataset))
    for batch in fixed_batches(spans, landmarker.batch_size, 1 << 30):
        parts += landmarker([(span.frames, track) for span in batch])
        _, *size, _ = batch[0].frames.shape
    if not parts:
        return None
    try:
        found = fill_track_gaps(FrameLandmarks.cat(parts), min_valid_fraction=0.8, max_gap_frames=10)
    except ClipError:
        return None
    dense = found.points[..., :2].clone()
    return Measured(clip.key, to_ibug68(dense), found.found, size[0], size[1], dense, found.blendshapes)


def chunks_of(clip: Clip, dataset: ClipDataset) -> Iterator[DecodedChunk]:
    """Decode a clip chunk by chunk, as far as it can be."""
    start = 0
    while True:
        chunk = dataset[ChunkRequest(clip, start)]
        if isinstance(chunk, Reject):
            return
        yield chunk
        if chunk.is_last:
            return
        start = chunk.stop
