"""Runs the steps of the first hour with a GPU, and writes their summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.steps import TOTAL_SECONDS, Step, plan_steps, run_steps
from benchmarks.gpu.summary import summarise
from benchmarks.roofline.cards import CARDS, find_card
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write

SUMMARY_FILE = "summary.md"


def run_session(out: Path, options: Sequence[str], card: str | None) -> Iterator[str]:
    """Run every step that fits ten minutes; yield a line for each, and write the summary.

    Args:
        out: folder for outputs, figures, the trace and ``summary.md``.
        options: those of the benchmarks that each step gets.
        card: a name or file for the model; the GPU's own when None.

    Raises:
        RunError: torch can use no GPU here.
        ValueError: there is no such card.
    """
    if not torch.cuda.is_available():
        raise RunError(
            f"no GPU here that torch {torch.__version__} can use (lrs3-loader doctor says why); "
            "for a model of one: python tools/bench.py roofline"
        )
    name = torch.cuda.get_device_name(0)
    if card is not None:
        find_card(card)
    card = card or card_of(name)
    if card is None:
        yield f"{name}: no data sheet for the model, which is left out (give --card FILE)"
    out.mkdir(parents=True, exist_ok=True)
    yield from run_and_summarise(plan_steps(out.resolve(), options, card), out, TOTAL_SECONDS)


def run_and_summarise(steps: Sequence[Step], out: Path, total_seconds: float) -> Iterator[str]:
    """Run the steps, one line each, then write what they found."""
    outcomes = []
    for outcome in run_steps(steps, out, total_seconds):
        outcomes.append(outcome)
        yield f"{outcome.step.name:<10}{outcome.status:<10}{outcome.seconds:6.0f} s  {outcome.last_line}"
    text = "\n".join(summarise(out, outcomes)) + "\n"
    with atomic_write(out / SUMMARY_FILE) as file:
        file.write(text.encode())
    yield f"summary in {out / SUMMARY_FILE}"


def card_of(device_name: str) -> str | None:
    """The name in ``CARDS`` of a GPU that calls itself "NVIDIA H200"; None if its data sheet is not there."""
    words = device_name.upper().replace("-", " ").split()
    return next((name for name in CARDS if name.upper() in words), None)
