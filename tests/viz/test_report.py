"""The report of a run: its figures against obvious ones, what it says of odd runs, and how it looks in a browser."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrs3_loader import demo
from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.shards import read_shard
from lrs3_loader.types import ClipFeatures, Shard
from lrs3_loader.viz.report import collect
from lrs3_loader.viz.report.collect import evenly_spread
from lrs3_loader.viz.report.figures import duration, throughput
from lrs3_loader.viz.report.measures import MEASURES, Histogram
from lrs3_loader.viz.report.timeline import ShardWork, TimeAxis, Timeline
from support.factory import make_clip, make_reject
from support.paths import REPO
from support.report_page import read_page, report, words
from support.run_factory import begin_run, full_features, make_run, publish

pytestmark = pytest.mark.smoke

LENGTHS = [[30, 0, 12, 25], [40, 50], [20, 20, 0]]
BEGIN = datetime(2026, 1, 31, 12, 0, tzinfo=timezone.utc)


def test_totals_rejects_and_provenance_are_told(tmp_path: Path) -> None:
    page, findings = report(make_run(tmp_path / "run", LENGTHS))
    text = words(page)
    assert "9 clips planned" in text
    assert "7 samples written" in text
    assert "2 rejects, 22.22%" in text
    assert "no_face 2" in text
    assert "3 of 10 frames with a face" in text
    assert "finished" in text
    assert findings.folder.run_hash[:12] in text
    assert "No meshes: no face model ict here" in text
    assert findings.num_measured == 7


def test_distributions_equal_those_of_all_values_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    _, findings = report(run)
    samples = [sample for shard in run.shards for sample in read_shard(run.tar_path(shard))]
    for measure in MEASURES:
        found = findings.histograms[measure.name]
        values = np.concatenate([measure.values(sample) for sample in samples])
        assert found.total == len(values)
        if len(values):
            assert abs(found.quantile(0.5) - np.quantile(values, 0.5, method="inverted_cdf")) <= measure.step / 2 + 1e-6
    assert findings.histograms["Yaw"].total == sum(map(sum, LENGTHS))
    voiced = np.concatenate([sample["f0"][sample["f0"] > 0] for sample in samples])
    assert findings.histograms["F0"].total == len(voiced)
    assert findings.histograms["Duration"].total == 7
    assert findings.histograms["Duration"].quantile(0.0) == pytest.approx(12 / 25, abs=0.1)


def test_frames_without_a_face_do_not_count(tmp_path: Path) -> None:
    shard = Shard("test-000000", (make_clip("test/a/1"),))
    run = RunFolder.create(tmp_path / "run", record([shard]), (shard,))
    features = full_features(shard.clips[0], 20)
    features.arrays["valid"][5:] = False
    features.arrays["pose"][5:] = 3.0
    run.publish(shard, [features], {}, {})
    _, findings = report(run)
    assert findings.histograms["Yaw"].total == 5
    assert findings.histograms["Valid fraction"].quantile(0.5) == 25
    assert [pick.reason for pick in findings.picks] == ["fewest frames with a face, turned furthest"]


def record(shards: list[Shard]) -> dict[str, object]:
    return {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}


def test_a_sample_of_the_clips_is_spread_over_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[10, 11, 12], [13, 14, 15], [16, 17, 18]])
    page, findings = report(run, sample=3)
    assert findings.num_measured == 3
    assert findings.histograms["Valid fraction"].total == 3
    assert findings.histograms["Duration"].total == 9
    assert findings.histograms["Face size"].total == 11 + 14 + 17
    assert "Of 3 of 9 clips, evenly spread" in words(page)
    assert evenly_spread(10, 4) == [1, 3, 6, 8]
    assert evenly_spread(3, 9) == [0, 1, 2]
    assert evenly_spread(0, 5) == []


def test_unfinished_and_empty_runs_say_so(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", LENGTHS)
    text = words(report(run)[0])
    assert "unfinished: 0 of 3 shards" in text
    assert "Distributions" not in text
    assert "Rejects" not in text
    publish(run, 1, LENGTHS[1])
    text = words(report(run)[0])
    assert "unfinished: 1 of 3 shards" in text
    assert "2 samples written" in text
    assert "None: every clip became a sample." in text


def test_a_run_of_rejects_alone(tmp_path: Path) -> None:
    text = words(report(make_run(tmp_path / "run", [[0, 0]]))[0])
    assert "2 rejects, 100.00%" in text
    assert "Gallery" not in text


def test_damaged_shards_are_named_and_the_others_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    path = run.tar_path(run.shards[1])
    data = bytearray(path.read_bytes())
    data[:512] = b"x" * 512
    path.write_bytes(data)
    page, findings = report(run)
    assert findings.num_measured == 5
    assert [str(path) in problem for problem in findings.damaged] == [True]
    assert f"Damaged: {path}" in words(page)


def test_names_and_messages_cannot_break_the_page(tmp_path: Path) -> None:
    shard = Shard("test-000000", (make_clip("test/<b>/&1"), make_clip("test/<b>/&2")))
    run = RunFolder.create(tmp_path / "<i>run", record([shard]), (shard,))
    reject = dataclasses.replace(make_reject(shard.clips[1]), message='<script>alert("\udcff")</script>')
    run.publish(shard, [full_features(shard.clips[0], 9), reject], {}, {})
    text = words(report(run)[0])
    assert "test/<b>/&1" in text
    assert '<script>alert("\\udcff")</script>' in text  # a name's stray byte, made printable


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    """Of models, clips, rejects, settings, software, devices and offsets."""
    attack = "'\"><script>alert(1)</script>{{ 7 * 7 }}<img onerror=alert(1)>"
    key = f"test/a{attack.replace('/', '')}/1"
    shard = Shard("test-000000", (make_clip(key), make_clip("test/b/2")))
    made = record([shard]) | {
        "config": {"corpus": {"corpus": attack}, attack: {attack: attack}},
        "models": {attack: dict.fromkeys(("name", "licence", "sha256", "layer", "width", "untrained"), attack)},
        "device_type": attack,
        "software": {attack: attack},
    }
    run = RunFolder.create(tmp_path / "'><script>", made, (shard,))
    features = full_features(shard.clips[0], 9)
    features.meta["quality"] = {"relative_error": 0.01}
    reject = dataclasses.replace(make_reject(shard.clips[1]), reason=attack, message=attack)
    now = BEGIN.isoformat()
    provenance = {"software": {attack: "1"}, "device": attack, "rank": 0, "started_at": now}
    run.publish(shard, [features, reject], {attack: 1.0}, provenance)
    offset = {"key": attack, "offset_frames": 1, "confidence": 0.5, "in_training": True}
    (run.path / "sync.jsonl").write_text(json.dumps(offset) + "\n")

    def no_model() -> FaceModel:
        raise RunError(attack)

    page, _ = report(run, load_model=no_model)
    text = words(page)
    assert text.count(attack) > 10
    assert f"No meshes: {attack}" in text
    assert key in text
    assert attack in page.replace("&#39;", "'").replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">")


def test_clips_in_which_nothing_is_heard_are_counted(tmp_path: Path) -> None:
    keys = [f"pretrain/speaker0{number % 2}/0000{number}" for number in range(3)]
    levels = dict(zip(keys, (0.0, 0.1, 0.00001), strict=True))
    quality = {key: {"sound_rms": level} for key, level in levels.items()}
    page, _ = report(make_run(tmp_path / "run", [[12, 12, 12]], quality=quality))
    assert "2 without any sound" in words(page)
    assert "without any sound" not in words(report(make_run(tmp_path / "other", [[12]]))[0])


def test_offsets_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    assert "Audio-video offsets" not in words(report(run)[0])
    lines = [
        {"key": f"test/a/{number}", "offset_frames": offset, "confidence": 0.5, "num_windows": 9, "in_training": False}
        for number, offset in enumerate([0, 1, 1, 1, 9, None])
    ]
    (run.path / "sync.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = words(report(run)[0])
    assert "median +1; 1 of 5 clips lie more than 3 frames from it; 1 too short to say" in text
    assert text.index("test/a/4") < text.index("test/a/0")
    (run.path / "sync.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match=r"sync\.jsonl is damaged"):
        report(run)


def work(rank: int, start: float, stop: float, num_frames: int = 100) -> ShardWork:
    return ShardWork(rank, "cpu", start, stop, num_frames, 4)


def test_pauses_between_launches_are_left_out_of_the_time_axis() -> None:
    axis = TimeAxis([work(0, 1000, 1100), work(1, 1040, 1200), work(0, 9000, 9100)])
    assert axis.spans == [(1000, 1200), (9000, 9100)]
    assert axis.seconds == 300
    assert [axis.place(time) for time in (900, 1000, 1150, 5000, 9050, 9999)] == [0, 0, 150, 200, 250, 300]
    assert axis.pauses() == [(200, 7800)]
    assert TimeAxis([work(0, 0, 100), work(0, 110, 200)]).spans == [(0, 200)]


def test_every_frame_is_in_the_throughput_of_its_rank() -> None:
    works = [work(0, 0, 100, 1000), work(1, 0, 50, 2000), work(1, 60, 100, 400), work(0, 100, 130, 0)]
    timeline = Timeline(works)
    width = timeline.axis.seconds / timeline.rates.shape[1]
    np.testing.assert_allclose(timeline.rates.sum(1) * width, [1000, 2400])
    assert timeline.rates[0].max() == pytest.approx(10)
    assert timeline.rates[1].max() == pytest.approx(40)
    assert timeline.busy[0].all()
    assert not timeline.busy[1].all()
    first, second = timeline.ranks
    assert (first.num_shards, first.num_frames, first.busy_seconds) == (2, 1000, 130)
    assert (second.num_clips, second.busy_seconds) == (8, 90)


def test_ledgers_tell_the_throughput(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", LENGTHS)
    for index, row in enumerate(LENGTHS):
        publish(run, index, row)
        path = run.path / ledger_name(run.shards[index].name)
        plain = json.loads(path.read_text())
        start = BEGIN + timedelta(seconds=20 * index)
        plain["provenance"] |= {
            "rank": index % 2,
            "device": "cpu",
            "started_at": start.isoformat(),
            "finished_at": (start + timedelta(seconds=20)).isoformat(),
        }
        plain["timings"] = {"landmarks": 15.0, "fit": 5.0}
        path.write_text(json.dumps(plain))
    page, findings = report(run)
    text = words(page)
    assert findings.timeline is not None
    assert findings.timeline.axis.seconds == 60
    assert re.search(r"rank 0 cpu 2 7 107 40 s 3", text)
    assert re.search(r"rank 1 cpu 1 2 90 20 s 4", text)
    assert "landmarks 75.0%" in text


def test_a_histogram_keeps_every_value() -> None:
    values = np.random.default_rng(0).normal(10, 5, size=20_000)
    histogram = Histogram(0.1)
    for part in np.array_split(values, 7):
        histogram.add(part)
    histogram.add(np.array([np.nan, np.inf]))
    low, width, counts = histogram.bars(36, (-np.inf, np.inf))
    assert counts.sum() == histogram.total == len(values)
    assert len(counts) <= 37
    inner = counts[1:-1]
    edges = low + width * np.arange(1, len(counts))
    np.testing.assert_allclose(inner, np.histogram(values, edges)[0], atol=5)
    for share in (0.05, 0.5, 0.95):
        assert histogram.quantile(share) == pytest.approx(np.quantile(values, share), abs=0.06)


def test_few_values_get_bars_within_their_limits() -> None:
    histogram = Histogram(1.0)
    histogram.add(np.full(9, 100.0))
    low, width, counts = histogram.bars(36, (0, 100))
    assert (low + width * len(counts), counts[-1], counts.sum()) == (100.5, 9, 9)
    with pytest.raises(IndexError):
        Histogram(1.0).quantile(0.5)


@pytest.mark.parametrize(("seconds", "text"), [(3.25, "3.25 s"), (600, "10 min"), (7200, "2 h"), (200_000, "2 d 7 h")])
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "texts"),
    [
        (57, ["0 s", "20 s", "40 s"]),
        (260, ["0 s", "60 s", "2 min", "3 min", "4 min"]),
        (4 * 3600, ["0 s", "60 min", "2 h", "3 h", "4 h"]),
        (200_000, ["0 s", "12 h", "24 h", "36 h", "2 d 0 h"]),
    ],
)
def test_ticks_of_time_are_round(seconds: float, texts: list[str]) -> None:
    works = [work(0, 0, seconds / 2), work(0, seconds / 2, seconds)]
    ticks = throughput(Timeline(works))["ticks"]
    assert [text for _, text, _ in ticks] == texts
    assert [tick[0] for tick in ticks] == sorted(tick[0] for tick in ticks)


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two clips of the demo head with a face model to draw; nothing was rendered for it."""
    shard = Shard("pretrain-000000", tuple(make_clip(f"pretrain/DemoHead000/{number:05d}") for number in (1, 2)))
    models = {"landmarker": {"name": "face_landmarker_with_blendshapes", "licence": "Apache-2.0", "sha256": "5" * 64}}
    made = record([shard]) | {"models": models}
    run = RunFolder.create(tmp_path_factory.mktemp("talking") / "run", made, (shard,))
    run.publish(shard, [demo_features(clip, seed) for seed, clip in enumerate(shard.clips)], {}, {})
    return run


def demo_features(clip: object, seed: int) -> ClipFeatures:
    import torch

    model, features = demo.demo_head(), full_features(clip, 40, seed)  # type: ignore[arg-type]
    id, exp = torch.zeros(len(model.id_names)), torch.zeros(40, len(model.exp_names))
    exp[:, model.exp_names.index("jaw_open")] = torch.linspace(0, 1, 40)
    pose = torch.tensor([0.0, 0.1 * seed, 0.0, 0.0, -0.1, -2.0]).repeat(40, 1)
    points = project(model.landmarks(id, exp), pose, Camera.for_frame(224, 224))
    arrays = {"id": id.numpy(), "exp": exp.numpy(), "pose": pose.numpy(), "lm68": points.numpy()}
    arrays["mel"] = np.tile(np.linspace(0, -4, 80, dtype=np.float32), (80, 1))
    quality = {"relative_error": 0.01 * (seed + 1)}
    meta = {**features.meta, "source": {"height": 224, "width": 224}, "quality": quality}
    return dataclasses.replace(features, arrays={**features.arrays, **arrays}, meta=meta)


def test_the_gallery_draws_landmarks_mesh_and_audio(talking: RunFolder) -> None:
    page, findings = report(talking, load_model=demo.demo_head)
    assert [pick.reason for pick in findings.picks] == ["worst fit, turned furthest", ""]
    checker = read_page(page)
    assert len(checker.images) == 4 + 4  # two clips, and again as the worst and the best
    assert page.count('class="dot"') == page.count('class="fit"') == 4 * 68
    assert "frame 39" in " ".join(checker.text)  # the mouth opens to the end
    assert collect(talking, sample=None, num_picks=0, progress=lambda _: None).picks == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_shows_the_page_without_scrolling_sideways(talking: RunFolder, width: int, tmp_path: Path) -> None:
    """Something is drawn in every part of the image's height, and nothing sticks out on the right."""
    page, _ = report(talking, load_model=demo.demo_head)
    image = screenshot(page, width, tmp_path)
    paper = image[2, 2]
    assert paper.min() > 230  # the light dress
    differs = (np.abs(image.astype(int) - paper).max(2) > 12).any(1)
    bottom = np.flatnonzero(differs)[-1]
    bands = np.array_split(differs[:bottom], 12)
    assert all(band.any() for band in bands)
    assert not (np.abs(image[:, -8:].astype(int) - paper).max(2) > 12).any()
    blue = (image[..., 2].astype(int) - image[..., 0] > 80).sum()
    assert blue > 2000  # bars, meshes


def screenshot(page: str, width: int, folder: Path) -> np.ndarray:
    """[h, w, 3] u8 of the whole page in headless Chromium, at the given width of the window."""
    # Chromium's window is at least 500 wide: a frame of the width asked for stands for a narrow one.
    frame = f'<body style="margin:0"><iframe srcdoc="{page.replace("&", "&amp;").replace(chr(34), "&quot;")}" '
    frame += f'style="border:0;width:{width}px;height:3400px"></iframe>'
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    options += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]
    options += [f"--window-size={max(width, 500)},3400", f"--screenshot={folder / 'page.png'}"]
    subprocess.run(
        ["chromium", *options, (folder / "frame.html").as_uri()], check=True, capture_output=True, timeout=90
    )
    with Image.open(folder / "page.png") as image:
        return np.asarray(image.convert("RGB"))[:, :width]


def test_the_tool_writes_the_page_and_names_wrong_arguments(
    talking: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("report_tool", REPO / "tools" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "report_tool", module)
    spec.loader.exec_module(module)
    out = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["report.py", str(talking.path), "--page", str(out), "--face-model", "demo"])
    assert module.main() == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert len(read_page(out.read_text(encoding="utf-8")).images) == 8
    monkeypatch.setattr(sys, "argv", ["report.py", str(talking.path), "--page", str(tmp_path / "no" / "x.html")])
    with pytest.raises(RunError, match="cannot write"):
        module.main()
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(RunError, match="holds no run"):
        module.main()
    monkeypatch.setattr(sys, "argv", ["report.py", str(talking.path), "--sample", "0"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
