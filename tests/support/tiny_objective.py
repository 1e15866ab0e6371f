"""The smallest training: a line from speech features to landmarks, with dropout and noise in its loss.

torchrun ... tiny_objective.py RUN OUT CLIPS NOISE [EPOCHS...]: train in OUT, once for each number of epochs;
without any, in OUT/repeat-0 and OUT/repeat-1
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import Audio2Motion, ShardStream
from lrs3_loader.stream.tasks import Item
from lrs3_loader.train.checkpoint import Checkpoint
from lrs3_loader.train.loop import train
from lrs3_loader.train.ranks import gather, process_group
from lrs3_loader.train.repeats import train_repeats
from lrs3_loader.train.settings import TrainingConfig, TrainLaunch
from lrs3_loader.train.speakers import SpeakerSplit


@dataclass(frozen=True)
class TinyConfig(TrainingConfig):
    epochs: int = 3
    batch_clips: int = 2
    noise: float = 0.5
    held_out: float = 0.25


class TinyCheckpoint(Checkpoint):
    training = "tiny"


@dataclass(frozen=True)
class Error:
    """The mean squared error."""

    error: float
    num_clips: int

    @property
    def figures(self) -> dict[str, float]:
        return {"error": self.error}

    def details(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        return f"error {self.error:.3f}"


class TinyObjective:
    checkpoint = TinyCheckpoint
    best: tuple[str, Literal["highest", "lowest"]] = ("error", "lowest")

    def __init__(self, folder: RunFolder, config: TinyConfig):
        self.config = config
        self.features: dict[str, Any] = {"speech": "made up"}
        self.split = SpeakerSplit.of(folder, config)
        self.speakers = self.split.trained_on
        self.folder = folder
        self.draws: list[float] = []  # the first random number of each loss
        self.products: set[torch.dtype] = set()  # that products of matrices came out in

    def stream(self, rank: int, world_size: int) -> ShardStream:
        return ShardStream(
            self.folder.path,
            Audio2Motion(fields=("hubert", "idexp_lm3d")),
            batch_size=self.config.batch_clips,
            seed=self.config.seed,
            select=self.split.is_trained_on,
            rank=rank,
            world_size=world_size,
        )

    def make_network(self, first: Sequence[Item]) -> nn.Module:
        dropout = nn.Dropout(0.3 if self.config.noise else 0.0)
        return nn.Sequential(dropout, nn.Linear(first[0]["hubert"].shape[-1], 6))

    def loss(self, network: nn.Module, batch: Item) -> dict[str, torch.Tensor]:
        predicted, target = network(batch["hubert"][:, ::2] / 20), batch["idexp_lm3d"][..., :6] / 20
        self.products.add(predicted.dtype)
        noise = self.config.noise * torch.randn_like(target)
        self.draws.append(float(noise[0, 0, 0]))
        squares = (predicted.float() - target - noise).square().mean(-1) * batch["y_mask"]
        by_clip = squares.sum(1) / batch["y_lengths"]
        return {"loss": by_clip.mean(), "worst": by_clip.max()}

    def evaluate(self, network: nn.Module) -> Error:
        assert not network.training
        stream = ShardStream(
            self.folder.path,
            Audio2Motion(fields=("hubert", "idexp_lm3d")),
            batch_size=1,
            shuffle=False,
            equal_batches=False,
            select=self.split.is_held_out,
        )
        errors = gather([(batch["keys"][0], float(self.loss(network, batch)["loss"])) for batch in stream])
        return Error(sum(error for _, error in sorted(errors)) / len(errors), len(errors))


def main() -> None:
    run, out, clips, noise, *epochs = sys.argv[1:]
    folder = RunFolder.open(run)
    config = TinyConfig(epochs=1, batch_clips=int(clips), noise=float(noise), held_out=0.5)
    launch = TrainLaunch(Path(out), device="cpu", checkpoint_steps=1, evaluate_epochs=100)
    if not epochs:
        train_repeats(partial(TinyObjective, folder), config, launch, 2)
        return
    with process_group(torch.device("cpu")):
        for number in epochs:
            found = train(TinyObjective(folder, replace(config, epochs=int(number))), launch)
            if found is not None:
                sys.stdout.write(f"{found.describe()}\n")


if __name__ == "__main__":
    main()
