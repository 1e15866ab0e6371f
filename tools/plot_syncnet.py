#!/usr/bin/env python3
"""Draw how a training of tools/train_syncnet.py went, and the score at each audio-video offset at its end.

python tools/plot_syncnet.py runs/syncnet docs/syncnet.png
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lrs3_loader.errors import RunError
from lrs3_loader.launch import cli
from lrs3_loader.train.scalars import EVALUATION_FILE, read_scalars


@dataclass(frozen=True)
class Args:
    training: Annotated[Path, tyro.conf.Positional]
    """Folder of the training."""
    picture: Annotated[Path, tyro.conf.Positional]
    """File to write: .png, .svg or .pdf."""


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_scalars(args.training)
    if not (args.training / EVALUATION_FILE).exists():
        raise RunError(f"{args.training} holds no training that was evaluated yet")
    evaluation = json.loads((args.training / EVALUATION_FILE).read_bytes())
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    draw_loss(axes[0], lines)
    draw_accuracy(axes[1], lines, evaluation)
    draw_offsets(axes[2], evaluation)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=110)
    print(args.picture)
    return cli.EXIT_OK


def draw_loss(axes: Any, lines: list[dict[str, float]]) -> None:
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    axes.plot(*zip(*losses, strict=True), color="tab:blue")
    axes.axhline(0.6931, color="grey", linestyle=":", label="knowing nothing (ln 2)")
    axes.set(title="training pairs", xlabel="step", ylabel="binary cross-entropy")
    axes.legend(frameon=False)


def draw_accuracy(axes: Any, lines: list[dict[str, float]], evaluation: dict[str, Any]) -> None:
    evaluated = [line for line in lines if "clip_accuracy" in line]
    steps = [line["step"] for line in evaluated]
    for name, label in (("clip", "clips"), ("window", "single windows of 0.2 s")):
        axes.plot(steps, [100 * line[f"{name}_accuracy"] for line in evaluated], marker="o", markersize=3, label=label)
    axes.axhline(100 / len(evaluation["offsets"]), color="grey", linestyle=":", label="chance")
    axes.set(title="held-out speakers", xlabel="step", ylabel="right offset on top (%)", ylim=(0, 103))
    axes.legend(frameon=False)


def draw_offsets(axes: Any, evaluation: dict[str, Any]) -> None:
    axes.plot(evaluation["offsets"], evaluation["mean_score"], color="tab:green", marker="o", markersize=3)
    axes.axvline(0, color="grey", linestyle=":")
    axes.set(title=f"mean over {evaluation['num_windows']} windows", xlabel="offset (frames)", ylabel="cosine")


if __name__ == "__main__":
    cli.main(main)
