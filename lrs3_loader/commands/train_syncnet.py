"""Train a lip-sync network, which tells whether mouth movement and audio belong together, on the shards of a run.

lrs3-loader train-syncnet --demo --out runs/syncnet

torchrun --nproc_per_node 4 -m lrs3_loader train-syncnet /data/lrs3-shards --out runs/syncnet

Run the same command again to resume. Then: lrs3-loader verify RUN --sync runs/syncnet/checkpoint.pt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import tyro

from lrs3_loader.config import rarely
from lrs3_loader.launch import cli
from lrs3_loader.launch.training_run import DemoData, TrainingRun
from lrs3_loader.syncnet.settings import TrainConfig
from lrs3_loader.train.settings import TrainLaunch


@dataclass(frozen=True)
class Args:
    launch: Annotated[TrainLaunch, tyro.conf.arg(name="")]
    source: Annotated[TrainingRun, tyro.conf.arg(name="")] = field(default_factory=TrainingRun)
    train: Annotated[TrainConfig, rarely("network and optimiser")] = field(default_factory=TrainConfig)
    data: Annotated[DemoData, rarely("demo corpus")] = field(default_factory=DemoData)


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "train-syncnet", argv)
    args.source.check()

    from lrs3_loader.syncnet.objective import LipSync
    from lrs3_loader.train.repeats import train_and_describe

    folder = args.source.open(args.launch.out, args.data, args.launch.device)
    config = replace(args.train, where=args.source.where(args.train.where))
    text = train_and_describe(partial(LipSync, folder), config, args.launch, args.source.repeats)
    if text is not None:
        print(text)
    return cli.EXIT_OK
