"""Normalisation by a run's statistics, and the percentiles in them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import Raw, row_sample
from lrs3_loader.stream.row_sample import PERCENTILES, RowSample
from lrs3_loader.stream.stats import write_stats
from support.run_factory import make_run

LENGTHS = [[12, 30, 7], [9, 40], [25, 6, 14]]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", LENGTHS)


def rows_of(samples: list[dict], name: str) -> np.ndarray:
    return np.concatenate([sample[name].reshape(len(sample[name]), -1) for sample in samples]).astype(np.float64)


def test_normalised_rows_have_mean_0_and_deviation_1(run: RunFolder) -> None:
    write_stats(run.path)
    plain = list(ShardStream(run.path, "raw", shuffle=False))
    scaled = list(ShardStream(run.path, "raw", shuffle=False, normalize="stats"))
    for name in ("hubert", "mel", "idexp_lm3d", "exp", "blendshapes", "lm68"):
        rows = rows_of(scaled, name)
        assert scaled[0][name].dtype == np.float32
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(rows.std(0), 1, atol=1e-4)
        before = rows_of(plain, name)
        np.testing.assert_allclose(rows, (before - before.mean(0)) / before.std(0), atol=1e-3)
    for before, after in zip(plain, scaled, strict=True):
        for name in ("pose", "valid", "speaking"):
            np.testing.assert_array_equal(before[name], after[name])
        assert (after["f0"][before["f0"] == 0] == 0).all()
    pitch = np.concatenate([sample["f0"] for sample in plain])
    log = np.log(pitch[pitch > 0].astype(np.float64))
    found = np.concatenate([after["f0"][before["f0"] > 0] for before, after in zip(plain, scaled, strict=True)])
    np.testing.assert_allclose(found, (log - log.mean()) / log.std(), atol=1e-4)


def test_padding_is_zero_and_a_saved_position_knows_the_figures(run: RunFolder, tmp_path: Path) -> None:
    write_stats(run.path)
    stream = ShardStream(run.path, batch_size=3, normalize="stats")
    batch = next(iter(stream))
    for row, length in zip(batch["hubert"], batch["x_lengths"].tolist(), strict=True):
        assert (row[length:] == 0).all()
        assert row[:length].abs().sum() > 0
    state = stream.state_dict(batch)
    path, _ = write_stats(run.path, select=lambda key: "speaker0" in key, out=tmp_path / "some.json")
    ShardStream(run.path, batch_size=3, normalize=run.path / "stats.json").load_state_dict(state)
    for other in (None, path):
        with pytest.raises(RunError, match="normalize"):
            ShardStream(run.path, batch_size=3, normalize=other).load_state_dict(state)


def test_what_is_missing_or_wrong_is_said(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no .*stats\.json; write it with: lrs3-loader export stats"):
        ShardStream(run.path, "raw", normalize="stats")
    path, _ = write_stats(run.path)
    with pytest.raises(ValueError, match="takes one run"):
        ShardStream([run.path, run.path], "raw", normalize="stats")
    plain = json.loads(path.read_text())
    broken = tmp_path / "broken.json"
    del plain["fields"]["log_f0"]
    broken.write_text(json.dumps(plain))
    with pytest.raises(RunError, match="has no figures of log_f0"):
        ShardStream(run.path, batch_size=2, normalize=broken)
    plain["fields"]["hubert"] = {"mean": [0.0], "deviation": [1.0]}
    broken.write_text(json.dumps(plain))
    with pytest.raises(RunError, match="1 numbers per row of hubert, the samples 8"):
        list(ShardStream(run.path, Raw(fields=("hubert",)), normalize=broken))
    broken.write_text("[]")
    with pytest.raises(RunError, match=r"broken\.json is damaged"):
        ShardStream(run.path, "raw", normalize=broken)


def test_constant_numbers_become_zero(run: RunFolder) -> None:
    path, _ = write_stats(run.path)
    plain = json.loads(path.read_text())
    (sample,) = list(ShardStream(run.path, Raw(fields=("hubert",)), shuffle=False))[:1]
    plain["fields"]["hubert"]["mean"][1] = float(sample["hubert"][0, 1])
    plain["fields"]["hubert"]["deviation"][1] = 0.0
    path.write_text(json.dumps(plain))
    scaled = next(iter(ShardStream(run.path, Raw(fields=("hubert",)), shuffle=False, normalize="stats")))
    assert scaled["hubert"][0, 1] == 0
    assert np.isfinite(scaled["hubert"]).all()


def test_percentiles_are_those_of_all_rows_where_there_are_few(run: RunFolder) -> None:
    path, _ = write_stats(run.path)
    fields = json.loads(path.read_text())["fields"]
    samples = list(ShardStream(run.path, "raw"))
    for name in ("mel", "hubert", "pose"):
        expected = np.percentile(rows_of(samples, name), PERCENTILES, axis=0)
        found = [fields[name]["percentiles"][str(percent)] for percent in PERCENTILES]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert fields["log_f0"]["unit"].startswith("natural logarithm")


def test_rows_are_drawn_evenly_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sample, "NUM_ROWS", 100)
    clips = [np.arange(40 * number, 40 * (number + 1))[:, None] for number in range(50)]
    drawn = [RowSample.of(rows, f"clip{number}", "mel") for number, rows in enumerate(clips)]
    forward = functools.reduce(RowSample.merge, drawn)
    halves = functools.reduce(RowSample.merge, drawn[:25][::-1]).merge(functools.reduce(RowSample.merge, drawn[25:]))
    assert forward.rows().tolist() == halves.rows().tolist()
    assert len(forward.rows()) == len(set(forward.rows().ravel().tolist())) == 100
    assert abs(np.median(forward.rows()) - 1000) < 250
