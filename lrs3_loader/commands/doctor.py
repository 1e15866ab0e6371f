"""Check that a run can work: versions, GPU, decoders, limits, memory, disk, model files.

lrs3-loader doctor

lrs3-loader doctor --corpus /data/lrs3 --out /data/lrs3-shards --ranks 4

Exit code 1 if something has to be fixed first. The remedy is printed below each problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from lrs3_loader.config import RunConfig, WorkerConfig, rarely
from lrs3_loader.doctor import checks
from lrs3_loader.launch import cli


@dataclass(frozen=True)
class Args:
    out: Path = Path()
    """Folder of the planned run."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    ranks: int = 1
    """Ranks that will run on this machine (torchrun's --nproc_per_node)."""
    json: bool = False
    """Print the findings as JSON, with all versions: for scripts and bug reports."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    workers: Annotated[WorkerConfig, rarely("decode processes")] = field(default_factory=WorkerConfig)

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {self.ranks}")


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "doctor", argv)
    found = checks.check_software()
    found += checks.check_machine(args.out)
    found += [checks.check_torch_loads()] if checks.is_fit(found) else []
    found += run_trials(args) if checks.is_fit(found) else []
    found = [replace(check, remedy=cli.as_called(check.remedy)) for check in found]
    print(checks.checks_json(found) if args.json else checks.format_checks(found))
    return cli.EXIT_OK if checks.is_fit(found) else cli.EXIT_PROBLEM


def run_trials(args: Args) -> list[checks.CheckResult]:
    """Run the checks that import torch and the decoders, and that of memory, which depends on the corpus."""
    from lrs3_loader.assets.locate import Assets
    from lrs3_loader.corpus.scan import find_corpus
    from lrs3_loader.doctor import disk_space, trial
    from lrs3_loader.errors import RunError

    assets = Assets(args.assets)
    found = [trial.check_gpu(), trial.check_kernels(), trial.check_decoders()]
    found += trial.check_models(assets, args.run.face.face_model, args.run.speech.models)
    frame_size = (224, 224)
    try:
        corpus = None if args.run.corpus.corpus is None else find_corpus(args.run.corpus)
    except RunError as error:
        corpus = None
        found.append(checks.CheckResult("corpus", "fail", str(error), "name another with --corpus, or its --layout"))
    if corpus is not None:
        found += [trial.check_clips(corpus.clips, corpus.root, args.run.decode)]
        found += [disk_space.check_disk_space(args.run, corpus.clips, corpus.root, args.out, assets)]
        found += [trial.check_shards(corpus, args.run.plan, args.ranks)]
        frame_size = trial.largest_frames(corpus.clips, corpus.root)
    found += [checks.check_cores(args.ranks)]
    return [*found, checks.check_memory(args.ranks, args.workers.num_workers, *frame_size)]
