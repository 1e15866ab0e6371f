"""The summary of a session with a GPU, in Markdown, for BENCH.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import Outcome

#: Stages as measured (group of ``bench.py stages``), and what the model calls them.
STAGES = {
    "mel": ("mel",),
    "HuBERT-large": ("HuBERT",),
    "landmarks": ("crops", "landmarks"),
    "align + ResNet-50": ("alignment", "regression"),
    "fit": ("fit",),
}


def summarise(out: Path, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The lines of ``summary.md``: the machine, how each step ended, stages beside the model, whole runs."""
    stages, model, runs = (_figures(out / f"{name}.json") for name in ("stages", "roofline", "e2e"))
    machine: dict[str, Any] = next((record["machine"] for record in (stages, model, runs) if record), {})
    date = next((record["date"] for record in (stages, model, runs) if record), "")
    yield f"# {machine.get('gpu', 'GPU')}, {date}"
    yield ""
    yield from (f"- {name}: {value}" for name, value in machine.items())
    yield from ("", "| step | | seconds | last line |", "|---|---|---|---|")
    for outcome in outcomes:
        line = outcome.last_line.replace("|", "\\|")
        yield f"| {outcome.step.name} | {outcome.status} | {outcome.seconds:.0f} | {line} |"
    if stages:
        yield from _stage_table(stages["figures"], model["figures"] if model else [])
    if runs:
        yield from ("", "| whole run | | |", "|---|---|---|")
        for figure in runs["figures"]:
            name, value = f"{figure['group']}: {figure['name'].strip()}", f"{figure['value']:.4g} {figure['unit']}"
            yield f"| {name} | {value} | {figure.get('note', '')} |"
    yield from ("", "Each step's output is beside this file; `trace.json.gz` opens in Perfetto (ui.perfetto.dev).")


def _stage_table(measured: list[dict[str, Any]], modelled: list[dict[str, Any]]) -> Iterator[str]:
    """Every way of every stage; the model's figure stands beside each way, since it knows one only."""
    milliseconds = {each["name"]: each["value"] for each in modelled if each["group"] == "roofline"}
    yield from (
        "",
        "| stage | way | frames/s | share | modelled frames/s | measured / modelled |",
        "|---|---|---|---|---|---|",
    )
    for figure in measured:
        if figure["unit"] != "frames/s":
            continue
        parts = [milliseconds.get(name) for name in STAGES.get(figure["group"], ())]
        known = [part for part in parts if part is not None]
        rate = 1e6 / sum(known) if known and len(known) == len(parts) else None
        share = f"{100 * figure['share']:.0f} %" if "share" in figure else ""
        model = f"{rate:,.0f} | {figure['value'] / rate:.2f}" if rate else " | "
        yield f"| {figure['group']} | {figure['name'].strip()} | {figure['value']:,.0f} | {share} | {model} |"


def _figures(path: Path) -> dict[str, Any]:
    """A record as ``bench.py --json`` writes it; empty where a step did not get so far."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
