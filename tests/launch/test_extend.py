"""A run grows with its corpus: further shards, while what is published stays as it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lrs3_loader import ShardStream
from lrs3_loader.config import CorpusConfig, PlanConfig, RunConfig, as_json
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import find_corpus
from lrs3_loader.errors import RunError
from lrs3_loader.interop.bundle.bundle import pack_archive, unpack_archive
from lrs3_loader.launch.identity import find_new_clips, tell_changes
from lrs3_loader.launch.prepare import grow
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.selection.expression import Expression
from lrs3_loader.selection.smaller_run import filter_run
from support.run_factory import publish

PLAN = PlanConfig(shard_clips=2)


def put(corpus: Path, *names: str) -> None:
    for name in names:
        path = corpus / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    put(tmp_path / "corpus", "test/a/1", "test/a/3", "test/b/1", "train/b/1")
    return RunConfig(CorpusConfig(tmp_path / "corpus"), plan=PLAN)


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunFolder:
    found = find_corpus(config.corpus)
    shards = make_plan(found.clips, PLAN, found.root)
    record = {"config": as_json(config), "models": {}, "device_type": "cpu", "plan_sha256": plan_sha256(shards)}
    folder = RunFolder.create(tmp_path / "run", record, shards)
    publish_all(folder)
    return folder


def publish_all(folder: RunFolder) -> None:
    for index in folder.pending():
        publish(folder, index, [9] * len(folder.shards[index].clips))


def extend(folder: RunFolder, config: RunConfig) -> RunFolder:
    return grow(folder, find_new_clips(folder, config.corpus, extend=True), config)


def test_new_clips_get_shards_of_their_own(run: RunFolder, config: RunConfig, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*/*")}
    stream = ShardStream(run.path, "raw")
    put(tmp_path / "corpus", "test/a/2", "test/c/1", "test/c/2", "dev/a/1")
    grown = extend(run, config)
    assert [(shard.name, [clip.key for clip in shard.clips]) for shard in grown.shards] == [
        ("test-000000", ["test/a/1", "test/a/3"]),
        ("test-000001", ["test/b/1"]),
        ("train-000000", ["train/b/1"]),
        ("dev-000000", ["dev/a/1"]),
        ("test-000002", ["test/a/2", "test/c/1"]),
        ("test-000003", ["test/c/2"]),
    ]
    assert grown.run_hash == run.run_hash
    assert grown.pending() == [3, 4, 5]
    assert {path: path.read_bytes() for path in before} == before
    publish_all(grown)
    again = RunFolder.open(tmp_path / "run")
    assert again.pending() == []
    assert all(problems == [] for _, problems in again.check())
    assert len(list(ShardStream(run.path, "raw"))) == 8
    assert len(list(stream)) == 4  # it sees what it listed when it was opened
    assert find_new_clips(again, config.corpus, extend=True) == ()


def test_a_run_grows_again(run: RunFolder, config: RunConfig, tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / "corpus", f"train/z/{number}")
        run = extend(run, config)
        publish_all(run)
    assert run.shards.names[-3:] == ("train-000001", "train-000002", "train-000003")
    manifest = run.record["manifest"]["file"]
    assert manifest == "manifest.g3.jsonl"
    (tmp_path / "run" / manifest).write_text("")
    with pytest.raises(RunError, match=r"manifest\.g3\.jsonl was changed"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("name", ["../elsewhere", "manifest.g0.jsonl", "run.json"])
def test_a_manifest_has_a_manifest_s_name(run: RunFolder, name: str) -> None:
    record = run.record | {"manifest": {"file": name, "sha256": "0" * 64}}
    with run.store.write("run.json") as file:
        file.write(json.dumps(record).encode())
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        RunFolder.open(run.path)


def test_interrupted_before_it_has_grown_a_run_is_as_before(
    run: RunFolder, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "corpus", "test/z/1")
    kind = type(run.store)
    write = kind.write
    with monkeypatch.context() as patch:
        patch.setattr(kind, "write", lambda store, name: write(store, name) if "manifest" in name else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extend(run, config)
    assert len(RunFolder.open(run.path).shards) == 3
    put(tmp_path / "corpus", "test/z/2")
    assert len(extend(run, config).shards) == 4


def test_clips_that_are_gone_or_changed_are_said(
    run: RunFolder, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lrs3_loader")
    (tmp_path / "corpus/test/a/1.mp4").unlink()
    (tmp_path / "corpus/test/b/1.mp4").write_bytes(b"another")
    assert find_new_clips(run, config.corpus, extend=True) == ()
    changes = [
        "in the corpus now: 1 clip not there: test/a/1; what was published stays",
        "in the corpus now: 1 clip with another size or path: test/b/1; what was published stays",
    ]
    assert caplog.messages == changes
    caplog.clear()
    put(tmp_path / "corpus", "test/n/1", "test/n/2")
    tell_changes(run, config.corpus)
    news = "the corpus holds 2 clips that the run does not have (--extend adds them): test/n/1, test/n/2"
    assert caplog.messages == [news, *changes]
    caplog.clear()
    tell_changes(run, CorpusConfig(tmp_path / "nowhere"))
    assert caplog.messages == [f"the corpus is not compared with the run: no such corpus: {tmp_path / 'nowhere'}"]


@pytest.mark.parametrize("follow", [False, True])
def test_a_saved_position_in_a_run_that_has_grown_since_is_refused(
    run: RunFolder, config: RunConfig, tmp_path: Path, follow: bool
) -> None:
    stream = ShardStream(run.path, "raw", follow=follow)
    batches = iter(stream)
    next(batches)
    state = stream.state_dict()
    ShardStream(run.path, "raw", follow=follow).load_state_dict(state)
    put(tmp_path / "corpus", "test/z/1")
    publish_all(extend(run, config))
    with pytest.raises((RunError, ValueError), match=r"samples|manifest"):
        ShardStream(run.path, "raw", follow=follow).load_state_dict(state)


def test_a_grown_run_is_filtered(run: RunFolder, config: RunConfig, tmp_path: Path) -> None:
    put(tmp_path / "corpus", "test/a/2", "dev/a/1")
    grown = extend(run, config)
    publish_all(grown)
    smaller, _ = filter_run(grown, Expression("split != 'dev'"), tmp_path / "smaller")
    again = RunFolder.open(smaller.path)
    assert [[clip.key for clip in shard.clips] for shard in again.shards] == [
        ["test/a/1", "test/a/2"],
        ["test/a/3", "test/b/1"],
        ["train/b/1"],
    ]
    assert all(problems == [] for _, problems in again.check())


def test_a_grown_run_is_packed_and_unpacked(run: RunFolder, config: RunConfig, tmp_path: Path) -> None:
    put(tmp_path / "corpus", "test/z/1")
    publish_all(extend(run, config))
    manifest = pack_archive(tmp_path / "run", tmp_path / "parts", 1 << 20)
    unpack_archive([manifest], tmp_path / "unpacked")
    assert all(problems == [] for _, problems in RunFolder.open(tmp_path / "unpacked").check())
    assert len(list(ShardStream(tmp_path / "unpacked", "raw"))) == 5
