"""Train a generator of facial motion from speech on the shards of a run, and compare it with two baselines.

lrs3-loader train-audio2motion --demo --out runs/motion

torchrun --nproc_per_node 4 -m lrs3_loader train-audio2motion /data/lrs3-shards --out runs/motion

Run the same command again to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lrs3_loader.audio2motion.settings import Audio2MotionConfig
from lrs3_loader.config import rarely
from lrs3_loader.launch import cli
from lrs3_loader.launch.training_run import DemoData, TrainingRun
from lrs3_loader.train.settings import TrainLaunch

if TYPE_CHECKING:
    from lrs3_loader.run.folder import RunFolder

_DEMO_SYNC_EPOCHS = 60


@dataclass(frozen=True)
class Args:
    launch: Annotated[TrainLaunch, tyro.conf.arg(name="")]
    source: Annotated[TrainingRun, tyro.conf.arg(name="")] = field(default_factory=TrainingRun)
    sync: Path | None = None
    """Checkpoint of train-syncnet, which scores generated motion in the evaluation; see --sync-weight. With --demo, one
    is trained on the same speakers (OUT/syncnet-FOLD) unless it is given."""
    train: Annotated[Audio2MotionConfig, rarely("network and optimiser")] = field(default_factory=Audio2MotionConfig)
    data: Annotated[DemoData, rarely("demo corpus")] = field(default_factory=DemoData)


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "train-audio2motion", argv)
    args.source.check()

    from lrs3_loader.assets.locate import Assets
    from lrs3_loader.audio2motion.objective import MotionTraining
    from lrs3_loader.runtime.device import pick_device
    from lrs3_loader.train.ranks import process_group
    from lrs3_loader.train.repeats import train_and_describe
    from lrs3_loader.viz.preview.subject import model_of_run

    folder = args.source.open(args.launch.out, args.data, args.launch.device)
    size = args.train.size or ("demo" if args.source.demo else "real")
    config = replace(args.train, size=size, where=args.source.where(args.train.where))
    face_model = model_of_run(folder, None, Assets(args.data.assets)) if config.target == "exp" else None

    def make(each: Audio2MotionConfig) -> MotionTraining:
        return MotionTraining(folder, each, _sync_network(folder, each, args), face_model)

    with process_group(pick_device(args.launch.device)):  # one for the lip-sync networks and the generators
        text = train_and_describe(make, config, args.launch, args.source.repeats)
    if text is not None:
        print(text)
    return cli.EXIT_OK


def _sync_network(folder: RunFolder, config: Audio2MotionConfig, args: Args) -> Path | None:
    """Return the checkpoint of a lip-sync network; in a demo, train one that has not seen the held-out speakers."""
    if args.sync is not None or not args.source.demo or config.target != "idexp_lm3d":
        return args.sync
    from lrs3_loader.syncnet.objective import LipSync
    from lrs3_loader.syncnet.settings import TrainConfig
    from lrs3_loader.train.checkpoint import CHECKPOINT_FILE
    from lrs3_loader.train.loop import train

    settings = TrainConfig(
        epochs=_DEMO_SYNC_EPOCHS, held_out=config.held_out, fold=config.fold, seed=config.seed, where=config.where
    )
    launch = args.launch
    name = f"syncnet-{config.fold}"
    train(LipSync(folder, settings), replace(launch, out=launch.out / name, boards=launch.boards.inside(name)))
    return launch.out / name / CHECKPOINT_FILE
