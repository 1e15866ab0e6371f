"""What each condition of a selection takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.selection.expression import Expression


@dataclass(frozen=True)
class Step:
    """One condition, after those before it."""

    condition: str
    num_taken: int  # clips that pass all conditions before it, and not this one
    seconds_taken: float
    num_left: int
    seconds_left: float
    num_alone: int  # clips that this condition takes by itself


def waterfall(table: FigureTable, where: Expression) -> tuple[np.ndarray, list[Step]]:
    """Apply the conditions that ``and`` joins one after another.

    Returns:
        the mask [n] of the clips that pass all of them, and a step for each condition.

    Raises:
        RunError: the table lacks a figure.
    """
    where.require(table)
    seconds = table.columns["duration_seconds"]
    chosen, steps = np.ones(len(table), bool), []
    for condition in where.conditions:
        passes = condition.chooses(table.columns, len(table))
        left = chosen & passes
        taken = chosen & ~passes
        steps.append(
            Step(
                condition.text,
                int(taken.sum()),
                float(seconds[taken].sum()),
                int(left.sum()),
                float(seconds[left].sum()),
                int((~passes).sum()),
            )
        )
        chosen = left
    return chosen, steps


def describe_waterfall(table: FigureTable, steps: Sequence[Step]) -> list[str]:
    """Return a line of titles, one for all clips, and one for each condition."""
    rows = [("", "clips left", "hours left", "removed", "hours removed", "removed alone")]
    rows.append(("all clips", str(len(table)), f"{table.seconds / 3600:.3f}", "", "", ""))
    rows += [
        (
            step.condition,
            str(step.num_left),
            f"{step.seconds_left / 3600:.3f}",
            str(step.num_taken),
            f"{step.seconds_taken / 3600:.3f}",
            str(step.num_alone),
        )
        for step in steps
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
