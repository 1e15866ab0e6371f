"""The first hour with a GPU: every step costs itself alone, and the summary says how each ended."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import stages
from benchmarks.gpu import trace_shard
from benchmarks.gpu.session import SUMMARY_FILE, card_of, run_and_summarise, run_session
from benchmarks.gpu.steps import Step, plan_steps
from benchmarks.inputs import Workbench
from benchmarks.machine import ceiling_figures
from benchmarks.options import BenchOptions
from benchmarks.results import Figure, Record
from lrs3_loader.errors import RunError
from lrs3_loader.launch import cli
from lrs3_loader.runtime.device import pick_device
from support.paths import REPO


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/bench.py as a module."""
    spec = importlib.util.spec_from_file_location("bench_tool", REPO / "tools" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_tool", module)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"no GPU here that torch .* roofline"):
        next(run_session(tmp_path / "out", [], None))
    assert not (tmp_path / "out").exists()


def test_every_step_is_a_command_that_exists(bench: ModuleType, tmp_path: Path) -> None:
    steps = plan_steps(tmp_path, ["--clips", str(tmp_path), "--quick", "--assets", str(tmp_path)], "h200")
    assert [step.name for step in steps] == ["doctor", "stages", "trace", "e2e", "roofline", "tests"]
    for step in steps:
        script = step.command[1]
        if script.endswith("bench.py"):
            args = cli.parse(bench.Args, "", argv=step.command[2:])
            assert args.command.quick
            assert args.command.json == tmp_path / f"{step.name}.json"
        elif step.name == "trace":
            assert cli.parse(trace_shard.Args, "", argv=step.command[3:]).options.clips == tmp_path
        elif script != "-m":
            assert Path(script).exists()
    assert "roofline" not in [step.name for step in plan_steps(tmp_path, [], None)]


def python(name: str, code: str, limit_seconds: float = 20) -> Step:
    return Step(name, [sys.executable, "-c", code], limit_seconds)


def test_a_step_that_fails_costs_itself_alone(tmp_path: Path) -> None:
    steps = [
        python("doctor", "print('fit to run')"),
        python("stages", "raise SystemExit('out of | memory')"),
        python("trace", "import time; print('begun', flush=True); time.sleep(60)", limit_seconds=2),
        python("tests", "import os; print(os.environ['LRS3_LOADER_EXPECT_GPU'], os.environ['HF_HUB_OFFLINE'])"),
    ]
    lines = list(run_and_summarise(steps, tmp_path, total_seconds=60))
    assert [line.split()[1] for line in lines[:4]] == ["done", "failed", "stopped", "done"]
    summary = (tmp_path / SUMMARY_FILE).read_text()
    assert "| doctor | done | 0 | fit to run |" in summary
    assert r"out of \| memory" in summary
    assert (tmp_path / "trace.txt").read_text() == "begun\n"
    assert (tmp_path / "tests.txt").read_text() == "1 1\n"
    (line, _) = run_and_summarise(steps[:1], tmp_path, total_seconds=0)
    assert "no time was left" in line


def test_the_summary_shows_what_was_measured_beside_the_model(tmp_path: Path) -> None:
    measured, modelled = Record({"gpu": "NVIDIA H200"}), Record({"gpu": "none"})
    measured.add(Figure("landmarks", "float32", 5_000.0, "frames/s", share=0.25))
    measured.add(Figure("upload", "frames, pinned memory", 9_000.0, "frames/s"))
    for name, milliseconds in (("crops", 20.0), ("landmarks", 60.0)):
        modelled.add(Figure("roofline", name, milliseconds, "ms/1000"))
    measured.write(tmp_path / "stages.json")
    modelled.write(tmp_path / "roofline.json")
    list(run_and_summarise([python("doctor", "pass")], tmp_path, 20))
    lines = (tmp_path / SUMMARY_FILE).read_text().splitlines()
    assert lines[0].startswith("# NVIDIA H200, ")
    assert "| landmarks | float32 | 5,000 | 25 % | 12,500 | 0.40 |" in lines
    assert "| upload | frames, pinned memory | 9,000 |  |  |  |" in lines


def test_a_gpu_is_known_by_what_it_calls_itself() -> None:
    assert card_of("NVIDIA H200") == "h200"
    assert card_of("NVIDIA A100-SXM4-80GB") == "a100"
    assert card_of("NVIDIA GeForce RTX 4090") == "4090"
    assert card_of("NVIDIA L40") is None


@pytest.mark.gpu
def test_a_shard_is_traced_and_stages_are_measured_on_a_gpu(assets: Path | None, tmp_path: Path) -> None:
    options = BenchOptions(assets=assets, quick=True, repeats=1)
    bench = Workbench(options, pick_device("cuda"), tmp_path, stages.NUM_FRAMES)
    lines = list(trace_shard.trace_shard(bench, tmp_path / "trace.json.gz"))
    assert "12 frames in" in lines[-1]
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]
    measured = stages.StageBench(bench)
    measured.ceilings = ceiling_figures(bench.device, quick=True)
    figures = [item for item in (*measured._upload(), *measured._landmarks()) if isinstance(item, Figure)]
    names = {(item.group, item.name) for item in figures}
    assert names >= {("upload", "frames, pinned memory"), ("landmarks", "float32"), ("landmarks", "tf32")}
    assert ("landmarks", "peak memory") in names
