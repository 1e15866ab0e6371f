"""Audio-video offsets in a new extraction: decided when it is begun, recorded, and undone when the audio is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader import demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import CorpusConfig, LaunchConfig, RunConfig, demo_defaults
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.errors import RunError
from lrs3_loader.launch.identity import check_offsets
from lrs3_loader.launch.prepare import prepare
from lrs3_loader.run.manifest import Manifest
from lrs3_loader.run.offsets import with_offsets
from lrs3_loader.types import Clip, ClipFeatures, ClipHead, DecodedChunk, Shard


def no_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_rows, np.float32), num_rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("corpus") / "demo"
    return demo.make_demo_corpus(where, num_speakers=1, clips_per_speaker=2, seconds=(0.8, 1.0)).folder


def head_of(corpus: Path, clip: Clip) -> ClipHead:
    found = ClipDataset(corpus, RunConfig().decode, no_pitch)[ChunkRequest(clip, 0)]
    assert isinstance(found, DecodedChunk)
    assert found.head is not None
    return found.head


@pytest.mark.parametrize("offset", [4, -3])
def test_audio_is_read_from_as_many_frames_later_on(corpus: Path, offset: int) -> None:
    clip = scan_corpus(CorpusConfig(corpus=corpus))[0]
    before, after = head_of(corpus, clip), head_of(corpus, dataclasses.replace(clip, audio_offset_frames=offset))
    assert before.waveform.abs().max() > 0.01
    moved = 640 * abs(offset)
    old, new = (before.waveform, after.waveform) if offset > 0 else (after.waveform, before.waveform)
    torch.testing.assert_close(new[: len(old) - moved], old[moved:], rtol=0, atol=1e-4)
    if offset < 0:
        assert after.source.num_missing_samples == moved  # there is no audio before the video begins
    assert before.transcript is not None
    assert after.transcript is not None
    for old_word, new_word in zip(before.transcript.words, after.transcript.words, strict=True):
        assert new_word[1] == pytest.approx(old_word[1] - offset / 25, abs=1e-3)
        assert new_word[0] == old_word[0]


def test_a_run_is_begun_with_offsets_and_keeps_them(corpus: Path, assets: Path | None, tmp_path: Path) -> None:
    key = scan_corpus(CorpusConfig(corpus=corpus))[0].key
    line = {"key": key, "offset_frames": 2, "confidence": 0.5, "num_windows": 9, "in_training": False}
    offsets = tmp_path / "sync.jsonl"
    offsets.write_text(json.dumps(line) + "\n")
    config = dataclasses.replace(demo_defaults(RunConfig()), corpus=CorpusConfig(corpus=corpus))
    launch = LaunchConfig(out=tmp_path / "run", offsets=offsets)
    cpu = torch.device("cpu")
    folder, extractor, pending = prepare(config, launch, Assets(assets), cpu)
    clips = [clip for shard in folder.shards for clip in shard.clips]
    assert {clip.key: clip.audio_offset_frames for clip in clips} == {
        clip.key: 2 if clip.key == key else None for clip in clips
    }
    assert '"audio_offset_frames":2' in (tmp_path / "run" / "manifest.jsonl").read_text()
    assert len(pending) == len(folder.shards)

    again, _, _ = prepare(config, dataclasses.replace(launch, offsets=None), Assets(assets), cpu)
    assert again.run_hash == folder.run_hash
    prepare(config, launch, Assets(assets), cpu)
    with pytest.raises(RunError, match=r"begun with other offsets .*2 frames there, 0 now"):
        check_offsets(folder, {})

    (clip,) = (clip for clip in clips if clip.key == key)
    dataset = ClipDataset(corpus, config.decode, no_pitch)
    chunk = dataset[ChunkRequest(clip, 0)]
    (features,) = extractor.extract([chunk], {}, lambda **counts: None)
    assert isinstance(features, ClipFeatures)
    assert features.meta["audio_offset_frames"] == 2


def test_the_manifest_keeps_offsets_and_leaves_none_out() -> None:
    clip = Clip("all/a/1", "a/1.mp4", 10)
    plan = [Shard("all-000000", with_offsets([clip, dataclasses.replace(clip, key="all/a/2")], {"all/a/2": -3}))]
    assert list(Manifest.of(plan)) == plan
    assert [shard.clips[0].audio_offset_frames for shard in Manifest.of(plan)] == [None]
