#!/usr/bin/env python3
"""Train a network to tell whether lips and sound belong together, from the shards of a run.

python tools/train_syncnet.py --demo --out runs/syncnet

torchrun --nproc_per_node 4 tools/train_syncnet.py /data/lrs3-shards --out runs/syncnet

Run the same command again to go on where it was. Then: python tools/verify.py RUN --sync runs/syncnet/checkpoint.pt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lrs3_loader import cli
from lrs3_loader.syncnet.settings import DemoData, TrainConfig, TrainLaunch


@dataclass(frozen=True)
class Args:
    launch: TrainLaunch
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the finished run to train on."""
    demo: bool = False
    """Render and extract a corpus of synthetic talking heads (in OUT/demo-run) and train on that."""
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DemoData = field(default_factory=DemoData)


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    if args.demo == (args.run is not None):
        raise cli.UsageError("give either the folder of a run or --demo")

    from lrs3_loader.syncnet.train import describe, train_syncnet  # torch takes seconds to import

    run = args.run
    if run is None:
        from lrs3_loader import work
        from lrs3_loader.syncnet.demo import make_demo_run

        run = args.launch.out / "demo-run"
        make_demo_run(run, args.data, args.launch.device, work.connect())
    accuracy = train_syncnet(run, args.train, args.launch)
    if accuracy is not None:
        print(describe(accuracy))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.main(main)
