"""Streams that choose clips by their figures, and runs that may not be read together."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.selection.expression import Expression, ExpressionError
from support.run_factory import begin_run, make_run, publish

LENGTHS = [[12, 30, 0, 18], [9, 40], [25]]


def figures_of(run: RunFolder) -> dict[str, dict[str, Any]]:
    keys = [clip.key for shard in run.shards for clip in shard.clips]
    return {key: {"face_size_px": 50.0 * number, "yaw_p95": -5.0 * number} for number, key in enumerate(keys)}


def make(folder: Path, **fields: Any) -> RunFolder:
    plan = begin_run(folder.with_name(f"{folder.name}-plan"), LENGTHS)
    return make_run(folder, LENGTHS, quality=figures_of(plan), **fields)


def keys_of(stream: ShardStream) -> list[str]:
    return [sample["__key__"] for sample in stream]


def raw(run: Path | Sequence[Path], **options: Any) -> ShardStream:
    return ShardStream(run, "raw", shuffle=False, rank=0, world_size=1, **options)


def change_record(run: RunFolder, change: Any) -> None:
    """Change run.json, and the ledgers with it."""
    path = run.path / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    for ledger in (run.path / "ledger").glob("*.json"):
        plain = json.loads(ledger.read_text()) | {"run": RunFolder.open(run.path).run_hash}
        ledger.write_text(json.dumps(plain))


def test_a_stream_has_the_clips_that_the_table_chooses(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    table = run.figures()
    for text in ("face_size_px > 100", "abs(yaw_p95) < 12 or num_frames == 25", "split == 'pretrain'"):
        chosen = table.columns["key"][Expression(text).chooses(table.columns, len(table))].tolist()
        stream = raw(run.path, where=text)
        assert keys_of(stream) == chosen
        assert stream.num_filtered == len(table) - len(chosen)
    both = raw(run.path, where="face_size_px > 100", select=lambda key: key.endswith("5"), min_frames=10)
    assert keys_of(both) == [key for key in keys_of(raw(run.path, where="face_size_px > 100")) if key.endswith("5")]
    tar = run.path / "shards" / "pretrain-000001.tar"
    assert len(keys_of(raw(tar, where="num_frames > 9"))) == 1


def test_a_position_belongs_to_the_condition(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    options: dict[str, Any] = {"task": "syncnet", "batch_size": 1, "rank": 0, "world_size": 1}
    stream = ShardStream(run.path, where="face_size_px >= 0", **options)
    state = stream.state_dict(next(iter(stream)))
    again = ShardStream(run.path, where="face_size_px >= 0", **options)
    again.load_state_dict(state)
    with pytest.raises(RunError, match="where"):
        ShardStream(run.path, **options).load_state_dict(state)


def test_mistakes_are_said_when_the_stream_is_made(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(RunError, match="did you mean face_size_px"):
        raw(run.path, where="face_sise_px > 1")
    with pytest.raises(RunError, match="speech_fraction was not measured"):
        raw(run.path, where="speech_fraction > 1")
    with pytest.raises(ExpressionError, match="not a condition"):
        raw(run.path, where="face_size_px")
    with pytest.raises(RunError, match="none of the 6 clips"):
        raw(run.path, where="face_size_px > 1e6")
    old = make_run(tmp_path / "old", LENGTHS)
    with pytest.raises(RunError, match=r"6 of 6 clips of .*old have no figures.*--add-figures"):
        raw(old.path, where="face_size_px > 1")
    bare = tmp_path / "bare.tar"
    bare.write_bytes((run.path / "shards" / "pretrain-000000.tar").read_bytes())
    with pytest.raises(ValueError, match="where needs the figures in ledgers"):
        raw(bare, where="face_size_px > 1")


def test_offsets_choose_as_well(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    keys = keys_of(raw(run.path))
    with pytest.raises(RunError, match="verify RUN --sync"):
        raw(run.path, where="abs(sync_offset) <= 1")
    lines = [
        {"key": key, "offset_frames": n - 2, "confidence": 0.5, "in_training": False} for n, key in enumerate(keys)
    ]
    (run.path / "sync.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert keys_of(raw(run.path, where="abs(sync_offset) <= 1")) == keys[1:4]


def test_a_run_that_is_followed(tmp_path: Path) -> None:
    finished = make(tmp_path / "run")
    run = begin_run(tmp_path / "growing", LENGTHS)
    quality = figures_of(run)

    def write() -> None:
        for number, lengths in enumerate(LENGTHS):
            publish(run, number, lengths, quality)

    with pytest.raises(RunError, match="did you mean face_size_px"):
        raw(run.path, where="face_sise_px > 1", follow=True)
    writer = threading.Thread(target=write)
    writer.start()
    found = keys_of(raw(run.path, where="face_size_px > 100", follow=True, poll_seconds=0.05))
    writer.join()
    assert found == keys_of(raw(finished.path, where="face_size_px > 100"))


def test_runs_of_other_models_are_not_mixed(tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", split="test")
    assert len(keys_of(raw([one.path, two.path]))) == 12
    models = {
        "face_model": {"name": "ict", "sha256": "a", "licence": "MIT"},
        "speech": {"model": "/models/hubert", "sha256": "c", "transformers": "4.50.0"},
        "speech_detector": {"name": "energy"},
    }
    change_record(one, lambda record: record.update(models=models))
    other = {
        "face_model": {"name": "ict", "sha256": "a", "licence": "another"},
        "speech": {"model": "../hubert", "sha256": "c", "transformers": "5.24.0"},
        "speech_detector": {"name": "silero-vad"},
    }
    change_record(two, lambda record: record.update(models=other))
    assert len(keys_of(raw([one.path, two.path]))) == 12  # licences, places and detectors decide no feature
    change_record(two, lambda record: record["models"]["speech"].update(sha256="d"))
    with pytest.raises(RunError, match=r"models.speech.sha256: \"c\" -> \"d\""):
        raw([one.path, two.path])
    change_record(two, lambda record: record["models"]["speech"].update(sha256="c"))
    change_record(two, lambda record: record["config"].update(decode={"mel_like": "geneface"}))
    with pytest.raises(RunError, match=r"mel_like: \"librosa\" -> \"geneface\""):
        raw([one.path, two.path])
    change_record(two, lambda record: record["config"].update(decode={"mel_like": "librosa"}))
    change_record(two, lambda record: record["models"]["face_model"].update(name="bfm", sha256="b"))
    problem = (
        r"cannot be read as one stream: they differ in models.face_model.name: \"ict\" -> \"bfm\"; models.face_model"
    )
    with pytest.raises(RunError, match=problem):
        raw([one.path, two.path])
    with pytest.raises(RunError, match="cannot be read as one stream"):
        raw([one.path / "shards" / "pretrain-000000.tar", two.path])
    person: dict[str, Any] = {"task": "postnet", "batch_size": 2, "rank": 0, "world_size": 1}
    with pytest.raises(RunError, match="cannot be read as one stream"):
        ShardStream(one.path, person=two.path, **person)
    change_record(two, lambda record: record.update(models=models))
    change_record(two, lambda record: record["config"].update(regression={"idexp": "geneface"}))
    with pytest.raises(RunError, match=r"conventions.idexp_lm3d: \"fit\" -> \"geneface\""):
        raw([one.path, two.path])


def test_clips_that_come_twice_are_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    with pytest.raises(RunError, match=r"6 clips come twice, such as pretrain/speaker00/00000 of .*one.* and .*two"):
        raw([one.path, two.path])
    with pytest.raises(RunError, match="come twice"):
        raw([one.path, one.path])


def test_batches_hold_the_chosen_clips_only(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    stream = ShardStream(run.path, "audio2motion", batch_size=2, where="num_frames > 10", rank=0, world_size=1)
    keys = [key for batch in stream for key in batch["keys"]]
    assert sorted(keys) == sorted(keys_of(raw(run.path, where="num_frames > 10")))
