"""Smaller runs, and every command that chooses clips, against the table of the run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrs3_loader import ShardStream
from lrs3_loader.commands import bundle, export, report, select
from lrs3_loader.commands import filter as filter_command
from lrs3_loader.errors import RunError
from lrs3_loader.interop.geneface.indexed import IndexedReader
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.selection.expression import Expression
from lrs3_loader.selection.smaller_run import filter_run
from support.run_factory import begin_run, make_run

LENGTHS = [[40, 60, 0, 45], [50, 41], [55, 70, 35]]
WHERE = "face_size_px > 100 and num_frames >= 40"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    keys = [clip.key for shard in begin_run(tmp_path / "plan", LENGTHS).shards for clip in shard.clips]
    quality = {key: {"face_size_px": 50.0 * number} for number, key in enumerate(keys)}
    return make_run(tmp_path / "run", LENGTHS, quality=quality)


def chosen(run: RunFolder, where: str = WHERE) -> list[str]:
    table = run.figures()
    return [str(key) for key in table.columns["key"][Expression(where).chooses(table.columns, len(table))]]


def samples(path: Path) -> dict[str, dict[str, Any]]:
    return {sample["__key__"]: sample for sample in ShardStream(path, "raw", shuffle=False, rank=0, world_size=1)}


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file() and ".tar" in file.name}


def test_a_smaller_run_is_a_run_of_the_chosen_clips(run: RunFolder, tmp_path: Path, capsys: Any) -> None:
    assert filter_command.main([str(run.path), "--where", WHERE, "--out", str(tmp_path / "small")]) == 0
    assert f"{len(chosen(run))} samples in 1 shard," in capsys.readouterr().out
    small = RunFolder.open(tmp_path / "small")
    assert all(problems == [] for _, problems in small.check())
    before, after = samples(run.path), samples(small.path)
    assert list(after) == chosen(run)
    for key, sample in after.items():
        assert sample["json"] == before[key]["json"]
        for name, array in before[key].items():
            if isinstance(array, np.ndarray):
                np.testing.assert_array_equal(sample[name], array)
    checksums = run.ledger(run.shards[1]).checksums_of(chosen(run)[1])
    assert small.ledger(small.shards[0]).checksums_of(chosen(run)[1]) == checksums
    np.testing.assert_array_equal(
        small.figures().columns["face_size_px"], [before[key]["json"]["quality"]["face_size_px"] for key in after]
    )
    assert small.record["config"]["filter"] == {"where": WHERE, "run": run.run_hash}
    assert small.run_hash != run.run_hash


def test_shards_are_cut_to_the_size_of_the_sources(run: RunFolder, tmp_path: Path) -> None:
    run.record["config"]["plan"] = {"shard_frames": 100, "shard_clips": 9}
    (run.path / "run.json").write_text(json.dumps(run.record))
    for path in (run.path / "ledger").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"run": run.run_hash}))
    small, _ = filter_run(RunFolder.open(run.path), Expression("num_frames > 0"), tmp_path / "small")
    lengths = [[frames for _, frames in ledger.samples] for ledger in small.ledgers()]
    assert lengths == [[40, 60], [45, 50], [41, 55], [70], [35]] or all(sum(each) <= 100 for each in lengths)
    assert list(samples(small.path)) == list(samples(run.path))


def test_an_interrupted_filter_goes_on_and_gives_the_same_bytes(run: RunFolder, tmp_path: Path) -> None:
    whole, _ = filter_run(run, Expression(WHERE), tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(count: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        filter_run(run, Expression(WHERE), tmp_path / "again", stop)
    assert RunFolder.open(tmp_path / "again").pending() == [0]
    filter_run(run, Expression(WHERE), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(whole.path) != {}
    filter_run(run, Expression(WHERE), tmp_path / "again", stop)  # nothing is left to do
    with pytest.raises(RunError, match=r"holds another run.*filter.where"):
        filter_run(run, Expression("num_frames > 0"), tmp_path / "again")


def test_what_cannot_be_filtered_is_one_line(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no clip of .* is chosen by num_frames > 900"):
        filter_run(run, Expression("num_frames > 900"), tmp_path / "none")
    with pytest.raises(RunError, match="there is no figure qqq"):
        filter_run(run, Expression("qqq > 1"), tmp_path / "none")
    tar = run.tar_path(run.shards[0])
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(RunError, match="is damaged"):
        filter_run(run, Expression("num_frames > 0"), tmp_path / "damaged")
    run.unpublish(run.shards[0])
    with pytest.raises(RunError, match=r"1 of 3 shards of .* are still to be extracted"):
        filter_run(run, Expression(WHERE), tmp_path / "none")


def test_select_writes_keys_and_tables(run: RunFolder, tmp_path: Path, capsys: Any) -> None:
    words = ["--where", WHERE, "--out", str(tmp_path / "keys.txt"), "--csv", str(tmp_path / "table.csv")]
    assert select.main([str(run.path), *words]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "keys.txt").read_text().splitlines() == chosen(run)
    with open(tmp_path / "table.csv", newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == chosen(run)
    assert f"{len(chosen(run))} of 8 clips" in printed
    assert "face_size_px > 100" in printed
    assert "num_frames >= 40" in printed
    with pytest.raises(RunError, match=r"face_share_mean was not measured in .*run"):
        select.main([str(run.path), "--preset", "talkvid"])
    with pytest.raises(RunError, match=r"--where: .* is a number, not a condition"):
        select.main([str(run.path), "--where", "face_size_px"])
    assert select.main([str(run.path)]) == 0
    assert "8 of 8 clips" in capsys.readouterr().out
    assert select.main([str(run.path), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    lengths = run.figures().columns["num_frames"].tolist()
    assert (found["clips"], found["seconds"], found["without_figures"]) == (8, sum(lengths) / 25, 0)
    assert found["chosen"] == len(chosen(run))
    assert [step["condition"] for step in found["conditions"]] == ["face_size_px > 100", "num_frames >= 40"]
    assert found["conditions"][-1]["num_left"] == found["chosen"]
    assert select.main([str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conditions"] == []


def test_older_runs_are_said_to_have_no_figures(tmp_path: Path, capsys: Any) -> None:
    old = make_run(tmp_path / "old", LENGTHS)
    assert select.main([str(old.path), "--where", "num_frames > 40"]) == 0
    assert f"note: 8 of 8 clips of {old.path} have no figures" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"no figures in their ledgers.*--add-figures"):
        select.main([str(old.path), "--where", "face_size_px > 40"])


def test_the_same_condition_in_every_command(run: RunFolder, tmp_path: Path, capsys: Any) -> None:
    words = [str(run.path), "--where", WHERE]
    assert export.main(["stats", *words, "--out", str(tmp_path / "some.json")]) == 0
    assert json.loads((tmp_path / "some.json").read_text())["num_samples"] == len(chosen(run))
    options = ["--where", WHERE, "--val-fraction", "0.5", "--no-flip-lm5"]
    assert export.main(["geneface", str(run.path), str(tmp_path / "set"), *options]) == 0
    exported = []
    for name in ("train", "val"):
        with IndexedReader(tmp_path / "set" / name) as items:
            exported += [items.item(i)["item_id"] for i in range(len(items))]
    assert sorted(exported) == sorted("_".join(key.split("/")[1:]) for key in chosen(run))
    assert bundle.main(["pack", *words, "--to", str(tmp_path / "parts"), "--name", "small"]) == 0
    assert [path.name for path in (tmp_path / "parts").iterdir() if path.name.startswith(".")] == []
    parts = [str(path) for path in sorted((tmp_path / "parts").glob("*.part_*"))]
    assert bundle.main(["unpack", *parts, "--out", str(tmp_path / "unpacked")]) == 0
    assert list(samples(tmp_path / "unpacked")) == chosen(run)
    assert report.main([*words, "--page", str(tmp_path / "page.html"), "--gallery", "0"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "face_size_px &gt; 100" in page
    capsys.readouterr()
