#!/usr/bin/env python3
"""Look for what would spoil a run: versions, GPU, decoders, shared memory, limits, disk, model files.

python tools/doctor.py

python tools/doctor.py --corpus /data/lrs3 --out /data/lrs3-shards --ranks 4

Exit code 1 if something has to be put right first. The remedy stands below each problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lrs3_loader import cli, doctor
from lrs3_loader.config import RunConfig, WorkerConfig


@dataclass(frozen=True)
class Args:
    out: Path = Path()
    """Folder of the run to be."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    ranks: int = 1
    """Ranks that will run on this machine (torchrun's --nproc_per_node)."""
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {self.ranks}")


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    checks = doctor.check_software()
    checks += doctor.check_machine(args.out, args.ranks * args.workers.num_workers)
    checks += [doctor.check_torch_loads()] if doctor.is_fit(checks) else []
    checks += try_out(args) if doctor.is_fit(checks) else []
    print(doctor.format_checks(checks))
    return cli.EXIT_OK if doctor.is_fit(checks) else cli.EXIT_PROBLEM


def try_out(args: Args) -> list[doctor.Check]:
    """What needs the packages themselves."""
    from lrs3_loader.assets import Assets  # torch takes seconds to import, and may not import at all
    from lrs3_loader.corpus import corpus_root, scan_corpus
    from lrs3_loader.doctor import room, trial

    assets = Assets(args.assets)
    checks = [trial.check_gpu(), trial.check_decoders()]
    checks += trial.check_models(assets, args.run.face.face_model, args.run.speech.model)
    if args.run.corpus.corpus is not None:
        clips, root = scan_corpus(args.run.corpus), corpus_root(args.run.corpus)
        checks.append(trial.check_clips(clips, root, args.run.decode))
        if isinstance(args.out, Path):
            checks.append(room.check_room(args.run, clips, root, args.out, assets))
    return checks


if __name__ == "__main__":
    cli.main(main)
