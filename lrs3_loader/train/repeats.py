"""Trains several times, each time with another seed and other held-out speakers, to tell what is due to chance.

One training is evaluated on few speakers, and their clips resemble one another: its figures say little by themselves.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from lrs3_loader.io.files import write_result
from lrs3_loader.runtime.device import pick_device
from lrs3_loader.train.loop import train
from lrs3_loader.train.objective import AnyEvaluation, AnyNetwork, Objective
from lrs3_loader.train.ranks import process_group
from lrs3_loader.train.settings import TrainingConfig, TrainLaunch

REPEATS_FILE = "repeats.json"

AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)


@dataclass(frozen=True)
class Repeats(Generic[AnyEvaluation]):
    """The evaluations of several trainings, each on its own held-out speakers."""

    seeds: tuple[int, ...]
    evaluations: tuple[AnyEvaluation, ...]

    def values(self, name: str) -> list[float]:
        """Return a figure of each training."""
        return [evaluation.figures[name] for evaluation in self.evaluations]

    def describe(self) -> str:
        """Describe mean, standard deviation and the single values of each figure, in a line for each."""
        num_clips = sum(evaluation.num_clips for evaluation in self.evaluations)
        lines = [
            f"{len(self.evaluations)} trainings, seeds {self.seeds[0]} to {self.seeds[-1]}, evaluated on {num_clips} "
            "clips of held-out speakers, others each time"
        ]
        for name in self.evaluations[0].figures:
            values = self.values(name)
            listed = ", ".join(f"{value:.3f}" for value in values)
            mean, deviation = statistics.mean(values), statistics.pstdev(values)
            lines.append(f"  {name}: mean {mean:.3f}, standard deviation {deviation:.3f} ({listed})")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write mean, deviation and every training's figures as JSON, atomically."""
        plain = {
            name: {"mean": statistics.mean(values), "deviation": statistics.pstdev(values), "values": values}
            for name in self.evaluations[0].figures
            for values in [self.values(name)]
        }
        counts = {"seeds": self.seeds, "num_clips": [evaluation.num_clips for evaluation in self.evaluations]}
        with write_result(path) as file:
            file.write((json.dumps({**counts, **plain}, indent=1) + "\n").encode())


def train_repeats(
    make: Callable[[AnyConfig], Objective[AnyNetwork, AnyEvaluation]],
    config: AnyConfig,
    launch: TrainLaunch,
    count: int,
) -> Repeats[AnyEvaluation] | None:
    """Train ``count`` times, or resume where this was stopped, and write the figures to ``repeats.json``.

    Training number n has ``seed`` and ``fold`` raised by n, and the folder ``OUT/repeat-n``.

    Args:
        make: makes the objective of a training from its options.

    Returns:
        the evaluations on rank 0, None on other ranks.

    Raises:
        RunError: see ``train``.
    """
    with process_group(pick_device(launch.device)):
        found = [train(make(each), inside) for each, inside in _repeat_settings(config, launch, count)]
    evaluations = tuple(evaluation for evaluation in found if evaluation is not None)
    if not evaluations:
        return None
    repeats = Repeats(tuple(config.seed + number for number in range(count)), evaluations)
    repeats.write(launch.out / REPEATS_FILE)
    return repeats


def train_and_describe(
    make: Callable[[AnyConfig], Objective[AnyNetwork, AnyEvaluation]],
    config: AnyConfig,
    launch: TrainLaunch,
    count: int,
) -> str | None:
    """Train once, or ``count`` times; return the description of the result on rank 0, None on other ranks."""
    result = train(make(config), launch) if count == 1 else train_repeats(make, config, launch, count)
    return None if result is None else result.describe()


def _repeat_settings(config: AnyConfig, launch: TrainLaunch, count: int) -> Sequence[tuple[AnyConfig, TrainLaunch]]:
    return [
        (
            replace(config, seed=config.seed + number, fold=config.fold + number),
            replace(launch, out=launch.out / f"repeat-{number}", boards=launch.boards.inside(f"repeat-{number}")),
        )
        for number in range(count)
    ]
