"""Makes a run of synthetic talking heads that is large enough to train on, within some minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrs3_loader.config import CorpusConfig, LaunchConfig, PlanConfig, RunConfig, WorkerConfig, demo_defaults
from lrs3_loader.demo import make_demo_corpus
from lrs3_loader.launch import runner
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.run.folder import demo_corpus_folder
from lrs3_loader.syncnet.settings import DemoData


def make_demo_run(folder: Path, data: DemoData, device: str, queue: WorkQueue) -> None:
    """Render and extract the demo corpus, or resume doing so.

    Rank 0 renders and all ranks extract; rank 0 is the last to return, when the run is complete.
    """
    corpus = demo_corpus_folder(folder)
    if queue.rank == 0:
        make_demo_corpus(corpus, data.demo_speakers, data.demo_clips, data.demo_seconds)
    config = replace(
        demo_defaults(RunConfig()),
        corpus=CorpusConfig(corpus=corpus, layout="lrs3"),
        plan=PlanConfig(shard_frames=1_000),  # ten shards: something to share
    )
    launch = LaunchConfig(out=folder, assets=data.assets, device=device, workers=WorkerConfig(num_workers=1))
    runner.run(config, launch, queue)
