"""Means and deviations of a run, against numpy over everything at once."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream.stats import (
    Moments,
    RunStats,
    compute_stats,
    describe_stats,
    write_stats,
)
from support.run_factory import begin_run, make_run, publish

pytestmark = pytest.mark.smoke

LENGTHS = [[12, 30, 7], [9, 40], [25, 6, 14]]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", LENGTHS)


def assert_close(one: RunStats, other: RunStats) -> None:
    assert (one.num_samples, one.num_frames) == (other.num_samples, other.num_frames)
    assert one.fields.keys() == other.fields.keys()
    for name, moments in one.fields.items():
        assert moments.count == other.fields[name].count
        np.testing.assert_allclose(moments.mean, other.fields[name].mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moments.deviation, other.fields[name].deviation, rtol=1e-9, atol=1e-12)


def test_figures_equal_those_of_all_rows_at_once(run: RunFolder) -> None:
    path, stats = write_stats(run.path)
    assert path == run.path / "stats.json"
    samples = list(ShardStream(run.path, "raw"))
    assert (stats.num_samples, stats.num_frames) == (len(samples), sum(map(sum, LENGTHS)))
    assert "valid" not in stats.fields
    for name in ("mel", "hubert", "idexp_lm3d", "exp", "pose", "lm68", "blendshapes"):
        rows = np.concatenate([sample[name].reshape(len(sample[name]), -1) for sample in samples]).astype(np.float64)
        assert stats.fields[name].count == len(rows)
        np.testing.assert_allclose(stats.fields[name].mean, rows.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(stats.fields[name].deviation, rows.std(0), rtol=1e-9, atol=1e-12)
    identities = np.stack([sample["id"] for sample in samples]).astype(np.float64)
    np.testing.assert_allclose(stats.fields["id"].deviation, identities.std(0), rtol=1e-9)


def test_only_voiced_rows_and_found_faces_count(run: RunFolder) -> None:
    samples = list(ShardStream(run.path, "raw"))
    for sample in samples:
        sample["valid"][::2] = False
        sample["idexp_lm3d"][::2] = 1e9
    stats = compute_stats(samples)
    pitch = np.concatenate([sample["f0"] for sample in samples])
    assert (pitch == 0).any()
    assert stats.fields["f0"].count == (pitch > 0).sum()
    np.testing.assert_allclose(stats.fields["f0"].mean, pitch[pitch > 0].mean(dtype=np.float64))
    assert stats.fields["idexp_lm3d"].mean.max() < 1e3
    assert stats.fields["mel"].count == 2 * stats.num_frames


def test_figures_of_parts_merge_into_those_of_the_whole(run: RunFolder) -> None:
    parts = [compute_stats(ShardStream(run.tar_path(shard), "raw")) for shard in run.shards]
    assert_close(functools.reduce(RunStats.merge, parts), compute_stats(ShardStream(run.path, "raw")))
    assert_close(RunStats().merge(parts[0]), parts[0])


def test_the_file_holds_every_figure(run: RunFolder) -> None:
    path, stats = write_stats(run.path)
    plain = json.loads(path.read_text())
    assert (plain["version"], plain["num_samples"], plain["num_frames"]) == (2, 8, 143)
    assert plain["fields"].keys() == stats.fields.keys()
    for name, moments in stats.fields.items():
        assert plain["fields"][name]["count"] == moments.count
        np.testing.assert_array_equal(plain["fields"][name]["mean"], moments.mean)
        np.testing.assert_array_equal(plain["fields"][name]["deviation"], moments.deviation)
        assert plain["fields"][name]["unit"]
    assert "8 samples, 143 frames" in describe_stats(stats)
    assert "rows of 80" in describe_stats(stats)


def test_digits_survive_a_mean_far_from_zero() -> None:
    rows = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    merged = functools.reduce(Moments.merge, [Moments.of(part) for part in np.split(rows, 50)])
    np.testing.assert_allclose(merged.deviation, rows.std(0), rtol=1e-6)


def test_what_cannot_be_used(run: RunFolder, tmp_path: Path) -> None:
    wide = RunStats(1, 1, {"hubert": Moments.of(np.ones((2, 3)))})
    with pytest.raises(ValueError, match="hubert has 3 numbers per row here and 8 there"):
        wide.merge(compute_stats(ShardStream(run.path, "raw")))
    unfinished = begin_run(tmp_path / "unfinished", LENGTHS)
    publish(unfinished, 0, LENGTHS[0])
    with pytest.raises(RunError, match="not finished"):
        write_stats(unfinished.path)
    assert write_stats(unfinished.path, partial=True)[1].num_samples == 3
