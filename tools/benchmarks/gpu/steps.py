"""The steps of the first hour with a GPU, each a command of its own, so that one that fails costs itself alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPO = Path(__file__).resolve().parents[3]
BENCH = str(REPO / "tools" / "bench.py")
TOTAL_SECONDS = 600.0


@dataclass(frozen=True)
class Step:
    """A command, and how long it may take."""

    name: str
    command: list[str]
    limit_seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a step ended; its output is in ``<name>.txt``."""

    step: Step
    status: Literal["done", "failed", "stopped", "left out"]
    seconds: float
    last_line: str


def plan_steps(out: Path, options: Sequence[str], card: str | None) -> list[Step]:
    """The steps, in the order of what is wanted most.

    Args:
        out: folder for results.
        options: those of the benchmarks: ``--clips``, ``--assets``...
        card: a name or file for ``roofline --card``; None leaves the model out.
    """

    def bench(name: str, *more: str) -> list[str]:
        return [sys.executable, BENCH, name, *options, "--json", str(out / f"{name}.json"), *more]

    steps = [
        Step("doctor", [sys.executable, str(REPO / "tools" / "doctor.py"), "--json"], 60),
        Step("stages", bench("stages", "--repeats", "3"), 150),
        Step("trace", [sys.executable, "-m", "benchmarks.gpu.trace_shard", str(out / "trace.json.gz"), *options], 90),
        Step("e2e", bench("e2e", "--ranks", "1"), 120),
    ]
    if card is not None:
        steps.append(Step("roofline", bench("roofline", "--card", card), 100))
    if (REPO / "tests").is_dir():
        tests = ["-m", "pytest", "-m", "gpu", "-n", "0", "--rootdir", str(REPO), str(REPO / "tests")]
        steps.append(Step("tests", [sys.executable, *tests], 180))
    return steps


def run_steps(
    steps: Iterable[Step], out: Path, total_seconds: float = TOTAL_SECONDS, now: Callable[[], float] = time.monotonic
) -> Iterator[Outcome]:
    """Run them one after another, without network, and yield how each ended. What no time is left for is left out."""
    # Nothing is fetched: the models are there, or the step says so.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "LRS3_LOADER_EXPECT_GPU": "1", "TQDM_DISABLE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO / "tools"), str(REPO), env.get("PYTHONPATH")]))
    end = now() + total_seconds
    for step in steps:
        limit = min(step.limit_seconds, end - now())
        if limit <= 0:
            yield Outcome(step, "left out", 0.0, "no time was left")
            continue
        yield _run(step, limit, out / f"{step.name}.txt", env)


def _run(step: Step, limit: float, log: Path, env: dict[str, str]) -> Outcome:
    started = time.monotonic()
    with log.open("wb") as file:
        try:
            code = subprocess.run(
                step.command, stdout=file, stderr=subprocess.STDOUT, env=env, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    status: Literal["done", "failed", "stopped"] = "done" if code == 0 else "stopped" if code is None else "failed"
    return Outcome(step, status, time.monotonic() - started, lines[-1].strip()[:160] if lines else "")
