"""The choice among several faces in a clip, by which of them speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import CorpusConfig, DecodeConfig
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, load_landmarker_files
from lrs3_loader.face.landmarks.tracks import Box, FaceTrack
from lrs3_loader.speaking import SpeakingNetwork
from lrs3_loader.speaking.choice import SpeakerChooser, split_tracks
from lrs3_loader.speaking.scorer import SpeakingScorer
from lrs3_loader.types import DecodedChunk
from support.speaking_weights import speaking_weights

NUM_FRAMES = 20


def no_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_rows, np.float32), num_rows


def decode(corpus: Path, begins: str = "") -> list[DecodedChunk]:
    dataset = ClipDataset(corpus, DecodeConfig(), no_pitch)
    clips = [clip for clip in scan_corpus(CorpusConfig(corpus=corpus)) if clip.utterance.startswith(begins)]
    found = [dataset[ChunkRequest(clip, 0)] for clip in clips]
    return [chunk for chunk in found if isinstance(chunk, DecodedChunk)]


@pytest.fixture(scope="module")
def landmarker(assets: Path | None) -> FaceLandmarker:
    return FaceLandmarker(load_landmarker_files(Assets(assets).landmarker()), batch_size=8)


def side_by_side(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Frames with two faces: the left one in full, the right one at two thirds of its size."""
    height, width = left.shape[1:3]
    small = torch.nn.functional.interpolate(right.permute(0, 3, 1, 2).float(), (height * 2 // 3, width * 2 // 3))
    canvas = torch.full((len(left), height, width + small.shape[3], 3), 90, dtype=torch.uint8)
    canvas[:, :, :width] = left
    canvas[:, : small.shape[2], width:] = small.permute(0, 2, 3, 1).to(torch.uint8)
    return canvas


def first_box(landmarker: FaceLandmarker, frames: torch.Tensor, track: FaceTrack) -> Box:
    """The box of the face that a track chooses in the first frame."""
    (boxes,) = landmarker.boxes(landmarker.detect_faces([(frames[:1], FaceTrack())]))
    face = track.choose(boxes, *frames.shape[1:3])
    assert face is not None
    return boxes[face]


def test_the_face_with_the_higher_score_is_followed(
    landmarker: FaceLandmarker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random weights prefer one of two faces; with their sign changed, the other."""
    where = tmp_path_factory.mktemp("corpus") / "demo"
    corpus = demo.make_demo_corpus(where, num_speakers=2, clips_per_speaker=1, seconds=(0.8, 0.9))
    one, two = decode(corpus.folder)
    frames = side_by_side(one.frames[:NUM_FRAMES], two.frames[:NUM_FRAMES])
    assert one.head is not None
    waveform = one.head.waveform

    def scores_of(weights: dict[str, torch.Tensor]) -> list[float]:
        chooser = SpeakerChooser(landmarker, SpeakingScorer(SpeakingNetwork(weights), "cpu"), 0.8)
        parts = frames.split(landmarker.batch_size)
        detected = [landmarker.detect_faces([(part, FaceTrack())]) for part in parts]
        boxes = [found for part in detected for found in landmarker.boxes(part)]
        candidates = split_tracks(boxes, *frames.shape[1:3])
        return chooser._mean_scores(parts, detected, candidates, waveform[: 640 * NUM_FRAMES])

    weights = speaking_weights()
    left, right = scores_of(weights)
    assert abs(left - right) > 1e-4
    middle, half = (left + right) / 2, abs(left - right) / 2
    chosen = {}
    for name, sign, offset in (("first", 1, 0.0), ("second", -1, 0.0), ("neither", 1, -2 * half)):
        head = {
            "lossAV.FC.weight": sign * weights["lossAV.FC.weight"],
            "lossAV.FC.bias": sign * (weights["lossAV.FC.bias"] - middle) + offset,
        }
        chooser = SpeakerChooser(landmarker, SpeakingScorer(SpeakingNetwork(weights | head), "cpu"), 0.8)
        x0, _, x1, _ = first_box(landmarker, frames, chooser.track(frames, waveform))
        chosen[name] = "left" if (x0 + x1) / 2 < one.frames.shape[2] else "right"
    better, worse = ("left", "right") if left > right else ("right", "left")
    assert chosen == {"first": better, "second": worse, "neither": "left"}  # the left one is larger

    chooser = SpeakerChooser(landmarker, SpeakingScorer(SpeakingNetwork(weights), "cpu"), 0.8)
    alone = chooser.track(one.frames[:NUM_FRAMES], waveform)
    assert vars(alone) == vars(FaceTrack())


def test_a_real_face_that_speaks_is_followed_beside_a_larger_one(
    landmarker: FaceLandmarker, shared_data: Path, shared_assets: Path
) -> None:
    (speech,), (still,) = (decode(shared_data / "clips", begins) for begins in ("may", "silent"))
    frames = side_by_side(still.frames[:50, :480, :480], speech.frames[:50, :480, :480])
    assert speech.head is not None
    network = SpeakingNetwork.load(shared_assets / "lr_asd" / "finetuning_TalkSet.model")
    chooser = SpeakerChooser(landmarker, SpeakingScorer(network, "cpu"), 0.8)
    assert first_box(landmarker, frames, FaceTrack())[2] < 480
    assert first_box(landmarker, frames, chooser.track(frames, speech.head.waveform))[0] > 480


def test_faces_are_followed_one_after_another() -> None:
    large, small, other = (10.0, 10.0, 60.0, 60.0), (70.0, 20.0, 90.0, 40.0), (5.0, 80.0, 15.0, 90.0)
    boxes = [[small, large], [large, small], [large], [other, small, large]]
    assert split_tracks(boxes, 100, 100) == [[1, 0, 0, 2], [0, 1, None, 1], [None, None, None, 0]]
    assert split_tracks([[], []], 100, 100) == []


def test_a_track_begins_where_it_is_told() -> None:
    large, small = (10.0, 10.0, 60.0, 60.0), (70.0, 20.0, 90.0, 40.0)
    track = FaceTrack(2, small)
    assert [track.choose([large], 100, 100) for _ in range(2)] == [None, None]
    assert track.choose([large, small], 100, 100) == 1
    assert (track.num_switches, track.num_frames) == (0, 3)
