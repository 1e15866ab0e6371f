"""Figures in ledgers, and the table of them, against what was published."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest

import lrs3_loader
from lrs3_loader.commands import verify
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger, join_figures, split_figures
from lrs3_loader.run.reader import open_run
from support.run_factory import make_run

LENGTHS = [[12, 30, 0], [9, 40]]
WITH = {
    "pretrain/speaker00/00000": {"face_size_px": 101.25, "converged": True, "yaw_p95": -3.5},
    "pretrain/speaker00/00002": {"face_size_px": 80, "num_scene_cuts": 1, "scene_cuts": [[3, 14.5]]},
    "pretrain/speaker01/00001": {},
    "pretrain/speaker10/00003": {"face_size_px": 1e-5, "converged": False},
    "pretrain/speaker11/00004": {"face_size_px": 220.5, "yaw_p95": 12.0},
}


def change_ledger(run: RunFolder, number: int, **fields: object) -> None:
    path = run.path / "ledger" / f"pretrain-{number:06d}.json"
    plain = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))


def test_figures_are_in_the_ledgers_and_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS, quality=WITH)
    ledger = run.ledger(run.shards[0])
    assert ledger.figures_version == 1
    for name, text in ledger.figures.items():
        assert text.split(" ") == [
            str(float(WITH[key].get(name, "nan"))).replace(".0", "") for key, _ in ledger.samples
        ]
    table = lrs3_loader.open_run(tmp_path / "run").figures()
    assert len(table) == 4
    assert table.has_figures.all()
    assert table.missing == ""
    for row, key in enumerate(table.columns["key"]):
        split, speaker, utterance = key.split("/")
        assert (table.columns["split"][row], table.columns["speaker"][row], table.columns["utterance"][row]) == (
            split,
            speaker,
            utterance,
        )
        for name in ("face_size_px", "converged", "yaw_p95", "num_scene_cuts"):
            np.testing.assert_equal(table.columns[name][row], float(WITH[key].get(name, np.nan)))
    assert "scene_cuts" not in table.columns
    assert sorted(table.columns["num_frames"]) == [9, 12, 30, 40]
    assert table.seconds == pytest.approx((9 + 12 + 30 + 40) / 25)
    assert table.rows(table.columns["num_frames"] > 20).columns["shard"].tolist() == [
        "pretrain-000000",
        "pretrain-000001",
    ]


def test_pandas_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    run = make_run(tmp_path / "run", LENGTHS, quality=WITH)
    table = open_run(run.path).table()
    assert list(table.key) == list(run.figures().columns["key"])
    assert table.dtypes["num_frames"] == "int64"
    run.figures().write_csv(tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, table.to_dict("records"), strict=True):
        assert row["key"] == expected["key"]
        assert float(row["yaw_p95"] or "nan") == pytest.approx(expected["yaw_p95"], nan_ok=True)
    pytest.importorskip("pyarrow")
    run.figures().write_parquet(tmp_path / "a.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "a.parquet"), table, check_dtype=False)


def test_a_package_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = make_run(tmp_path / "run", LENGTHS).figures()
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(RunError, match=r"pandas.*lrs3_loader\[table\]"):
        figures.to_pandas()
    with pytest.raises(RunError, match=r"pyarrow.*lrs3_loader\[table\]"):
        figures.write_parquet(tmp_path / "x")


def test_ledgers_without_figures_are_read_and_can_be_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", LENGTHS, quality=WITH)
    before = run.figures()
    for number in range(2):
        change_ledger(run, number, figures=None, figures_version=None)
    old = open_run(run.path).figures()
    assert "face_size_px" not in old.columns
    assert old.columns["key"].tolist() == before.columns["key"].tolist()
    assert f"4 of 4 clips of {run.path} have no figures" in old.missing
    assert "verify RUN --add-figures" in old.missing
    assert verify.main([str(run.path), "--add-figures"]) == 0
    assert "figures were added to 2 ledgers" in capsys.readouterr().out
    after = open_run(run.path).figures()
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name], column)
    assert all(problems == [] for _, problems in run.check())
    assert verify.main([str(run.path), "--add-figures"]) == 0
    assert "figures were added to 0 ledgers" in capsys.readouterr().out


def test_offsets_are_columns(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS, quality=WITH)
    key = run.figures().columns["key"][2]
    lines = [{"key": key, "offset_frames": -3, "confidence": 0.5, "num_windows": 9, "in_training": False}]
    (run.path / "sync.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = run.figures().columns
    np.testing.assert_array_equal(found["sync_offset"], [np.nan, np.nan, -3, np.nan])
    np.testing.assert_array_equal(found["sync_confidence"], [np.nan, np.nan, 0.5, np.nan])


@pytest.mark.parametrize("text", ["1 x", "1 inf", "1 ", " 1"])
def test_damaged_figures_are_one_line(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run", LENGTHS, quality=WITH)
    change_ledger(run, 1, figures={"face_size_px": text})
    with pytest.raises(RunError, match=r"the ledger of pretrain-000001 is damaged \(face_size_px"):
        run.figures()


def test_figures_of_another_number_or_version_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS, quality=WITH)
    change_ledger(run, 1, figures={"face_size_px": "1 2 3"})
    with pytest.raises(RunError, match="not a number for each sample"):
        run.figures()
    change_ledger(run, 1, figures={"face_size_px": "1 2"}, figures_version=99)
    with pytest.raises(RunError, match="figures of version 99"):
        run.figures()


def test_texts_of_figures() -> None:
    samples = [{"a": 1, "b": 0.1}, {"b": -2.5e-07}, {"a": 3}]
    texts = join_figures(samples)
    assert texts == {"a": "1 nan 3", "b": "0.1 -2.5e-07 nan"}
    for name, text in texts.items():
        np.testing.assert_array_equal(split_figures(text), [sample.get(name, np.nan) for sample in samples])
    assert join_figures([]) == {}


def test_a_table_of_many_clips_is_there_at_once(tmp_path: Path) -> None:
    """The ledgers of 150,000 clips parse in a few seconds; here a tenth of them, with 65 figures each."""
    random = np.random.default_rng(0)
    names = [f"figure_{number}" for number in range(65)]
    data = []
    for number in range(260):
        keys = [f"pretrain/speaker{number}/{clip:05d}" for clip in range(58)]
        figures = [
            {name: float(f"{value:.5g}") for name, value in zip(names, random.normal(size=65), strict=True)}
            for _ in keys
        ]
        samples = tuple((key, 258) for key in keys)
        shard = f"pretrain-{number:06d}"
        ledger = Ledger(shard, "r", "0" * 64, 9, samples, (), {}, {}, figures=join_figures(figures), figures_version=1)
        data.append((shard, ledger.to_json().encode()))
    started = time.process_time()
    from lrs3_loader.run.figure_table import FigureTable

    table = FigureTable.of_ledgers(Ledger.parse(text, shard, shard) for shard, text in data)
    assert len(table) == 260 * 58
    assert time.process_time() - started < 3
