"""What a training is of: the interface between the loop, which is the same for all, and one network with its loss.

``lrs3_loader.syncnet.objective`` is an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import nn

from lrs3_loader.stream import ShardStream
from lrs3_loader.stream.tasks import Item
from lrs3_loader.train.checkpoint import Checkpoint
from lrs3_loader.train.settings import TrainingConfig


class Evaluation(Protocol):
    """How good a network is on the clips of speakers that it was not trained on."""

    @property
    def num_clips(self) -> int:
        """Number of clips that it was evaluated on."""

    @property
    def figures(self) -> dict[str, float]:
        """The figures by name: for ``scalars.jsonl``, the boards, ``repeats.json`` and early stopping."""

    def details(self) -> dict[str, Any]:
        """Return all that is known, as JSON values, for ``evaluation.json``."""

    def describe(self) -> str:
        """Describe it in one line."""


AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)
AnyEvaluation = TypeVar("AnyEvaluation", bound=Evaluation)
AnyEvaluation_co = TypeVar("AnyEvaluation_co", bound=Evaluation, covariant=True)


class Objective(Protocol[AnyNetwork, AnyEvaluation_co]):
    """A network, the batches it is trained on, its loss and its evaluation. Each rank has one."""

    @property
    def config(self) -> TrainingConfig:
        """The options that decide the weights."""

    @property
    def features(self) -> Mapping[str, Any]:
        """The models that the features come from, which must be equal when the training is resumed."""

    @property
    def speakers(self) -> frozenset[str]:
        """The speakers of the clips that it is trained on."""

    @property
    def checkpoint(self) -> type[Checkpoint]:
        """The class of its checkpoints, which names the training and makes the network of one."""

    @property
    def best(self) -> tuple[str, Literal["highest", "lowest"]]:
        """The figure of an evaluation by which the best network is chosen, and which end of it is good."""

    def stream(self, rank: int, world_size: int) -> ShardStream:
        """Return the batches of a rank. Their seed is ``config.seed``."""

    def make_network(self, first: Sequence[Item]) -> AnyNetwork:
        """Make the network on the CPU.

        It comes out equal on all ranks: they are called with the same batches, and with torch's generator seeded alike.

        Args:
            first: the first batches that a single rank would get, at most ``loop.FIRST_BATCHES``: for the sizes of
                the inputs, and for the means and deviations that normalise them.
        """

    def loss(self, network: AnyNetwork, batch: Item) -> dict[str, torch.Tensor]:
        """Return the loss of a batch, as a scalar named ``"loss"``, and other scalars that are only recorded.

        The tensors of the batch are on the device. Mixed precision is on if it was asked for. Random numbers come from
        torch's default generators (``torch.randn``, dropout), which are seeded before each call from the seed, the step
        and the rank, so that a resumed training draws the same. Each parameter must take part in the loss.
        """

    def evaluate(self, network: AnyNetwork) -> AnyEvaluation_co:
        """Evaluate a network, in evaluation mode and without gradients, on the held-out speakers.

        The result must be equal on all ranks: each evaluates some clips, and ``ranks.gather`` joins the lists of all.
        Torch's default generators are seeded alike before each evaluation, and the precision is float32.

        Raises:
            RunError: there is nothing to evaluate on.
        """
