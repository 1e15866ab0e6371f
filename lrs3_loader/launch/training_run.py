"""What the commands of trainings share: which run they train on, and how often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lrs3_loader.launch.cli import UsageError
from lrs3_loader.selection.settings import Choice

if TYPE_CHECKING:
    from lrs3_loader.run.folder import RunFolder


@dataclass(frozen=True)
class DemoData:
    """The synthetic talking heads of --demo. Their speech features come from an untrained network."""

    demo_speakers: int = 24
    """Faces, each with its own voice."""
    demo_clips: int = 5
    """Clips per speaker."""
    demo_seconds: tuple[float, float] = (2.4, 3.6)
    """Shortest and longest clip in seconds."""
    assets: Path | None = None
    """Folder with model files, searched first (then $LRS3_LOADER_ASSETS, then the cache)."""


@dataclass(frozen=True)
class TrainingRun:
    """The run to train on, and the number of trainings."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the finished run to train on."""
    demo: bool = False
    """Render and extract a corpus of synthetic talking heads (in OUT/demo-run) and train on that."""
    preset: Literal["latentsync", "talkvid", "hallo"] | None = None
    """Only clips that pass the published rule of this project; with --where both must hold."""
    repeats: int = 1
    """Train so many times, each with another seed and other held-out speakers (OUT/repeat-0, ...): mean and spread."""

    def check(self) -> None:
        """Raise ``UsageError`` if there is not exactly one run, or no training is asked for."""
        if self.demo == (self.run is not None):
            raise UsageError("give either the folder of a run or --demo")
        if self.repeats < 1:
            raise UsageError(f"--repeats must be at least 1, got {self.repeats}")

    def open(self, out: Path, data: DemoData, device: str) -> RunFolder:
        """Open the run; with ``demo``, make it first, or resume that.

        Args:
            out: folder of the training.
        """
        from lrs3_loader.run.folder import RunFolder

        run = self.run or out / "demo-run"
        if self.demo:
            make_demo_run(run, data, device)
        return RunFolder.open(run)

    def where(self, condition: str | None) -> str | None:
        """Join the preset with another condition over the figures of clips."""
        return Choice(condition, self.preset).text


def make_demo_run(folder: Path, data: DemoData, device: str) -> None:
    """Render and extract the demo corpus, or resume that: rank 0 renders, all ranks extract, and rank 0 ends last."""
    from lrs3_loader.config import CorpusConfig, LaunchConfig, PlanConfig, RunConfig, WorkerConfig, demo_defaults
    from lrs3_loader.demo import make_demo_corpus
    from lrs3_loader.launch import leases, runner
    from lrs3_loader.run.folder import demo_corpus_folder

    corpus, queue = demo_corpus_folder(folder), leases.connect()
    if queue.rank == 0:
        make_demo_corpus(corpus, data.demo_speakers, data.demo_clips, data.demo_seconds)
    config = replace(
        demo_defaults(RunConfig()),
        corpus=CorpusConfig(corpus=corpus, layout="lrs3"),
        plan=PlanConfig(shard_frames=1_000),  # ten shards, so that several ranks have work
    )
    launch = LaunchConfig(out=folder, assets=data.assets, device=device, workers=WorkerConfig(num_workers=1))
    runner.run(config, launch, queue)
