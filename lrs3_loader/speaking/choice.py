"""Which of several faces to follow: the one that speaks.

Before a clip's frames are processed, its first seconds are looked at. All faces in them are followed, each gets
active-speaker scores, and the one with the highest mean is where the clip's track begins. A clip with one face at a
time costs a second detection of these frames and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lrs3_loader.face.landmarks.detector import MAX_FACES
from lrs3_loader.face.landmarks.landmarker import DetectedFaces, FaceLandmarker
from lrs3_loader.face.landmarks.tracks import Box, FaceTrack
from lrs3_loader.speaking.scorer import ClipFaces, SpeakingScorer
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME

MAX_SECONDS = 10  # of a clip that are looked at; large frames come in shorter chunks, of which the first is
MAX_FRAMES = MAX_SECONDS * FRAMES_PER_SECOND
SPEAKING_TRACK_RULE = (
    f"of several faces the one that speaks most in the clip's first {MAX_SECONDS} s (LR-ASD), if one does; else the "
    "largest and most central face; then the one that overlaps most with the last box"
)


class SpeakerChooser:
    """Chooses the face that speaks among those of a clip.

    Args:
        landmarker: finds faces and their landmarks.
        scorer: scores them.
        min_valid_fraction: a face that is found in a smaller share of the frames is no candidate.
    """

    def __init__(self, landmarker: FaceLandmarker, scorer: SpeakingScorer, min_valid_fraction: float) -> None:
        self.landmarker = landmarker
        self.scorer = scorer
        self.min_valid_fraction = min_valid_fraction

    def track(self, frames: Tensor, waveform: Tensor) -> FaceTrack:
        """Return the track for a clip that begins with these frames.

        Args:
            frames: u8 [n, H, W, 3], on the landmarker's device; at most ``MAX_FRAMES`` are looked at.
            waveform: f32 [640 T], the clip's audio.

        Returns:
            A track that begins with the face that speaks. Without several faces, or if none of them speaks (mean score
            above 0), one that begins with the most prominent face.
        """
        frames = frames[:MAX_FRAMES]
        height, width = frames.shape[1:3]
        parts = frames.split(self.landmarker.batch_size)
        detected = [self.landmarker.detect_faces([(part, FaceTrack())]) for part in parts]
        boxes = [found for part in detected for found in self.landmarker.boxes(part)]
        if max(map(len, boxes)) < 2:
            return FaceTrack()
        candidates = split_tracks(boxes, height, width)
        least = self.min_valid_fraction * len(frames)
        candidates = [chosen for chosen in candidates if sum(face is not None for face in chosen) >= least]
        if len(candidates) < 2:
            return FaceTrack()
        means = self._mean_scores(parts, detected, candidates, waveform[: SAMPLES_PER_FRAME * len(frames)])
        best = int(np.argmax(means))
        if means[best] <= 0:
            return FaceTrack()
        first, face = next((i, face) for i, face in enumerate(candidates[best]) if face is not None)
        return FaceTrack(first, boxes[first][face])

    def _mean_scores(
        self,
        parts: Sequence[Tensor],
        detected: Sequence[DetectedFaces],
        candidates: Sequence[Sequence[int | None]],
        waveform: Tensor,
    ) -> list[float]:
        """Return the mean score of each candidate over the frames in which it is found."""
        faces, found = [], []
        for chosen in candidates:
            given, clip, seen = _GivenTrack(chosen), ClipFaces(len(chosen)), []
            for part, (_, copy) in zip(parts, detected, strict=True):
                (landmarks,) = self.landmarker.find_landmarks(([(part, given)], copy))
                self.scorer.append(clip, part, landmarks.points)
                seen.append(landmarks.found)
            faces.append(clip)
            found.append(torch.cat(seen))
        scores = self.scorer(faces, [waveform] * len(faces))
        pairs = zip(scores, found, strict=True)
        return [float(row[there].mean()) if bool(there.any()) else -math.inf for row, there in pairs]


class _GivenTrack(FaceTrack):
    """A track whose face in each frame is known already."""

    def __init__(self, chosen: Sequence[int | None]) -> None:
        super().__init__()
        self._chosen = chosen

    def choose(self, boxes: Sequence[Box], height: int, width: int) -> int | None:
        self.num_frames += 1
        return self._chosen[self.num_frames - 1]


def split_tracks(boxes: Sequence[Sequence[Box]], height: int, width: int) -> list[list[int | None]]:
    """Follow the faces of a clip one after another, the most prominent first, each among those that are left.

    Args:
        boxes: per frame, those of its faces.
        height, width: size of the frames.

    Returns:
        per track, for each frame the index of its face, or None where it is not there.
    """
    left = [list(range(len(there))) for there in boxes]
    tracks: list[list[int | None]] = []
    for _ in range(MAX_FACES):
        track, chosen = FaceTrack(), list[int | None]()
        for there, indices in zip(boxes, left, strict=True):
            face = track.choose([there[i] for i in indices], height, width)
            chosen.append(None if face is None else indices.pop(face))
        if all(face is None for face in chosen):
            break
        tracks.append(chosen)
    return tracks
