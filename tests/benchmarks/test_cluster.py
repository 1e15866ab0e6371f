"""Runs of many shards: what a launch reads, what it keeps, and that leases are shared fairly by many ranks."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks import cluster
from lrs3_loader.errors import RunError
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.run import ledger_index
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name
from lrs3_loader.run.manifest import Manifest, manifest_lines
from support.factory import make_shard

NUM_SHARDS = 40


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty shards that count as many."""
    monkeypatch.setattr(ledger_index, "SAVE_FROM", 10)
    cluster.make_large_run(tmp_path / "run", NUM_SHARDS, 3)
    return tmp_path / "run"


class Reads:
    """Counts the ledgers that are read."""

    def __init__(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
        self.names: list[str] = []
        read = folder.store.read_many

        def counted(names: list[str]) -> object:
            self.names += names
            return read(names)

        monkeypatch.setattr(folder.store, "read_many", counted)


def test_a_launch_that_finds_the_index_reads_no_ledger(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunFolder.open(large)
    expected = first.pending(), first.totals(), first.with_rejects(["no_face"])
    first.save_index()
    second = RunFolder.open(large)
    reads = Reads(second, monkeypatch)
    assert (second.pending(), second.totals(), second.with_rejects(["no_face"])) == expected
    assert expected[0] == [NUM_SHARDS - 1]
    assert expected[1].num_samples == 2 * (NUM_SHARDS - 1)
    assert reads.names == []


def test_only_ledgers_that_changed_are_read(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.open(large)
    run.pending()
    run.save_index()
    changed, gone = (run.path / ledger_name(run.shards[index].name) for index in (3, 5))
    plain = json.loads(changed.read_text())
    plain["rejects"][0][1] = "no_clue"  # as long as before: the size alone would not tell
    changed.write_text(json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    os.utime(changed, ns=(1, 1))
    gone.unlink()
    again = RunFolder.open(large)
    reads = Reads(again, monkeypatch)
    assert again.pending() == [5, NUM_SHARDS - 1]
    assert reads.names == [f"ledger/{run.shards[3].name}.json"]
    assert again.with_rejects(["no_clue"]) == [3]
    again.save_index()
    third = RunFolder.open(large)
    assert third.pending() == [5, NUM_SHARDS - 1]


@pytest.mark.parametrize("text", ["", "{}", '["a"]\n', "\x00\xff", '["a.json",1,"2","a","r",1,1,1,[[1]]]\n'])
def test_an_index_that_is_damaged_is_made_anew(large: Path, text: str) -> None:
    run = RunFolder.open(large)
    expected = run.totals()
    (large / "index.jsonl").write_text(text)
    again = RunFolder.open(large)
    assert again.totals() == expected
    again.save_index()
    assert RunFolder.open(large).totals() == expected


def test_an_index_is_never_believed_about_a_tar(large: Path) -> None:
    run = RunFolder.open(large)
    run.pending()
    run.save_index()
    os.truncate(run.tar_path(run.shards[7]), 10)
    assert RunFolder.open(large).pending() == [7, NUM_SHARDS - 1]


def test_small_runs_have_none_and_an_unchanged_one_is_left_alone(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.open(large)
    run.pending()
    run.save_index()
    before = (large / "index.jsonl").stat().st_mtime_ns
    again = RunFolder.open(large)
    again.pending()
    again.save_index()
    assert (large / "index.jsonl").stat().st_mtime_ns == before
    monkeypatch.setattr(ledger_index, "SAVE_FROM", 1000)
    (large / "index.jsonl").unlink()
    again = RunFolder.open(large)
    again.pending()
    again.save_index()
    assert not (large / "index.jsonl").exists()


def test_a_manifest_is_the_plan_it_was_made_of() -> None:
    shards = tuple(make_shard(f"test-{number:06d}", num_clips=number + 1, first=10 * number) for number in range(4))
    manifest = Manifest.of(shards)
    assert tuple(manifest) == shards
    assert manifest[1:3] == shards[1:3]
    assert manifest[-1] == shards[-1]
    assert manifest.names == tuple(shard.name for shard in shards)
    assert manifest.counts == (1, 2, 3, 4)
    assert manifest.num_clips == 10
    assert tuple(pickle.loads(pickle.dumps(manifest))) == shards
    assert len(Manifest(b"")) == 0
    with pytest.raises(IndexError):
        manifest[4]
    with pytest.raises(RunError, match="the manifest, byte 0: not a manifest line"):
        Manifest("".join(manifest_lines(shards)).encode().replace(b'"shard"', b'"shred"', 1))


def test_leases_of_many_ranks_are_shared_fairly() -> None:
    """Over 32 connections to a real store, in one process: ``tools/bench.py cluster`` takes several."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    server.set("go", "")
    WorkQueue(server, 0, 60).announce({"pending": [*range(700), *range(800, 1300)]})
    assert len(server.get("launch")) < 100
    drawn = list(cluster.draw_as(server.port, 60, list(range(60)))["drawn"].values())
    assert sorted(index for found in drawn for index in found) == [*range(700), *range(800, 1300)]
    assert {len(found) for found in drawn} == {20}
