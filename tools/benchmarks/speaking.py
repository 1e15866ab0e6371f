"""How well active-speaker scores tell own sound from silence, another's voice and late sound, on clips of a folder.

Letters: T frames.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fit_clips import chunks_of
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, DecodeConfig
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import FaceTrack
from lrs3_loader.speaking import SpeakingNetwork
from lrs3_loader.speaking.crops import FaceCropper
from lrs3_loader.speaking.scorer import ClipFaces, SpeakingScorer
from lrs3_loader.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Clip

SOUNDS = ("own", "silence", "noise", "another's", "1 s late")
NOISE = 1e-3  # deviation of the faint noise: -60 dB
AUDIBLE = 1e-3  # level above which a clip's sound can stand for another's voice


@dataclass(frozen=True)
class Faces:
    """The faces and the sound of one clip."""

    clip: Clip
    crops: torch.Tensor  # u8 [T, 112, 112]
    waveform: torch.Tensor  # f32 [640 T]


def run_benchmark(folder: Path, assets: Assets) -> Iterator[str]:
    """Print a row per clip: the mean score with each sound, and the share of the frames above 0; then the whole."""
    scorer = SpeakingScorer(SpeakingNetwork.load(assets.ensure_speaking_weights()), "cpu")
    landmarker = FaceLandmarker(load_landmarker_files(assets.ensure_landmarker()))
    seconds = {"landmarks": 0.0, "crops": 0.0, "scores": 0.0}
    clips = list(_read_faces(folder, landmarker, seconds))
    yield f"{'clip':<34}" + "".join(f"{sound:>16}" for sound in SOUNDS)
    means: list[list[float]] = []
    for number, faces in enumerate(clips):
        scores = []
        for sound, waveform in zip(SOUNDS, _sounds(clips, number), strict=True):
            started = time.perf_counter()
            (row,) = scorer([_as_taken(scorer, faces)], [waveform])
            seconds["scores"] += (time.perf_counter() - started) * (sound == "own")
            scores.append(row)
        means.append([float(row.mean()) for row in scores])
        cells = (f"{row.mean():+.2f} ({(row > 0).float().mean():.0%})" for row in scores)
        yield f"{faces.clip.key:<34}" + "".join(f"{cell:>16}" for cell in cells)
    for sound, column in zip(SOUNDS[1:], list(zip(*means, strict=True))[1:], strict=True):
        higher = sum(own[0] > other for own, other in zip(means, column, strict=True))
        yield f"own sound scores higher than {sound}: {higher} of {len(clips)} clips"
    frames = sum(len(faces.crops) for faces in clips)
    yield f"{frames} frames: " + ", ".join(f"{name} {frames / value:.0f} frames/s" for name, value in seconds.items())


def _read_faces(folder: Path, landmarker: FaceLandmarker, seconds: dict[str, float]) -> Iterator[Faces]:
    """Cut the faces out of every clip of a folder as a run does."""
    config = CorpusConfig(corpus=folder)
    dataset = ClipDataset(corpus_root(config), DecodeConfig(), f0_praat)
    for clip in scan_corpus(config):
        track, cropper, crops, waveform = FaceTrack(), None, [], torch.zeros(0)
        for chunk in chunks_of(clip, dataset):
            if chunk.head is not None:
                waveform = chunk.head.waveform
            cropper = cropper or FaceCropper(chunk.num_frames)
            for frames in chunk.frames.split(landmarker.batch_size):
                started = time.perf_counter()
                (found,) = landmarker([(frames, track)])
                located = time.perf_counter()
                crops.append(cropper.append(frames, found.points))
                seconds["landmarks"] += located - started
                seconds["crops"] += time.perf_counter() - located
        if crops:
            yield Faces(clip, torch.cat(crops), waveform)


def _sounds(clips: list[Faces], number: int) -> list[torch.Tensor]:
    """The sounds of ``SOUNDS`` for one clip; another's is that of the next audible clip of another speaker."""
    own = clips[number].waveform
    speaker = clips[number].clip.speaker if len({faces.clip.speaker for faces in clips}) > 1 else None
    others = [clips[(number + k) % len(clips)] for k in range(1, len(clips))]
    voices = [o.waveform for o in others if o.waveform.square().mean().sqrt() > AUDIBLE and o.clip.speaker != speaker]
    voice = voices[0] if voices else torch.zeros_like(own)
    voice = voice.repeat(-(-len(own) // len(voice)))[: len(own)]
    noise = NOISE * torch.randn(len(own), generator=torch.Generator().manual_seed(0))
    late = own.roll(min(SAMPLE_RATE, len(own) // (2 * SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME))
    return [own, torch.zeros_like(own), noise, voice, late]


def _as_taken(scorer: SpeakingScorer, faces: Faces) -> ClipFaces:
    """The state of a clip whose frames have passed."""
    taken = ClipFaces(len(faces.crops))
    scorer.append_crops(taken, faces.crops)
    return taken
