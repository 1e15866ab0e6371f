"""The run that a training's ``--demo`` trains on: synthetic talking heads, rendered and extracted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


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
