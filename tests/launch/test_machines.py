"""What scripts read: summaries as JSON, exit codes, logs and metrics in files, and the dry run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch.distributed as dist

from lrs3_loader import demo
from lrs3_loader.commands import extract, verify
from lrs3_loader.config import LaunchConfig
from lrs3_loader.errors import RunError
from lrs3_loader.launch import leases, runner
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.launch.progress import COUNTERS, STAGES, Tally, progress_display
from lrs3_loader.launch.run_log import METRICS, log_to
from lrs3_loader.launch.runner import Outcome
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.runtime.boards import BoardConfig, Boards
from support import whole_runs
from support.paths import REPO
from support.run_factory import make_run
from support.whole_runs import config_for

WORDS = ["--corpus", "c", "--out", "x", "--json"]


def outcome_of(folder: Path, lengths: list[list[int]]) -> Outcome:
    run = make_run(folder, lengths)
    return Outcome(run, run.totals(), 21, 2.0, {})


@pytest.mark.parametrize(
    ("lengths", "options", "code"),
    [
        ([[12, 9], [9, 9]], [], 0),
        ([[12, 0], [0, 9]], [], 0),
        ([[12, 0], [0, 9]], ["--max-reject-fraction", "0.5"], 0),
        ([[12, 0], [0, 9]], ["--max-reject-fraction", "0.4"], 3),
        ([[0, 0], [0, 0]], [], 3),
    ],
)
def test_the_summary_is_json_and_too_many_rejects_have_an_exit_code(
    lengths: list[list[int]],
    options: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = outcome_of(tmp_path / "run", lengths)
    monkeypatch.setattr(leases, "connect", lambda: None)
    monkeypatch.setattr(runner, "run", lambda *_: outcome)
    assert extract.main([*WORDS, *options]) == code
    printed = capsys.readouterr()
    lost = sum(length == 0 for row in lengths for length in row)
    found = json.loads(printed.out)
    assert found["launch"] == {"frames": 21, "seconds": 2.0}
    assert (found["clips"], found["samples"], sum(found["rejects"].values())) == (4, 4 - lost, lost)
    assert (found["shards"], found["published"], found["out"]) == (2, 2, str(tmp_path / "run"))
    assert (f"{lost} of 4 clips are rejects" in printed.err) == (code == 3)


def test_verify_tells_problems_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", [[12, 0], [9]])
    assert verify.main([str(run.path), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["problems"] == {}
    assert (whole["samples"], whole["published"], sum(whole["rejects"].values())) == (2, 2, 1)
    (tmp_path / "run/shards/pretrain-000001.tar").unlink()
    assert verify.main([str(run.path), "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)["problems"]) == ["pretrain-000001"]


def test_each_rank_logs_json_lines(tmp_path: Path) -> None:
    logger = logging.getLogger("lrs3_loader.somewhere")
    for _ in range(2):
        with log_to(tmp_path / "logs", 3):
            logger.debug("published", extra={"values": {"shard": "a", "samples": 2}})
            logger.warning("two\nlines of %d", 5)
        logger.warning("after it")
    lines = [json.loads(line) for line in (tmp_path / "logs/rank-3.jsonl").read_text().splitlines()]
    times = [line.pop("time") for line in lines]
    assert times == sorted(times)
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]{12}\+00:00", time) for time in times)
    assert lines[:2] == lines[2:]
    assert lines[:2] == [
        {"rank": 3, "level": "debug", "message": "published", "shard": "a", "samples": 2},
        {"rank": 3, "level": "warning", "message": "two\nlines of 5"},
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError), log_to(tmp_path / "file", 0):
        pass


def test_progress_is_kept_for_prometheus(tmp_path: Path) -> None:
    queue = WorkQueue(dist.HashStore(), 0, 1)
    with progress_display(queue, 40, 10, tmp_path):
        for name in COUNTERS:
            queue.add(name, {"clips": 5, "frames": 750, "rejects": 1}.get(name, 0))
    text = (tmp_path / "lrs3_loader.prom").read_text()
    values = dict(re.findall(r"^lrs3_loader_(\w+) (\S+)$", text, re.MULTILINE))
    assert values.keys() == METRICS.keys()
    assert (values["clips"], values["clips_done"], values["clips_rejected"], values["frames"]) == (
        "40",
        "15",
        "1",
        "750",
    )
    assert float(values["frames_per_second"]) > 0
    assert text.count("# TYPE") == text.count("# HELP") == len(METRICS)


class Recorder(Boards):
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))


def test_boards_get_progress_and_the_seconds_of_every_stage() -> None:
    queue, boards = WorkQueue(dist.HashStore(), 0, 1), Recorder()
    with progress_display(queue, 40, 10, None, boards):
        queue.add("clips", 5)
        queue.add("frames", 750)
        for seconds in (0.5, 0.25):
            Tally(queue).add_timings({"landmarks": seconds, "fit": 0.125})
    ((step, values),) = boards.lines
    assert step == 15
    assert values.keys() == {*METRICS, *(f"seconds/{stage}" for stage in STAGES)}
    assert (values["frames"], values["seconds/landmarks"], values["seconds/fit"]) == (750, 0.75, 0.25)


def test_every_stage_of_the_extraction_is_counted() -> None:
    sources = [path.read_text() for path in (REPO / "lrs3_loader" / "extraction").glob("*.py")]
    assert {name for text in sources for name in re.findall(r"clock(?:\.iterate)?\(\"(\w+)\"", text)} == set(STAGES)


@pytest.mark.slow
def test_an_extraction_writes_for_tensorboard(assets: Path | None, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    corpus = demo.make_demo_corpus(tmp_path / "corpus", num_speakers=1, clips_per_speaker=2, seconds=(0.8, 1.0))
    whole_runs.extract(config_for(corpus.folder), tmp_path / "run", assets, boards=BoardConfig(tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    (frames,) = events.Scalars("frames")
    lengths = RunFolder.open(tmp_path / "run").figures().columns["num_frames"]
    assert (frames.step, frames.value) == (len(lengths), lengths.sum())
    assert events.Scalars("seconds/landmarks")[0].value > 0
    assert events.Scalars("seconds/fit")[0].value > 0


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("test/a/1", "test/b/1", "train/a/1"):
        (tmp_path / f"corpus/{name}.mp4").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"corpus/{name}.mp4").write_bytes(bytes(1_100 * 25 * 60))
    words = ["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "run"), "--dry-run", "--device", "cpu"]
    assert extract.main([*words, "--hubert", "demo", "--face-model", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'corpus'}: layout lrs3: 3 clips, 2 splits, 2 speakers"
    assert lines[1] == "  test: 2 clips, 2 speakers, 1 shard, about 2 minutes long"
    assert lines[2] == "  train: 1 clip, 1 speaker, 1 shard, about 60 seconds long"
    assert re.fullmatch(rf"to write: 2 shards, about [\d.]+ MB in {tmp_path / 'run'}", lines[3])
    assert lines[4].startswith("time to expect: 6 minutes on 1 CPU rank, at 13 frames/s")
    assert list(tmp_path.iterdir()) == [tmp_path / "corpus"]
    make_run(tmp_path / "run", [[9]])
    extract.main(words)
    assert "a run is there already: 1 of 1 shard published" in capsys.readouterr().out


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="max_reject_fraction"):
        LaunchConfig(out=Path("x"), max_reject_fraction=share)
