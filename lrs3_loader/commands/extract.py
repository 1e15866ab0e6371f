"""Extract a corpus of talking-face clips into WebDataset shards.

lrs3-loader extract --demo --out runs/demo

torchrun --nproc_per_node 4 -m lrs3_loader extract --corpus /data/lrs3 --out /data/lrs3-shards

Run the same command again to resume.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from lrs3_loader.config import LaunchConfig, RunConfig, demo_defaults
from lrs3_loader.doctor import checks
from lrs3_loader.launch import cli


@dataclass(frozen=True)
class Args:
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    launch: Annotated[LaunchConfig, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    run_config = demo_defaults(RunConfig()) if "--demo" in argv else RunConfig()
    args = cli.parse(Args, __doc__ or "", "extract", argv, Args(run_config, LaunchConfig(out=tyro.MISSING)))
    if args.launch.demo == (args.run.corpus.corpus is not None):
        raise cli.UsageError("give either --corpus PATH or --demo")
    checks.stop_if_unfit(args.launch.out, args.launch.workers.num_workers)

    from lrs3_loader.launch import leases, runner, summary

    if (outcome := runner.run(args.run, args.launch, leases.connect())) is not None:
        print(summary.describe_outcome(outcome))
        if args.launch.demo:
            print(summary.describe_demo(outcome.folder))
    return cli.EXIT_OK
