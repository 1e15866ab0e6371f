"""Active-speaker scores in an extraction: stored, counted, rejected by, and the same in any company."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import CorpusConfig, LandmarkConfig, RunConfig, SpeakingConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.speaking.crops import FaceCropper
from lrs3_loader.types import ClipFeatures, DecodedChunk, Reject
from support.speaking_weights import speaking_weights

CPU = torch.device("cpu")
Extract = Callable[[Sequence[DecodedChunk]], list[ClipFeatures | Reject]]


def no_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_rows, np.float32), num_rows


def first_chunks(corpus: Path, begins: str = "") -> list[DecodedChunk]:
    """Decode the clips whose name begins so."""
    dataset = ClipDataset(corpus, RunConfig().decode, no_pitch)
    clips = [clip for clip in scan_corpus(CorpusConfig(corpus=corpus)) if clip.utterance.startswith(begins)]
    found = [dataset[ChunkRequest(clip, 0)] for clip in clips]
    return [chunk for chunk in found if isinstance(chunk, DecodedChunk)]


def beginning(chunk: DecodedChunk, num_frames: int) -> DecodedChunk:
    """The first frames of a chunk as a clip of their own."""
    assert chunk.head is not None
    sound = chunk.head.waveform[: 640 * num_frames]
    head = dataclasses.replace(chunk.head, waveform=sound, f0_hz=torch.zeros(2 * num_frames))
    return DecodedChunk(chunk.clip, num_frames, 0, chunk.frames[:num_frames], head)


def extractor_with(speaking: SpeakingConfig, models: Path | None, weights: Path) -> ShardExtractor:
    config = dataclasses.replace(
        demo_defaults(RunConfig()), speaking=speaking, landmarks=LandmarkConfig(frame_batch=8, store_lm478=True)
    )
    config = resolve(config, "cpu")
    assets = Assets(models, store=None)
    found = assets.find
    assets.find = lambda *names: weights if "finetuning_TalkSet.model" in names else found(*names)  # type: ignore[method-assign]
    return ShardExtractor(config, Models.load(config, assets, CPU), CPU)


def extract(extractor: ShardExtractor, chunks: Sequence[DecodedChunk]) -> list[ClipFeatures | Reject]:
    return list(extractor.extract(chunks, {}, lambda **counts: None))


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[DecodedChunk]:
    where = tmp_path_factory.mktemp("corpus") / "demo"
    corpus = demo.make_demo_corpus(where, num_speakers=1, clips_per_speaker=2, seconds=(0.8, 1.2))
    found = first_chunks(corpus.folder)
    assert len({chunk.num_frames for chunk in found}) == len(found) == 2
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "finetuning_TalkSet.model"
    torch.save(speaking_weights(), path)
    return path


def test_scores_are_stored_and_rejected_by(
    chunks: list[DecodedChunk], assets: Path | None, weights: Path, tmp_path: Path
) -> None:
    extractor = extractor_with(SpeakingConfig(store=True), assets, weights)
    scorer = extractor.models.speaking
    assert scorer is not None
    assert extractor.models.record["speaking"]["name"] == extractor.models.names["speaking"] == "lr_asd"
    stored = {}
    for chunk, found in zip(chunks, extract(extractor, chunks), strict=True):
        assert isinstance(found, ClipFeatures)
        assert chunk.head is not None
        scores = stored[chunk.clip.key] = found.arrays["speaking"].astype(np.float64)
        # What the network gives for the frames and landmarks that are stored, without any batching.
        crops = FaceCropper(chunk.num_frames).append(chunk.frames, torch.from_numpy(found.arrays["lm478"]))
        expected = scorer.network(crops[None], scorer.mfcc([chunk.head.waveform])[0][None])[0]
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-3, atol=1e-4)
        (alone,) = extract(extractor, [chunk])
        assert isinstance(alone, ClipFeatures)
        np.testing.assert_allclose(alone.arrays["speaking"], scores, rtol=1e-3, atol=1e-4)

    # The middle score of the first clip becomes 0.
    table = speaking_weights()
    table["lossAV.FC.bias"] = table["lossAV.FC.bias"] - float(np.median(stored[chunks[0].clip.key]))
    torch.save(table, tmp_path / "shifted")
    shifted = extract(extractor_with(SpeakingConfig(store=True), assets, tmp_path / "shifted"), chunks)
    shares = {}
    for found in shifted:
        assert isinstance(found, ClipFeatures)
        shares[found.clip.key] = share = float((found.arrays["speaking"] > 0).mean())
        assert found.meta["quality"]["speaking_fraction"] == pytest.approx(share, abs=1e-4)
    assert 0.3 < shares[chunks[0].clip.key] < 0.7
    bound = shares[chunks[0].clip.key] + 0.01
    strict = extractor_with(SpeakingConfig(store=True, min_share=bound), assets, tmp_path / "shifted")
    rejects = [found for found in extract(strict, chunks) if isinstance(found, Reject)]
    assert [reject.clip.key for reject in rejects] == [key for key, share in shares.items() if share < bound]
    assert {reject.reason for reject in rejects} == {"not_speaking"}
    assert f"{shares[chunks[0].clip.key]:.0%} of the frames" in rejects[0].message


def test_settings_and_files_that_cannot_be(tmp_path: Path, assets: Path | None) -> None:
    with pytest.raises(ValueError, match="min-speaking-share needs --speaking"):
        SpeakingConfig(min_share=0.5)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, got 30"):
        SpeakingConfig(store=True, min_share=30)
    (tmp_path / "finetuning_TalkSet.model").write_bytes(b"<html>")
    with pytest.raises(RunError, match="does not hold LR-ASD's weights"):
        extractor_with(SpeakingConfig(store=True), assets, tmp_path / "finetuning_TalkSet.model")


def test_real_faces_that_speak_and_that_do_not(shared_data: Path, shared_assets: Path) -> None:
    """The published weights. All figures, other people's sound among them, are in BENCH.md."""
    (speech,), (still,) = (first_chunks(shared_data / "clips", begins) for begins in ("may", "silent"))
    weights = shared_assets / "lr_asd" / "finetuning_TalkSet.model"
    extractor = extractor_with(SpeakingConfig(store=True), shared_assets, weights)
    scorer = extractor.models.speaking
    assert scorer is not None
    own, in_silence, with_speech = [], [], []
    for chunk in (beginning(speech, 40), beginning(still, 40)):
        (found,) = extract(extractor, [chunk])
        assert isinstance(found, ClipFeatures)
        own.append(found.arrays["speaking"])
        crops = FaceCropper(40).append(chunk.frames, torch.from_numpy(found.arrays["lm478"]))[None]
        for scores, waveform in (
            (in_silence, torch.zeros(640 * 40)),
            (with_speech, beginning(speech, 40).head.waveform),
        ):
            scores.append(scorer.network(crops, scorer.mfcc([waveform])[0][None])[0].numpy())
    assert own[0].mean() > 2
    assert own[0].mean() > in_silence[0].mean() + 0.3
    assert (own[0] > 0).mean() > 0.95
    assert own[1].mean() < -2
    assert (own[1] > 0).sum() == 0
    assert with_speech[1].mean() < 0


def test_of_two_real_faces_the_one_that_speaks_is_extracted(shared_data: Path, shared_assets: Path) -> None:
    (speech,), (still,) = (first_chunks(shared_data / "clips", begins) for begins in ("may", "silent"))
    clip = beginning(speech, 40)
    small = torch.nn.functional.interpolate(clip.frames.permute(0, 3, 1, 2).float(), (320, 320)).permute(0, 2, 3, 1)
    frames = torch.full((40, 480, 800, 3), 90, dtype=torch.uint8)
    frames[:, :, :480], frames[:, 80:400, 480:] = still.frames[:40], small.to(torch.uint8)
    both = dataclasses.replace(clip, frames=frames)
    weights = shared_assets / "lr_asd" / "finetuning_TalkSet.model"
    found = {}
    tracks: tuple[Literal["largest", "speaking"], ...] = ("largest", "speaking")
    for track in tracks:
        extractor = extractor_with(SpeakingConfig(store=True, track=track), shared_assets, weights)
        (features,) = extract(extractor, [both])
        assert isinstance(features, ClipFeatures)
        on_the_right = features.arrays["lm68"][..., 0] > 480
        assert on_the_right.all() if track == "speaking" else not on_the_right.any()
        assert features.meta["quality"]["num_frames_with_several_faces"] > 30
        assert ("speaks most" in features.meta["conventions"]["face_track"]) == (track == "speaking")
        found[track] = features.meta["quality"]["speaking_fraction"]
    assert found["speaking"] > 0.9
    assert found["largest"] < 0.1
