"""Whole extractions with the demo models: in this process, or as a command."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from lrs3_loader.config import CorpusConfig, LaunchConfig, PlanConfig, RunConfig, WorkerConfig, demo_defaults
from lrs3_loader.launch import runner
from lrs3_loader.launch.leases import WorkQueue
from support.paths import REPO

EXTRACT = [str(REPO / "tools" / "extract.py")]


def config_for(corpus: Path, **fields: object) -> RunConfig:
    """Demo models, one clip a shard."""
    config = replace(demo_defaults(RunConfig()), corpus=CorpusConfig(corpus=corpus), plan=PlanConfig(shard_clips=1))
    return replace(config, **fields)  # type: ignore[arg-type]


def extract(config: RunConfig, out: Path, assets: Path | None, **launch: object) -> runner.Outcome:
    queue = WorkQueue(dist.HashStore(), 0, 1)
    options = LaunchConfig(out=out, assets=assets, device="cpu", workers=WorkerConfig(num_workers=1), **launch)  # type: ignore[arg-type]
    outcome = runner.run(config, options, queue)
    assert outcome is not None
    return outcome


def command(corpus: Path, out: Path, assets: Path | None, ranks: int, *options: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    folder = ["--assets", str(assets)] if assets else []
    models = [] if "--face-model" in options else ["--face-model", "demo"]
    where = ["--corpus", str(corpus), "--out", str(out), "--device", "cpu", "--workers", "1", "--hubert", "demo"]
    return [*(torchrun if ranks > 1 else [sys.executable]), *EXTRACT, *where, *folder, *models, *options]


def shard_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").glob("*.tar"))}


def processes_naming(text: str) -> list[int]:
    """Ids of the processes whose command line holds ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found
