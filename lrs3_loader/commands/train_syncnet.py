"""Train a lip-sync network, which tells whether mouth movement and audio belong together, on the shards of a run.

lrs3-loader train-syncnet --demo --out runs/syncnet

torchrun --nproc_per_node 4 -m lrs3_loader train-syncnet /data/lrs3-shards --out runs/syncnet

Run the same command again to resume. Then: lrs3-loader verify RUN --sync runs/syncnet/checkpoint.pt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lrs3_loader.config import rarely
from lrs3_loader.launch import cli
from lrs3_loader.launch.demo_run import DemoData, make_demo_run
from lrs3_loader.selection.settings import Choice
from lrs3_loader.syncnet.settings import TrainConfig
from lrs3_loader.train.settings import TrainLaunch


@dataclass(frozen=True)
class Args:
    launch: Annotated[TrainLaunch, tyro.conf.arg(name="")]
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the finished run to train on."""
    demo: bool = False
    """Render and extract a corpus of synthetic talking heads (in OUT/demo-run) and train on that."""
    preset: Literal["latentsync", "talkvid", "hallo"] | None = None
    """Only clips that pass the published rule of this project; with --where both must hold."""
    repeats: int = 1
    """Train so many times, each with another seed and other held-out speakers (OUT/repeat-0, ...): mean and spread."""
    train: Annotated[TrainConfig, rarely("network and optimiser")] = field(default_factory=TrainConfig)
    data: Annotated[DemoData, rarely("demo corpus")] = field(default_factory=DemoData)


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "train-syncnet", argv)
    if args.demo == (args.run is not None):
        raise cli.UsageError("give either the folder of a run or --demo")

    if args.repeats < 1:
        raise cli.UsageError(f"--repeats must be at least 1, got {args.repeats}")

    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.syncnet.objective import LipSync
    from lrs3_loader.train.loop import train
    from lrs3_loader.train.repeats import train_repeats

    run = args.run or args.launch.out / "demo-run"
    if args.demo:
        make_demo_run(run, args.data, args.launch.device)
    config, folder = replace(args.train, where=Choice(args.train.where, args.preset).text), RunFolder.open(run)
    if args.repeats > 1:
        repeats = train_repeats(partial(LipSync, folder), config, args.launch, args.repeats)
        text = None if repeats is None else repeats.describe()
    else:
        evaluation = train(LipSync(folder, config), args.launch)
        text = None if evaluation is None else evaluation.describe()
    if text is not None:
        print(text)
    return cli.EXIT_OK
