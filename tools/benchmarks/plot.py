"""A picture of a record: a panel for each unit, a bar for each figure, with its spread and its bound."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.machine import CEILING
from benchmarks.results import Figure, Record, brief

UNITS = {
    "frames/s": "frames a second (logarithmic)",
    "x": "ratios, and the bounds to reach",
    "s": "seconds",
    "MiB": "memory, MiB",
}
_GOOD, _BAD, _PLAIN = "tab:green", "tab:red", "tab:blue"


def draw(record: Record, path: Path) -> None:
    """Write the picture: .png, .svg or .pdf."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, list[Figure]] = defaultdict(list)
    for figure in record.figures:
        if figure.unit in UNITS and figure.group != CEILING:
            panels[figure.unit].append(figure)
    heights = [0.28 * len(figures) + 0.9 for figures in panels.values()]
    picture, axes = pyplot.subplots(
        max(1, len(panels)),
        squeeze=False,
        figsize=(9, sum(heights) + 0.6),
        height_ratios=heights or None,
        layout="constrained",
    )
    for axis, (unit, figures) in zip(axes[:, 0], panels.items(), strict=False):
        _draw_panel(axis, unit, figures)
    machine = record.machine
    picture.suptitle(f"{machine.get('gpu') or machine.get('processor')}, {record.date}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


def _draw_panel(axis: Any, unit: str, figures: list[Figure]) -> None:
    labels = [" ".join(f"{figure.group} · {figure.name.strip()}".split()) for figure in figures]
    values = [figure.value for figure in figures]
    colours = [
        _PLAIN if figure.bound is None else _GOOD if figure.bound.is_met(figure.value) else _BAD for figure in figures
    ]
    places = range(len(figures))
    axis.barh(places, values, color=colours, height=0.65)
    for place, figure in zip(places, figures, strict=True):
        if figure.low is not None and figure.high is not None:
            axis.plot([figure.low, figure.high], [place, place], color="black", linewidth=1)
        if figure.bound is not None:
            axis.plot([figure.bound.value] * 2, [place - 0.45, place + 0.45], color="black", linewidth=2)
        axis.annotate(f" {brief(figure.value)}", (max(figure.value, figure.high or 0), place), va="center", fontsize=7)
    if unit == "frames/s" and min(values) > 0:
        axis.set_xscale("log")
        axis.set_xlim(0.5 * min(values), 3 * max(values))
    else:
        axis.set_xlim(0, 1.15 * max(max(values), max((f.bound.value for f in figures if f.bound), default=0)))
    axis.set_yticks(list(places), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(UNITS[unit], fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
