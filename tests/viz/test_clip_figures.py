"""The report's summary of the figures of all clips: against obvious ones, of odd tables, and on the page."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.selection.expression import Expression, parse_where
from lrs3_loader.selection.presets import PRESETS
from lrs3_loader.selection.thresholds import Threshold, thresholds
from lrs3_loader.selection.waterfall import waterfall
from lrs3_loader.viz.report.clip_figures import JUDGED, find_extremes, summarize
from support.report_page import report, words
from support.run_factory import make_run

pytestmark = pytest.mark.smoke


def made_table(num_clips: int, **columns: np.ndarray) -> FigureTable:
    """Clips of 100 frames; the speaker of clip n is n modulo 7, its split n modulo 2."""
    numbers = range(num_clips)
    texts = {
        "key": [f"{('pretrain', 'test')[n % 2]}/s{n % 7}/{n:06d}" for n in numbers],
        "split": [("pretrain", "test")[n % 2] for n in numbers],
        "speaker": [f"s{n % 7}" for n in numbers],
        "utterance": [f"{n:06d}" for n in numbers],
        "shard": ["pretrain-000000"] * num_clips,
    }
    fixed = {"num_frames": np.full(num_clips, 100), "duration_seconds": np.full(num_clips, 4.0)}
    plain = {name: np.array(column, object) for name, column in texts.items()}
    return FigureTable({**plain, **fixed, **columns}, np.full(num_clips, bool(columns)))


def test_distributions_equal_numpys() -> None:
    random = np.random.default_rng(0)
    values = random.normal(20, 5, 3000)
    values[:100] = np.nan
    found = summarize(
        made_table(3000, off_axis_mean=values, num_scene_cuts=np.arange(3000) % 3.0, converged=np.ones(3000))
    )
    shown = {each.name: each for group in found.groups for each in [*group.varied, *group.constant]}
    assert list(shown) == ["converged", "off_axis_mean", "num_scene_cuts"]
    yaw = shown["off_axis_mean"]
    assert (yaw.num_known, yaw.unit) == (2900, "degrees")
    np.testing.assert_allclose((yaw.low, yaw.median, yaw.high), np.nanpercentile(values, (5, 50, 95)))
    assert yaw.histogram is not None
    low, width, counts = yaw.histogram.bars(36, (-np.inf, np.inf))
    assert 15 <= len(counts) <= 37
    edges = low + width * np.arange(1, len(counts))
    np.testing.assert_array_equal(counts[1:-1], np.histogram(values[100:], edges)[0])
    assert [str(bound) for _, bound in yaw.bounds] == ["off_axis_mean ≤ 54"]
    cuts = shown["num_scene_cuts"].histogram
    assert cuts is not None
    assert cuts.step == 1
    assert shown["converged"].histogram is None


def test_values_of_any_scale_have_a_histogram() -> None:
    for values in (
        np.array([0.0, 1e-9]),
        np.array([0.0] * 999 + [5.0]),
        np.array([1e9, -1e9]),
        np.array([7.0, 7.0 + 1e-12]),
    ):
        (group,) = summarize(made_table(len(values), relative_error=values)).groups
        (found,) = group.varied
        assert found.histogram is not None
        assert found.histogram.total == len(values)
        assert found.histogram.bars(36, (-np.inf, np.inf))[2].sum() == len(values)


def test_presets_take_what_the_waterfall_takes() -> None:
    random = np.random.default_rng(1)
    names = {
        name for preset in PRESETS.values() for condition in preset.conditions for name in Expression(condition).names
    }
    table = made_table(500, **{name: random.normal(30, 30, 500) for name in sorted(names - {"sync_offset"})})
    rules = {rule.name: rule for rule in summarize(table).rules}
    assert rules.keys() == PRESETS.keys()
    talkvid = parse_where([PRESETS["talkvid"].where])
    assert talkvid is not None
    assert rules["talkvid"].steps == waterfall(table, talkvid)[1]
    assert rules["talkvid"].left_out == []
    assert rules["latentsync"].left_out == [("abs(sync_offset) <= 6", "sync_offset was not measured")]
    assert len(rules["latentsync"].steps) == 3


def test_splits_and_speakers_have_their_clips_and_medians() -> None:
    values = np.arange(50.0)
    values[3::7] = np.nan
    found = summarize(made_table(50, audio_snr_db=values))
    assert [(part.name, part.num_clips, part.seconds) for part in found.splits] == [
        ("pretrain", 25, 100),
        ("test", 25, 100),
    ]
    assert (found.num_speakers, len(found.speakers)) == (7, 7)
    assert found.speakers[0].name == "s0"  # 8 clips, the others 7
    assert found.speakers[0].medians == [np.median(np.arange(0, 50, 7))]
    assert np.isnan(found.speakers[3].medians[0])
    assert found.compared == ["audio_snr_db"]


def test_the_worst_and_best_clips_are_those_at_the_ends() -> None:
    values = np.random.default_rng(2).permutation(np.arange(40.0))
    values = np.where(values == 7, np.nan, values)
    table = made_table(40, relative_error=values, audio_snr_db=values, face_sharpness=np.full(40, 3.0))
    found = {name: [(values[row], kind) for row, kind in rows] for name, _, rows in find_extremes(table)}
    assert found == {
        "relative_error": [(39, "worst"), (38, "worst"), (0, "best"), (1, "best")],
        "audio_snr_db": [(0, "worst"), (1, "worst"), (39, "best"), (38, "best")],
    }
    (one,) = find_extremes(made_table(3, relative_error=np.array([3.0, 1.0, 2.0])))
    assert one[2] == [(0, "worst"), (1, "best")]
    assert find_extremes(made_table(1, relative_error=np.ones(1))) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yaw_p95 < 40", [Threshold("yaw_p95", "<", 40)]),
        (
            "abs(yaw_p95) <= 40 and 3 > audio_snr_db",
            [Threshold("yaw_p95", "≤", 40, True), Threshold("audio_snr_db", "<", 3)],
        ),
        ("-30 < yaw_p50 < 60 / 2", [Threshold("yaw_p50", ">", -30), Threshold("yaw_p50", "<", 30)]),
        ("sqrt(face_share_mean) >= 0.5", [Threshold("face_share_mean", "≥", 0.25)]),
        ("source_width == source_height and split != 'test' and not yaw_p50 > 3", []),
        ("yaw_p50 > 1 / 0 or yaw_p50 in (1, 2)", []),
        ("yaw_p50 > 1 / 0 and log10(audio_bandwidth_hz) > 3 and min(yaw_p50, 2) > 1", []),
    ],
)
def test_bounds_of_conditions(text: str, expected: list[Threshold]) -> None:
    assert thresholds(Expression(text)) == expected


def test_a_bound_lies_where_the_condition_changes() -> None:
    """Of every preset, tried with the condition itself on either side of the place."""
    for preset in PRESETS.values():
        for condition in map(Expression, preset.conditions):
            for bound in thresholds(condition):
                for place in bound.places:
                    around = np.array([place - 1e-6, place, place + 1e-6])
                    assert 0 < condition.chooses({bound.figure: around}, 3).sum() < 3


QUALITY = {
    key: {"relative_error": 0.01 * (n + 1), "yaw_p95": 10.0 * n, "face_score": 1.0, "num_scene_cuts": n % 2}
    for n, key in enumerate(
        ["pretrain/speaker00/00000", "pretrain/speaker00/00002", "pretrain/speaker01/00001", "pretrain/speaker10/00003"]
    )
}


def test_the_page_shows_figures_presets_speakers_and_extremes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[12, 30, 20], [9]], quality=QUALITY)
    page, findings = report(run)
    text = words(page)
    for part in (
        "Figures of the clips",
        "yaw_p95 (degrees)",
        "hallo < 30",
        "The same in all clips that have it: face_score 1",
        "Presets",
        "Left out: face_side_min_px >= 256",
    ):
        assert part in text, part
    assert 'class="mark"' in page
    assert "worst: 0.04" in text
    assert "best: 0.01" in text
    assert findings.extremes[0].picks[0].key == "pretrain/speaker10/00003"
    assert "3 speakers" in text
    chosen = words(report(run, where=Expression("num_scene_cuts == 0"))[0])
    assert re.search(r"num_scene_cuts == 0 2 [\d.]+ s 2 2", chosen)
    assert "Of 2 clips, from the ledgers" in chosen
    assert "Of all chosen clips" in chosen
    assert "worst" not in words(report(run, gallery=0)[0])


def test_a_run_without_figures_says_so(tmp_path: Path) -> None:
    page, findings = report(make_run(tmp_path / "run", [[12, 30]]))
    text = words(page)
    assert "2 of 2 clips" in text
    assert "have no figures in their ledgers" in text
    assert "This run has no figures" in text
    assert "Presets" not in text
    assert findings.damaged == []


def test_damaged_figures_do_not_stop_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[12, 30]], quality=QUALITY)
    path = run.path / "ledger" / "pretrain-000000.json"
    path.write_text(path.read_text().replace('"yaw_p95": "', '"yaw_p95": "x'))
    page, findings = report(run)
    assert len(findings.damaged) == 1
    assert "yaw_p95" in words(page)
    assert "Figures of the clips" not in words(page)
    with pytest.raises(RunError, match="yaw_p95"):
        report(run, where=Expression("yaw_p95 > 3"))


def test_frames_are_drawn_only_where_they_are_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[12, 30, 20], [9]], quality=QUALITY)
    asked: list[tuple[str, int, int]] = []

    def read_frame(clip: object, num_frames: int, index: int) -> np.ndarray:
        asked.append((clip.key, num_frames, index))  # type: ignore[attr-defined]
        if len(asked) > 3:
            raise RunError("the corpus is gone")
        return np.full((224, 224, 3), 99, np.uint8)

    page, _ = report(run, read_frame=read_frame)
    assert all(index < num_frames for _, num_frames, index in asked)
    assert page.count("data:image/jpeg") == 3
    assert page.count("No frames of some clips: the corpus is gone") == 1
    assert "Drawn over the frames" in page
    assert "data:image/jpeg" not in report(run)[0]


def test_a_table_of_150000_clips_is_summarized_in_seconds() -> None:
    """A tenth of them here."""
    random = np.random.default_rng(0)
    columns = {name: random.normal(size=15_000) for name in [*JUDGED, *(f"figure_{n}" for n in range(60))]}
    table = made_table(15_000, **columns)
    started = time.process_time()
    found = summarize(table)
    assert time.process_time() - started < 3
    assert sum(len(group.varied) for group in found.groups) == len(columns)
    bars = [len(each.histogram.bars(36, (-9, 9))[2]) for g in found.groups for each in g.varied if each.histogram]
    assert max(bars) <= 37  # the size of the page does not grow with the number of clips
