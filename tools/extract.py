#!/usr/bin/env python3
"""Extract a corpus of talking-face clips into WebDataset shards.

python tools/extract.py --demo --out runs/demo

torchrun --nproc_per_node 4 tools/extract.py --corpus /data/lrs3 --out /data/lrs3-shards

Run the same command again to resume.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from lrs3_loader import cli, doctor
from lrs3_loader.config import LaunchConfig, RunConfig, demo_defaults


@dataclass(frozen=True)
class Args:
    launch: LaunchConfig
    run: RunConfig


def main() -> int:
    run_config = demo_defaults(RunConfig()) if "--demo" in sys.argv else RunConfig()
    args = cli.parse(Args, __doc__ or "", default=Args(LaunchConfig(out=tyro.MISSING), run_config))
    if args.launch.demo == (args.run.corpus.corpus is not None):
        raise cli.UsageError("give either --corpus PATH or --demo")
    doctor.stop_if_unfit(args.launch.out, args.launch.workers.num_workers)

    from lrs3_loader import (  # torch takes seconds to import: not before the arguments are right
        runner,
        summary,
        work,
    )

    outcome = runner.run(args.run, args.launch, work.connect())
    if outcome is not None:
        print(summary.describe(outcome))
        if args.launch.demo:
            print(summary.describe_demo(outcome.folder))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.main(main)
