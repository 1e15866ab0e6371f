"""Trains the network on aligned and shifted pairs from the shards of a run, on one or several ranks.

OUT/
  checkpoint.pt      the latest state, from which a training resumes, also within an epoch
  scalars.jsonl      step, loss, and at each evaluation the accuracy on the held-out speakers
  evaluation.json    the last evaluation, by offset

The loss is the binary cross-entropy of the logits; half of the pairs belong together. Each rank has its own batches,
and gradients are averaged over the ranks (``DistributedDataParallel``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import make_folder, write_result
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.record import differences
from lrs3_loader.runtime.boards import Boards
from lrs3_loader.runtime.device import pick_device
from lrs3_loader.stream import ShardStream
from lrs3_loader.stream.tasks import SyncNet
from lrs3_loader.syncnet.checkpoint import CHECKPOINT_FILE, SyncNetCheckpoint, feature_models
from lrs3_loader.syncnet.evaluate import CHANCE, OFFSETS, READS, Accuracy, score_clip
from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.syncnet.scalars import EVALUATION_FILE, Scalars
from lrs3_loader.syncnet.settings import TrainConfig, TrainLaunch
from lrs3_loader.syncnet.speakers import hold_out, is_spoken_by

logger = logging.getLogger(__name__)

_NORMALIZATION_BATCHES = 32


def train_syncnet(run: Path, config: TrainConfig, launch: TrainLaunch) -> Accuracy | None:
    """Train on a finished run, or resume a training, and evaluate on the held-out speakers.

    Returns:
        the last evaluation on rank 0, None on other ranks.

    Raises:
        RunError: there is no such run, it has fewer than two speakers or no clip long enough to evaluate on, the
            checkpoint has other settings or data, or the loss is not finite.
    """
    launch.boards.require()
    torch.set_num_threads(launch.threads)
    device = pick_device(launch.device)
    with _process_group(device):
        training = Training(RunFolder.open(run), config, launch, device)
        try:
            accuracy = training.run()
        except KeyboardInterrupt:
            logger.info("stopped at step %d; run the same command again to go on", training.step)
            raise
    return accuracy if training.rank == 0 else None


class Training:
    """The training on one rank."""

    def __init__(self, folder: RunFolder, config: TrainConfig, launch: TrainLaunch, device: torch.device):
        self.config, self.launch, self.device = config, launch, device
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._run, self._features = folder.path, feature_models(folder.record)
        speakers = {clip.speaker for shard in folder.shards for clip in shard.clips}
        try:
            self.held_out = hold_out(speakers, config.held_out, config.fold)
        except ValueError as error:
            raise RunError(f"cannot train on {folder.path}: {error}") from error
        self.trained_on = frozenset(speakers) - self.held_out
        self.stream = self._pairs(self.rank, self.world_size)
        self._position: dict[str, Any] = {}  # state of the stream as last saved or loaded
        self._make_network()
        self.step, self.evaluated_step = 0, -1
        make_folder(launch.out)
        if (launch.out / CHECKPOINT_FILE).exists():
            self._resume(SyncNetCheckpoint.load(launch.out / CHECKPOINT_FILE))

    def run(self) -> Accuracy:
        """Train for the remaining epochs; return the last evaluation."""
        accuracy = None
        with self._scalars() as scalars, self._averaged_gradients():
            for epoch in range(self.stream.epoch, self.config.epochs):
                self.stream.set_epoch(epoch)
                batch = self._epoch(epoch, scalars)
                due = (epoch + 1) % self.launch.evaluate_epochs == 0 or epoch + 1 == self.config.epochs
                if due and self.step != self.evaluated_step:
                    accuracy = self._evaluation(epoch, scalars)
                    self._save(batch)
        return self.evaluate() if accuracy is None else accuracy

    @contextmanager
    def _scalars(self) -> Iterator[Scalars | None]:
        """Open what metrics are written to on rank 0; the other ranks write nothing."""
        if self.rank != 0:
            yield None
            return
        out, settings = self.launch.out, asdict(self.config)
        identity = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
        boards = Boards(self.launch.boards, name=out.name, identity=identity, settings=settings, first_step=self.step)
        with boards, Scalars(out, self.step, boards) as scalars:
            yield scalars

    def _epoch(self, epoch: int, scalars: Scalars | None) -> dict[str, Any] | None:
        """Train on the rest of an epoch; return its last batch, or None if nothing was left."""
        batch, started, total, count = None, time.monotonic(), torch.zeros((), device=self.device), 0
        for batch in DataLoader(self.stream, batch_size=None, num_workers=self.launch.read_workers):
            total += self._step(batch)
            count += 1
            if self.step % self.launch.checkpoint_steps == 0:
                self._require_finite(total)
                self._save(batch)
        if count:
            self._require_finite(total)
            loss = total / count / self.world_size
            if self.world_size > 1:
                dist.all_reduce(loss)
            if scalars is not None:
                rate = count / (time.monotonic() - started)
                scalars.write(self.step, {"epoch": epoch + 1, "loss": float(loss), "steps_per_second": round(rate, 2)})
        return batch

    def _step(self, batch: dict[str, Any]) -> torch.Tensor:
        mouth, hubert, label = (batch[name].to(self.device, non_blocking=True) for name in ("mouth", "hubert", "label"))
        loss = F.binary_cross_entropy_with_logits(self._parallel(mouth, hubert), label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _require_finite(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise RunError(f"the loss is not finite at step {self.step}: begin again with a lower --learning-rate")

    def evaluate(self) -> Accuracy:
        """Evaluate on the held-out speakers, whose clips are divided among the ranks; every rank gets the result.

        Raises:
            RunError: none of their clips is long enough.
        """
        selected, where = partial(is_spoken_by, self.held_out), self.config.where
        stream = ShardStream(self._run, READS, shuffle=False, equal_batches=False, select=selected, where=where)
        self.model.eval()
        mine = [score_clip(self.model, sample) for sample in stream]
        self.model.train()
        parts = [mine] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(parts, mine)
        try:
            return Accuracy.of(sorted((clip for part in parts for clip in part), key=lambda clip: clip.key))
        except ValueError as error:
            raise RunError(f"cannot evaluate on the held-out speakers of {self._run}: {error}") from error

    def _evaluation(self, epoch: int, scalars: Scalars | None) -> Accuracy:
        accuracy = self.evaluate()
        self.evaluated_step = self.step
        if scalars is not None:
            figures = {"window_accuracy": accuracy.by_window, "clip_accuracy": accuracy.by_clip}
            scalars.write(self.step, {"epoch": epoch + 1, **figures})
            with write_result(self.launch.out / EVALUATION_FILE) as file:
                plain = {"step": self.step, "offsets": OFFSETS.tolist(), **asdict(accuracy)}
                file.write((json.dumps(plain, indent=1) + "\n").encode())
            logger.info(
                "epoch %d of %d, step %d: %s", epoch + 1, self.config.epochs, self.step, describe_accuracy(accuracy)
            )
        return accuracy

    def _pairs(self, rank: int, world_size: int) -> ShardStream:
        pairs = SyncNet(self.config.pairs_per_clip, self.config.max_shift_frames)
        return ShardStream(
            self._run,
            pairs,
            batch_size=self.config.batch_clips,
            seed=self.config.seed,
            select=partial(is_spoken_by, self.trained_on),
            where=self.config.where,
            rank=rank,
            world_size=world_size,
        )

    def _make_network(self) -> None:
        """Make the network, equal on all ranks: the same initial weights, and inputs normalised by the same batches."""
        first = list(islice(self._pairs(0, 1), _NORMALIZATION_BATCHES))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model = SyncNetModel(first[0]["hubert"].shape[-1], self.config.width)
        self.model.set_normalization(first)
        self.model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self._parallel: nn.Module = self.model

    @contextmanager
    def _averaged_gradients(self) -> Iterator[None]:
        """Average gradients over the ranks in all backward passes within the block.

        At its end, the reducer is released while the process group still exists: as the last owner of a gloo group, it
        would wait, holding the interpreter lock, for a thread that may need that lock to end.
        """
        if self.world_size > 1:
            self._parallel = DistributedDataParallel(self.model)
        try:
            yield
        finally:
            self._parallel = self.model

    def _resume(self, checkpoint: SyncNetCheckpoint) -> None:
        """Resume a training.

        Raises:
            RunError: it has other settings, features or speakers; the message names the difference.
        """
        # Checkpoints of earlier versions lack the options that came later.
        config = {**asdict(TrainConfig()), **checkpoint.config, "epochs": self.config.epochs}
        then = {"config": config, "features": checkpoint.features}
        now = {"config": asdict(self.config), "features": self._features}
        lines = differences(then, now)
        if checkpoint.speakers != sorted(self.trained_on):
            lines.append("other speakers")
        if lines:
            raise RunError(
                f"{self.launch.out} holds a training with other settings (there -> asked for): {'; '.join(lines)}. "
                "Give the same settings to go on with it, or another --out"
            )
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.stream.load_state_dict(checkpoint.stream)
        self._position = checkpoint.stream
        self.step, self.evaluated_step = checkpoint.step, checkpoint.evaluated_step
        if self.rank == 0:
            logger.info("going on from step %d, in epoch %d", self.step, self.stream.epoch + 1)

    def _save(self, batch: dict[str, Any] | None) -> None:
        """Save the state after a batch (None: after the batch of the loaded state); rank 0 does it for all ranks."""
        if self.rank != 0:
            return
        if batch is not None:
            self._position = self.stream.state_dict(batch)
        SyncNetCheckpoint(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            stream=self._position,
            step=self.step,
            evaluated_step=self.evaluated_step,
            config=asdict(self.config),
            hubert_width=self.model.hubert_width,
            features=self._features,
            speakers=sorted(self.trained_on),
        ).save(self.launch.out / CHECKPOINT_FILE)


def describe_accuracy(accuracy: Accuracy) -> str:
    """Describe an evaluation in one line."""
    return (
        f"right offset of {len(OFFSETS)} on top in {100 * accuracy.by_window:.1f} % of {accuracy.num_windows} windows, "
        f"{100 * accuracy.by_clip:.1f} % of {accuracy.num_clips} clips (held-out speakers; chance {100 * CHANCE:.1f} %)"
    )


@contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """Initialise ``torch.distributed`` if torchrun has started this process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
