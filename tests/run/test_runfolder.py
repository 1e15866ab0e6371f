from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.record import differences, run_hash
from lrs3_loader.types import Shard
from support.factory import make_features, make_reject, make_shard

SHARDS = tuple(make_shard(f"test-{number:06d}", num_clips=3, first=3 * number) for number in range(3))


def record(shards: tuple[Shard, ...] = SHARDS, **config: Any) -> dict[str, Any]:
    return {"config": config, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}


def publish(folder: RunFolder, index: int, reject: str | None = None) -> None:
    shard = folder.shards[index]
    results = [make_features(clip) for clip in shard.clips]
    if reject is not None:
        results[1] = make_reject(shard.clips[1], reject)  # type: ignore[call-overload]
    folder.publish(shard, results, {}, {})


def test_a_run_is_found_again(tmp_path: Path) -> None:
    created = RunFolder.create(tmp_path / "run", record(), SHARDS)
    opened = RunFolder.open(tmp_path / "run")
    assert tuple(opened.shards) == tuple(created.shards) == SHARDS
    assert opened.run_hash == created.run_hash


def test_pending_shrinks_as_shards_are_published(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, record(), SHARDS)
    assert folder.pending() == [0, 1, 2]
    publish(folder, 1)
    assert folder.pending() == [0, 2]
    publish(folder, 0)
    publish(folder, 2, reject="no_sound")
    assert folder.pending() == []
    totals = folder.totals()
    assert (totals.num_samples, totals.num_frames, dict(totals.reasons)) == (8, 80, {"no_sound": 1})


def test_a_tar_without_ledger_or_of_another_size_is_pending(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, record(), SHARDS)
    for index in range(3):
        publish(folder, index)
    (folder.path / ledger_name(SHARDS[0].name)).unlink()
    os.truncate(folder.tar_path(SHARDS[1]), 1000)
    assert folder.pending() == [0, 1]
    folder.tar_path(SHARDS[2]).unlink()
    assert folder.pending() == [0, 1, 2]


def test_ledgers_of_another_config_do_not_count(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, record(layer=1), SHARDS)
    publish(folder, 0)
    other = RunFolder(tmp_path, record(layer=2), SHARDS)
    assert other.pending() == [0, 1, 2]


def test_rejects_can_be_chosen_by_reason(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, record(), SHARDS)
    publish(folder, 0, reject="no_face")
    publish(folder, 1, reject="no_sound")
    publish(folder, 2)
    assert folder.with_rejects() == [0, 1]
    assert folder.with_rejects(["no_sound"]) == [1]
    assert folder.with_rejects(["too_short"]) == []


def test_check_names_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, record(), SHARDS)
    publish(folder, 0)
    publish(folder, 1)
    data = bytearray(folder.tar_path(SHARDS[1]).read_bytes())
    data[1000] ^= 1
    folder.tar_path(SHARDS[1]).write_bytes(data)
    problems = {shard.name: found for shard, found in folder.check()}
    assert problems["test-000000"] == []
    assert any("sha256" in line for line in problems["test-000001"])
    assert problems["test-000002"] == ["test-000002 is not published yet: 3 clips to go"]


def test_scratch_is_cleared(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, record(), SHARDS)
    (tmp_path / "tmp/.left.tmp").write_text("half a shard")
    folder.clear_scratch()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["run.json", "manifest.jsonl"])
def test_damaged_run_files_are_named(tmp_path: Path, damage: str) -> None:
    RunFolder.create(tmp_path, record(), SHARDS)
    (tmp_path / damage).write_text("{")
    with pytest.raises(RunError, match=damage):
        RunFolder.open(tmp_path)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, record(), SHARDS)
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(RunError, match="was changed"):
        RunFolder.open(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunFolder.open(tmp_path)


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another --out"):
        RunFolder.create(tmp_path / "file", record(), SHARDS)


def test_differences_are_listed_by_name() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    new = {"a": {"b": 2, "c": [1, 2]}, "e": "x"}
    assert differences(old, new) == ["a.b: 1 -> 2", 'e: null -> "x"']
    assert differences(old, json.loads(json.dumps(old))) == []


def test_run_hash_ignores_software_but_not_models() -> None:
    base = record()
    assert run_hash({**base, "software": {"torch": "2"}}) == run_hash(base)
    assert run_hash({**base, "models": {"speech": "other"}}) != run_hash(base)


def test_stray_and_damaged_ledgers_are_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder.create(tmp_path, record(), SHARDS)
    for shard in SHARDS:
        folder.publish(shard, map(make_features, shard.clips), {}, {})
    whole = folder.totals()
    first, second = (tmp_path / ledger_name(shard.name) for shard in SHARDS[:2])
    (tmp_path / "ledger" / "other-000009.json").write_bytes(first.read_bytes())
    (tmp_path / "ledger" / "notes.json").write_text("{")
    assert folder.totals() == whole
    assert sorted(folder.ledger_errors) == [
        f"{tmp_path}/ledger/notes.json is of no shard of this run; it is ignored",
        f"{tmp_path}/ledger/other-000009.json is of no shard of this run; it is ignored",
    ]
    second.write_bytes(first.read_bytes())
    first.write_text('{"num_bytes": 1e400}')
    with caplog.at_level("WARNING", logger="lrs3_loader"):
        assert folder.pending() == [0, 1]
    assert caplog.text.count("is not a ledger") == 2
    assert [bool(problems) for _, problems in folder.check()][:2] == [True, True]
    for shard in SHARDS[:2]:
        folder.publish(shard, map(make_features, shard.clips), {}, {})
    assert folder.totals() == whole
    assert [problems for _, problems in folder.check()] == [[] for _ in SHARDS]
