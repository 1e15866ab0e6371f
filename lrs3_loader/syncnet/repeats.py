"""Trains several times, each time with another seed and other held-out speakers, to tell what is due to chance.

One training is evaluated on few speakers, and their clips resemble one another: its accuracy says little by itself.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lrs3_loader.io.files import write_result
from lrs3_loader.syncnet.evaluate import CHANCE, OFFSETS, Accuracy
from lrs3_loader.syncnet.settings import TrainConfig, TrainLaunch
from lrs3_loader.syncnet.train import train_syncnet

REPEATS_FILE = "repeats.json"


@dataclass(frozen=True)
class Repeats:
    """The evaluations of several trainings, each on its own held-out speakers."""

    seeds: tuple[int, ...]
    accuracies: tuple[Accuracy, ...]

    def describe(self) -> str:
        """Describe mean, standard deviation and range of both accuracies over the trainings, a line for each."""
        num_clips = sum(accuracy.num_clips for accuracy in self.accuracies)
        lines = [
            f"{len(self.accuracies)} trainings, seeds {self.seeds[0]} to {self.seeds[-1]}, evaluated on {num_clips} "
            f"clips of held-out speakers, others each time; right offset of {len(OFFSETS)} on top in"
        ]
        for what, values in (("windows", self.by_window), ("clips", self.by_clip)):
            mean, deviation = 100 * statistics.mean(values), 100 * statistics.pstdev(values)
            listed = ", ".join(f"{100 * value:.1f}" for value in values)
            lines.append(f"  {mean:.1f} % of {what}, standard deviation {deviation:.1f} ({listed})")
        lines.append(f"  (chance: {100 * CHANCE:.1f} %)")
        return "\n".join(lines)

    @property
    def by_window(self) -> list[float]:
        return [accuracy.by_window for accuracy in self.accuracies]

    @property
    def by_clip(self) -> list[float]:
        return [accuracy.by_clip for accuracy in self.accuracies]

    def write(self, path: Path) -> None:
        """Write mean, deviation and every training's figures as JSON, atomically."""
        plain = {
            name: {"mean": statistics.mean(values), "deviation": statistics.pstdev(values), "values": values}
            for name, values in (("window_accuracy", self.by_window), ("clip_accuracy", self.by_clip))
        }
        counts = {"seeds": self.seeds, "num_clips": [accuracy.num_clips for accuracy in self.accuracies]}
        with write_result(path) as file:
            file.write((json.dumps({**counts, **plain}, indent=1) + "\n").encode())


def repeat_settings(config: TrainConfig, launch: TrainLaunch, count: int) -> Sequence[tuple[TrainConfig, TrainLaunch]]:
    """Return the settings of each training: another seed and other held-out speakers, in a folder of its own."""
    return [
        (
            replace(config, seed=config.seed + number, fold=config.fold + number),
            replace(launch, out=launch.out / f"repeat-{number}", boards=launch.boards.inside(f"repeat-{number}")),
        )
        for number in range(count)
    ]


def train_repeats(run: Path, config: TrainConfig, launch: TrainLaunch, count: int) -> Repeats | None:
    """Train ``count`` times, or resume where this was stopped, and write the figures to ``repeats.json``.

    Returns:
        the evaluations on rank 0, None on other ranks.

    Raises:
        RunError: see ``train_syncnet``.
    """
    settings = repeat_settings(config, launch, count)
    found = [train_syncnet(run, *each) for each in settings]
    accuracies = tuple(accuracy for accuracy in found if accuracy is not None)
    if not accuracies:
        return None
    repeats = Repeats(tuple(each.seed for each, _ in settings), accuracies)
    repeats.write(launch.out / REPEATS_FILE)
    return repeats
