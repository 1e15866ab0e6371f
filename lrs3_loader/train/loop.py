"""Trains a network on the shards of a run, on one or several ranks, and resumes exactly.

OUT/
  checkpoint.pt      the latest state, from which a training resumes, also within an epoch
  best.pt            the state at the best evaluation so far
  scalars.jsonl      the mean loss since the line before, and the figures of each evaluation
  evaluation.json    the last evaluation

Each rank has its own batches, and gradients are averaged over the ranks (``DistributedDataParallel``). What is trained,
and how it is judged, is an ``Objective``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any, Generic

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import make_folder, write_result
from lrs3_loader.run.record import differences
from lrs3_loader.runtime.boards import Boards
from lrs3_loader.runtime.device import pick_device
from lrs3_loader.runtime.memory import disable_malloc_trim
from lrs3_loader.runtime.progress import with_progress
from lrs3_loader.stream.tasks import Item
from lrs3_loader.train.checkpoint import BEST_FILE, CHECKPOINT_FILE, Checkpoint, feature_differences
from lrs3_loader.train.early_stop import BestSoFar
from lrs3_loader.train.meter import Meter
from lrs3_loader.train.objective import AnyEvaluation, AnyNetwork, Objective
from lrs3_loader.train.ranks import process_group, rank_and_world_size, wait_for_all
from lrs3_loader.train.scalars import EVALUATION_FILE, Scalars
from lrs3_loader.train.settings import ENDING_OPTIONS, TrainLaunch

logger = logging.getLogger(__name__)

FIRST_BATCHES = 32  # that a network is made from


def train(objective: Objective[AnyNetwork, AnyEvaluation], launch: TrainLaunch) -> AnyEvaluation | None:
    """Train, or resume a training, and evaluate on the held-out speakers.

    Returns:
        on rank 0, the evaluation of the last state, or with ``patience`` that of the best; None on other ranks.

    Raises:
        RunError: the folder holds a training with other settings or data, there is nothing to evaluate on, or the loss
            is not finite.
    """
    launch.boards.require()
    disable_malloc_trim()  # batches of the same sizes come again and again, in the reading processes, too
    torch.set_num_threads(launch.threads)
    device = pick_device(launch.device)
    with process_group(device), torch.random.fork_rng(devices=[]):
        training = Training(objective, launch, device)
        try:
            evaluation = training.run()
        except KeyboardInterrupt:
            logger.info("stopped at step %d; run the same command again to go on", training.step)
            raise
        wait_for_all()
    return evaluation if training.rank == 0 else None


class Training(Generic[AnyNetwork, AnyEvaluation]):
    """The training on one rank. It seeds torch's default generators."""

    def __init__(self, objective: Objective[AnyNetwork, AnyEvaluation], launch: TrainLaunch, device: torch.device):
        self.objective, self.config, self.launch, self.device = objective, objective.config, launch, device
        self.rank, self.world_size = rank_and_world_size()
        self.stream = objective.stream(self.rank, self.world_size)
        self._position: dict[str, Any] = {}  # state of the stream as last saved or loaded
        first = list(islice(objective.stream(0, 1), FIRST_BATCHES))
        torch.manual_seed(self.config.seed)
        self.network = objective.make_network(first).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self._loss: nn.Module = _Loss(objective, self.network)
        self._meter = Meter()
        self.step, self.evaluated_step = 0, -1
        self.best: BestSoFar | None = None
        make_folder(launch.out)
        if (launch.out / CHECKPOINT_FILE).exists():
            self._resume(objective.checkpoint.load(launch.out / CHECKPOINT_FILE))

    def run(self) -> AnyEvaluation:
        """Train for the remaining epochs; return the evaluation of the network that counts."""
        evaluations: list[AnyEvaluation] = []
        with self._scalars() as scalars, self._averaged_gradients():
            for _ in self._with_progress(self._steps(scalars, evaluations)):
                pass
        if self.config.patience is not None and self.best is not None and self.best.step != self.step:
            logger.info("the evaluation at step %d was the best: %s holds that network", self.best.step, BEST_FILE)
            self.network.load_state_dict(self.objective.checkpoint.load(self.launch.out / BEST_FILE).model)
            return self.evaluate()
        return evaluations[-1] if evaluations else self.evaluate()

    def evaluate(self) -> AnyEvaluation:
        """Evaluate the present weights on the held-out speakers; every rank gets the same result."""
        _seed(self.config.seed)
        self.network.eval()
        with torch.no_grad():
            evaluation = self.objective.evaluate(self.network)
        self.network.train()
        return evaluation

    def _steps(self, scalars: Scalars | None, evaluations: list[AnyEvaluation]) -> Iterator[None]:
        """Train for the remaining epochs; yield before each step, and add each evaluation to the list."""
        for epoch in range(self.stream.epoch, self.config.epochs):
            if self.best is not None and self.best.is_over(self.config.patience):
                return
            self.stream.set_epoch(epoch)
            batch = None
            self._meter.start()
            for batch in self._meter.timed(
                DataLoader(self.stream, batch_size=None, num_workers=self.launch.read_workers)
            ):
                yield
                self._step(batch)
                if self.step % self.launch.checkpoint_steps == 0:
                    self._report(epoch, scalars)
                    self._save(batch)
            self._report(epoch, scalars)
            due = (epoch + 1) % self.launch.evaluate_epochs == 0 or epoch + 1 == self.config.epochs
            if due and self.step != self.evaluated_step:
                evaluations.append(self._evaluation(epoch, batch, scalars))

    def _with_progress(self, steps: Iterator[None]) -> Iterator[None]:
        if self.rank != 0 or self.stream.epoch >= self.config.epochs:
            return steps
        left = self.stream.num_batches_left + (self.config.epochs - self.stream.epoch - 1) * len(self.stream)
        return with_progress(steps, self.step + left, "steps", logger, first=self.step)

    def _step(self, batch: Item) -> None:
        batch = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        _seed(self.config.seed, self.step, self.rank)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            terms = self._loss(batch)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        if self.config.clip_norm is not None:
            terms["gradient_norm"] = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self._meter.add(terms)
        self.step += 1

    def _report(self, epoch: int, scalars: Scalars | None) -> None:
        """Write the means of the steps since the last report; all ranks call it after the same steps.

        Raises:
            RunError: the loss or a weight is not finite. The weights are equal on all ranks, and so is the mean loss,
                so all of them end, and no checkpoint has such weights.
        """
        figures = self._meter.read()
        if not figures:
            return
        weights = torch.stack([weight.detach().abs().max() for weight in self.network.parameters()])
        if not (np.isfinite(figures["loss"]) and torch.isfinite(weights).all()):
            raise RunError(f"the loss is not finite at step {self.step}: begin again with a lower --learning-rate")
        if scalars is not None:
            scalars.write(self.step, {"epoch": epoch + 1, **figures})

    def _evaluation(self, epoch: int, batch: Item | None, scalars: Scalars | None) -> AnyEvaluation:
        """Evaluate, save the state, and keep it as the best one if it is."""
        evaluation = self.evaluate()
        self.evaluated_step = self.step
        name, good = self.objective.best
        value = evaluation.figures[name]
        self.best = BestSoFar(value, self.step) if self.best is None else self.best.then(value, self.step, good)
        if scalars is not None:
            scalars.write(self.step, {"epoch": epoch + 1, **evaluation.figures})
            with write_result(self.launch.out / EVALUATION_FILE) as file:
                file.write((json.dumps({"step": self.step, **evaluation.details()}, indent=1) + "\n").encode())
            logger.info("epoch %d of %d, step %d: %s", epoch + 1, self.config.epochs, self.step, evaluation.describe())
        if self.best.step == self.step:
            self._save(batch, BEST_FILE)
        self._save(batch)
        return evaluation

    @contextmanager
    def _scalars(self) -> Iterator[Scalars | None]:
        """Open what figures are written to on rank 0; the other ranks write nothing."""
        if self.rank != 0:
            yield None
            return
        out, settings = self.launch.out, asdict(self.config)
        identity = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
        boards = Boards(self.launch.boards, name=out.name, identity=identity, settings=settings, first_step=self.step)
        with boards, Scalars(out, self.step, boards) as scalars:
            yield scalars

    @contextmanager
    def _averaged_gradients(self) -> Iterator[None]:
        """Average gradients over the ranks in all backward passes within the block.

        At its end, the reducer is released while the process group still exists: as the last owner of a gloo group, it
        would wait, holding the interpreter lock, for a thread that may need that lock to end.
        """
        alone = self._loss
        if self.world_size > 1:
            self._loss = DistributedDataParallel(alone)
        try:
            yield
        finally:
            self._loss = alone

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Resume a training.

        Raises:
            RunError: it has other settings, features or speakers; the message names the difference.
        """
        config = asdict(self.config)
        # Checkpoints of earlier versions lack the options that came later, which had their present defaults.
        then = {**asdict(type(self.config)()), **checkpoint.config, **{name: config[name] for name in ENDING_OPTIONS}}
        lines = differences({"config": then}, {"config": config})
        lines += [f"features.{line}" for line in feature_differences(checkpoint.features, self.objective.features)]
        if checkpoint.speakers != sorted(self.objective.speakers):
            lines.append("other speakers")
        if lines:
            raise RunError(
                f"{self.launch.out} holds a training with other settings (there -> asked for): {'; '.join(lines)}. "
                "Give the same settings to go on with it, or another --out"
            )
        self.network.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.stream.load_state_dict(checkpoint.stream)
        self._position = checkpoint.stream
        self.step, self.evaluated_step = checkpoint.step, checkpoint.evaluated_step
        self.best = None if checkpoint.best is None else BestSoFar(**checkpoint.best)
        if self.rank == 0:
            logger.info("going on from step %d, in epoch %d", self.step, self.stream.epoch + 1)

    def _save(self, batch: Item | None, name: str = CHECKPOINT_FILE) -> None:
        """Save the state after a batch (None: after the batch of the loaded state); rank 0 does it for all ranks."""
        if self.rank != 0:
            return
        if batch is not None:
            self._position = self.stream.state_dict(batch)
        self.objective.checkpoint(
            model=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            stream=self._position,
            step=self.step,
            evaluated_step=self.evaluated_step,
            config=asdict(self.config),
            features=dict(self.objective.features),
            speakers=sorted(self.objective.speakers),
            best=None if self.best is None else asdict(self.best),
        ).save(self.launch.out / name)


class _Loss(nn.Module):
    """The loss of an objective as a module, so that ``DistributedDataParallel`` sees one call for each step."""

    def __init__(self, objective: Objective[Any, Any], network: nn.Module):
        super().__init__()
        self.network = network
        self._objective = objective

    def forward(self, batch: Item) -> dict[str, torch.Tensor]:
        return self._objective.loss(self.network, batch)


def _seed(*numbers: int) -> None:
    """Seed torch's default generators from several numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    torch.manual_seed(int(seed))
