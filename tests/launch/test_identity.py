"""What makes a launch the same run: clips, models and settings, wherever they lie."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from lrs3_loader.audio.checkpoint import demo_checkpoint
from lrs3_loader.audio.hubert import SpeechEncoder
from lrs3_loader.config import CorpusConfig, PlanConfig, RunConfig, SpeechConfig, as_json, resolve
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import find_corpus
from lrs3_loader.errors import RunError
from lrs3_loader.launch.identity import adopt_names, check_compatible, find_new_clips, software
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("test/a/1", "test/a/2", "train/b/1"):
        path = tmp_path / f"corpus/{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    return tmp_path / "corpus"


def begin(out: Path, config: RunConfig, models: dict[str, Any] | None = None) -> RunFolder:
    found = find_corpus(config.corpus)
    shards = make_plan(found.clips, PlanConfig(), found.root)
    record = {"config": as_json(config), "models": models or {}, "device_type": "cpu"}
    return RunFolder.create(out, {**record, "plan_sha256": plan_sha256(shards), "software": software()}, shards)


def test_a_corpus_may_move(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lrs3_loader")
    run = begin(tmp_path / "run", RunConfig(CorpusConfig(corpus)))
    find_new_clips(run, CorpusConfig(corpus), extend=False)
    assert caplog.messages == []
    corpus.rename(tmp_path / "elsewhere")
    find_new_clips(run, CorpusConfig(tmp_path / "elsewhere", layout="lrs3"), extend=False)
    assert caplog.messages == [f"the corpus has moved from {corpus} to {tmp_path / 'elsewhere'}"]


def test_another_corpus_is_refused_with_its_clips(corpus: Path, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", RunConfig(CorpusConfig(corpus)))
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    (other / "test/a/1.mp4").unlink()
    (other / "test/a/2.mp4").write_bytes(b"another video")
    for number in range(7):
        (other / f"train/b/{number}.mp4").write_bytes(b"video")
    with pytest.raises(RunError) as caught:
        find_new_clips(run, CorpusConfig(other), extend=False)
    assert str(caught.value).split("\n  ")[1:] == [
        "1 clip not there: test/a/1",
        "1 clip with another size or path: test/a/2",
        "6 clips not of the run: train/b/0, train/b/2, train/b/3, train/b/4, train/b/5, ...\n"
        "name the corpus that the run was begun with, or another --out to start a new run",
    ]


def test_settings_are_compared_and_shown_as_flags(corpus: Path, tmp_path: Path) -> None:
    before = resolve(RunConfig(CorpusConfig(corpus, layout="lrs3", splits=("test",))), "cpu")
    run = begin(tmp_path / "run", before)
    now = {"config": as_json(before), "models": {}, "device_type": "cpu"}
    check_compatible(run, now)
    now["config"]["corpus"] |= {"corpus": "/elsewhere", "layout": "auto"}
    now["config"]["face"]["face_model"] = "/models/ict.npz"
    now["config"]["speech"]["model"] = "../hubert"
    check_compatible(run, now)
    now["config"]["corpus"] |= {"layout": "folder", "splits": []}
    now["config"]["regression"]["checkpoint"] = "epoch_20.pth"
    now["config"]["speech"]["layer"] = 9
    now["device_type"] = "cuda"
    with pytest.raises(RunError) as caught:
        check_compatible(run, now)
    assert [line.strip() for line in str(caught.value).split("\n")[1:-1]] == [
        "--layout lrs3 -> folder",
        "--splits test -> (none)",
        "--hubert-layer (none) -> 9",
        "--deep3d (none) -> epoch_20.pth",
        "--device cpu -> cuda",
    ]
    assert "extract --resume" in str(caught.value)
    run.record["config"]["filter"] = {"where": "num_frames > 9"}
    with pytest.raises(RunError, match=r'filter \{"where": "num_frames > 9"\} -> \(none\)'):
        check_compatible(run, {"config": as_json(before), "models": {}, "device_type": "cpu"})


def test_a_speech_encoder_keeps_the_name_it_was_stored_under(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hubert"
    demo_checkpoint().model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    config = resolve(RunConfig(CorpusConfig(corpus)), "cpu")
    monkeypatch.chdir(tmp_path)
    first = encoder("hubert")
    run = begin(tmp_path / "run", config, {"speech": describe(first)})
    (tmp_path / "link").symlink_to(folder)
    for name in ("hubert", "./hubert", str(folder), "link"):
        assert describe(encoder(name)) == describe(first)
    shutil.copytree(folder, tmp_path / "copy")
    copy = encoder("copy")
    assert describe(copy) == describe(first) | {"model": "copy"}
    adopt_names(copy, run)
    assert describe(copy) == describe(first)
    with open(folder / "preprocessor_config.json", "a") as file:
        file.write("\n")
    changed = encoder(str(folder))
    adopt_names(changed, run)
    now = {"config": as_json(config), "models": {"speech": describe(changed)}, "device_type": "cpu"}
    with pytest.raises(RunError, match=r"--hubert: files\.preprocessor_config\.json"):
        check_compatible(run, now)


def encoder(name: str) -> Any:
    speech = SpeechEncoder.load(resolve(RunConfig(speech=SpeechConfig(model=name)), "cpu").speech, torch.device("cpu"))
    return SimpleNamespace(models=SimpleNamespace(speech=speech, speech_fields={"hubert": (speech, 0)}))


def describe(extractor: Any) -> dict[str, Any]:
    speech = extractor.models.speech
    return {**speech.description(), "files": dict(speech.files)}
