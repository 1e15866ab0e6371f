"""What a lip-sync training is of: aligned and shifted pairs, their cross-entropy, and how often the right offset wins.

The loss is the binary cross-entropy of the logits; half of the pairs belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import ShardStream
from lrs3_loader.stream.tasks import Item, SyncNet
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from lrs3_loader.syncnet.evaluate import READS, Accuracy, score_clip
from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.syncnet.settings import TrainConfig
from lrs3_loader.train.checkpoint import feature_models
from lrs3_loader.train.ranks import gather
from lrs3_loader.train.speakers import SpeakerSplit


class LipSync:
    """The ``Objective`` of ``train-syncnet``; ``lrs3_loader.train.objective`` says what its methods are for."""

    checkpoint = SyncNetCheckpoint
    best: tuple[str, Literal["highest", "lowest"]] = ("clip_accuracy", "highest")

    def __init__(self, folder: RunFolder, config: TrainConfig):
        """Prepare to train on a finished run; raises ``RunError`` if it has fewer than two speakers."""
        self.config = config
        self.features = feature_models(folder.record)
        self.split = SpeakerSplit.of(folder, config)
        self.speakers = self.split.trained_on
        self._run = folder.path

    def stream(self, rank: int, world_size: int) -> ShardStream:
        return ShardStream(
            self._run,
            SyncNet(self.config.pairs_per_clip, self.config.max_shift_frames),
            batch_size=self.config.batch_clips,
            seed=self.config.seed,
            select=self.split.is_trained_on,
            where=self.config.where,
            rank=rank,
            world_size=world_size,
        )

    def make_network(self, first: Sequence[Item]) -> SyncNetModel:
        network = SyncNetModel(first[0]["hubert"].shape[-1], self.config.width)
        network.set_normalization(first)
        return network

    def loss(self, network: SyncNetModel, batch: Item) -> dict[str, torch.Tensor]:
        logits = network(batch["mouth"], batch["hubert"])
        return {"loss": F.binary_cross_entropy_with_logits(logits, batch["label"])}

    def evaluate(self, network: SyncNetModel) -> Accuracy:
        stream = ShardStream(
            self._run,
            READS,
            shuffle=False,
            equal_batches=False,
            select=self.split.is_held_out,
            where=self.config.where,
        )
        scored = gather([score_clip(network, sample) for sample in stream])
        try:
            return Accuracy.of(sorted(scored, key=lambda clip: clip.key))
        except ValueError as error:
            raise RunError(f"cannot evaluate on the held-out speakers of {self._run}: {error}") from error
