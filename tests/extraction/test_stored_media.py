"""Pixels and audio are stored when they are asked for, and show what the features were made of."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader import ShardStream, demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.config import CorpusConfig, MediaConfig, RunConfig, demo_defaults, resolve
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.extraction import media
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.shards import encode_sample
from lrs3_loader.run.tar import DamagedError, TarIndex, decode_media
from lrs3_loader.stream import Raw
from lrs3_loader.types import Clip, ClipFeatures, DecodedChunk, Reject, Shard
from support.factory import make_clip

ALL = MediaConfig(store_audio=True, store_face=64, store_mouth=True)


def no_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_rows, np.float32), num_rows


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[DecodedChunk]:
    """Two short clips, one chunk each."""
    where = tmp_path_factory.mktemp("corpus") / "demo"
    corpus = demo.make_demo_corpus(where, num_speakers=2, clips_per_speaker=1, seconds=(0.8, 1.0))
    dataset = ClipDataset(corpus.folder, RunConfig().decode, no_pitch)
    found = [dataset[ChunkRequest(clip, 0)] for clip in scan_corpus(CorpusConfig(corpus=corpus.folder))]
    decoded = [chunk for chunk in found if isinstance(chunk, DecodedChunk)]
    assert len(decoded) == len(found) == 2
    return decoded


def make_extractor(config: MediaConfig, assets: Path | None, device: str = "cpu") -> ShardExtractor:
    run = dataclasses.replace(demo_defaults(RunConfig()), media=config)
    run = resolve(run, device)
    run = dataclasses.replace(run, landmarks=dataclasses.replace(run.landmarks, frame_batch=16))
    where = torch.device(device)
    return ShardExtractor(run, Models.load(run, Assets(assets), where), where)


def extract(extractor: ShardExtractor, items: list[DecodedChunk]) -> list[ClipFeatures | Reject]:
    return list(extractor.extract(items, {}, lambda **counts: None))


@pytest.fixture(scope="module")
def features(chunks: list[DecodedChunk], assets: Path | None) -> list[ClipFeatures]:
    found = extract(make_extractor(ALL, assets), chunks)
    assert all(isinstance(each, ClipFeatures) for each in found)
    return found  # type: ignore[return-value]


def divided(chunk: DecodedChunk, *cuts: int) -> list[DecodedChunk]:
    bounds = [0, *cuts, chunk.num_frames]
    return [
        dataclasses.replace(chunk, start=a, frames=chunk.frames[a:b], head=chunk.head if a == 0 else None)
        for a, b in pairwise(bounds)
    ]


def test_nothing_is_stored_unless_it_is_asked_for(chunks: list[DecodedChunk], assets: Path | None) -> None:
    (found,) = extract(make_extractor(MediaConfig(), assets), chunks[:1])
    assert isinstance(found, ClipFeatures)
    assert not found.media
    assert not {name for name in found.arrays if name.endswith("_to_frame")}
    assert not found.meta["conventions"].keys() & {"face", "mouth"}


def test_the_audio_is_what_the_features_saw(features: list[ClipFeatures], chunks: list[DecodedChunk]) -> None:
    mel = MelSpectrogram()
    for found, chunk in zip(features, chunks, strict=True):
        assert chunk.head is not None
        audio = decode_media("audio", found.media["audio"], found.meta)
        np.testing.assert_allclose(audio, chunk.head.waveform.numpy(), rtol=0, atol=2.0**-24)
        (rows,) = mel([torch.from_numpy(audio)])
        np.testing.assert_allclose(rows.numpy(), found.arrays["mel"], atol=1e-3)


def test_crops_lie_where_their_transforms_say(features: list[ClipFeatures], chunks: list[DecodedChunk]) -> None:
    """Every fourth pixel of a crop is looked up in the frame."""
    for found, chunk in zip(features, chunks, strict=True):
        frames = chunk.frames.numpy().astype(float)
        height, width = frames.shape[1:3]
        for name, size in (("face", 64), ("mouth", 96)):
            shown = decode_media(name, found.media[name], found.meta).astype(float)
            assert shown.shape[:3] == (chunk.num_frames, size, size)
            place = np.stack(np.meshgrid(np.arange(0, size, 4), np.arange(0, size, 4)), -1)
            for t in range(0, chunk.num_frames, 5):
                transform = found.arrays[f"{name}_to_frame"][t].astype(float)
                x, y = np.moveaxis((place @ transform[:, :2].T + transform[:, 2]).round().astype(int), -1, 0)
                expected = frames[t, y.clip(0, height - 1), x.clip(0, width - 1)]
                if name == "mouth":
                    expected = expected @ [0.299, 0.587, 0.114]
                assert np.abs(shown[t, ::4, ::4] - expected).mean() < 8


def test_the_mouth_is_in_the_middle_of_its_crop(features: list[ClipFeatures]) -> None:
    for found in features:
        for name, low, high in (("mouth", 40, 56), ("face", 36, 60)):
            transforms = found.arrays[f"{name}_to_frame"].astype(float)
            mouth = found.arrays["lm68"][:, 48:68].mean(1).astype(float)
            inside = [np.linalg.solve(m[:, :2], p - m[:, 2]) for m, p in zip(transforms, mouth, strict=True)]
            rows = np.array(inside)[:, 1]
            assert low < rows.min()
            assert rows.max() < high


def test_bytes_do_not_depend_on_chunks_and_company(
    features: list[ClipFeatures], chunks: list[DecodedChunk], assets: Path | None
) -> None:
    extractor = make_extractor(ALL, assets)
    alone = [extract(extractor, divided(chunk, 3, 11)) for chunk in chunks[:1]]
    again = extract(extractor, [piece for chunk in chunks for piece in divided(chunk, 7)])
    for (found, *_), expected in ((again, features[0]), (again[1:], features[1]), (alone[0], features[0])):
        assert isinstance(found, ClipFeatures)
        assert found.media == expected.media
        for name in ("face_to_frame", "mouth_to_frame"):
            np.testing.assert_array_equal(found.arrays[name], expected.arrays[name])


@pytest.mark.gpu
def test_on_a_gpu_crops_are_those_of_a_cpu(
    features: list[ClipFeatures], chunks: list[DecodedChunk], assets: Path | None
) -> None:
    found, again = (extract(make_extractor(ALL, assets, "cuda"), chunks)[0] for _ in range(2))
    assert isinstance(found, ClipFeatures)
    assert isinstance(again, ClipFeatures)
    assert found.media == again.media
    np.testing.assert_allclose(found.arrays["face_to_frame"], features[0].arrays["face_to_frame"], atol=0.5)
    for name in ("face", "mouth"):
        here, there = (decode_media(name, each.media[name], each.meta) for each in (found, features[0]))
        assert np.abs(here.astype(float) - there).mean() < 3


def test_a_clip_whose_crops_nobody_could_decode_is_rejected(
    chunks: list[DecodedChunk], assets: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MAX_VIDEO_BYTES", 1_000)
    (found,) = extract(make_extractor(ALL, assets), chunks[:1])
    assert isinstance(found, Reject)
    assert (found.reason, "1000 are allowed" in found.message) == ("too_large", True)


def published(folder: Path, found: ClipFeatures) -> RunFolder:
    shard = Shard("pretrain-000000", (found.clip,))
    record = {"config": {}, "plan_sha256": plan_sha256([shard]), "models": {}, "device_type": "cpu"}
    run = RunFolder.create(folder, record, (shard,))
    run.publish(shard, [found], {}, {})
    return run


def test_a_stream_gives_them_back_decoded_and_in_step(features: list[ClipFeatures], tmp_path: Path) -> None:
    found = features[0]
    run = published(tmp_path / "run", found)
    assert [problems for _, problems in run.check()] == [[]]
    fields = ("audio", "face", "mouth", "face_to_frame", "mel")
    (whole,) = ShardStream(run.path, Raw(fields=fields))
    (everything,) = ShardStream(run.path, "raw")
    assert everything.keys() >= {*fields, "lm68", "valid"}
    length = found.num_frames
    assert (whole["audio"].shape, whole["audio"].dtype) == ((640 * length,), np.float32)
    assert (whole["face"].shape, whole["face"].dtype) == ((length, 64, 64, 3), np.uint8)
    assert whole["mouth"].shape == (length, 96, 96)
    (late,) = ShardStream(run.path, Raw(fields=fields), offsets={found.clip.key: 2})
    np.testing.assert_array_equal(late["audio"], whole["audio"][1280:])
    np.testing.assert_array_equal(late["face"], whole["face"][:-2])
    (part,) = ShardStream(run.path, Raw(fields=fields), crop_frames=7)
    first = int(np.flatnonzero((whole["face_to_frame"] == part["face_to_frame"][0]).all((1, 2)))[0])
    np.testing.assert_array_equal(part["face"], whole["face"][first : first + 7])
    np.testing.assert_array_equal(part["audio"], whole["audio"][640 * first : 640 * (first + 7)])


def test_a_member_that_is_not_what_it_should_be_is_damage(features: list[ClipFeatures], tmp_path: Path) -> None:
    found = features[0]
    short = dataclasses.replace(found, media={**found.media, "mouth": features[1].media["mouth"]})
    run = published(tmp_path / "short", short)
    (_, problems), *_ = run.check()
    assert "mouth must be uint8 [T, 96, 96]" in problems[0]
    wrong = dataclasses.replace(found, media={**found.media, "audio": found.media["mouth"]})
    run = published(tmp_path / "wrong", wrong)
    with TarIndex(run.tar_path(run.shards[0])) as tar, pytest.raises(DamagedError, match=r"audio\.flac is damaged"):
        tar.read(0, ("audio",))
    clip: Clip = make_clip()
    with pytest.raises(ValueError, match="audio must be encoded"):
        encode_sample(ClipFeatures(clip, 1, {"audio": np.zeros(640, np.float32)}))
    with pytest.raises(ValueError, match="mel is not encoded"):
        ClipFeatures(clip, 1, {}, media={"mel": b""})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"store_face": 97}, "multiple of 4"),
        ({"store_face": 2048}, "2048"),
        ({"quality": 60}, r"0\.\.51"),
        ({"codec": "jpeg", "quality": 1}, r"2\.\.31"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MediaConfig(**given)  # type: ignore[arg-type]
