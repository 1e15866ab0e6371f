"""The checked arguments of a ``ShardStream``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist

from lrs3_loader.selection.expression import Expression
from lrs3_loader.stream.schedule import BatchRule
from lrs3_loader.stream.tasks import Task

_AT_LEAST_ONE = ("batch_size", "batch_frames", "shuffle_buffer", "max_frames", "crop_frames", "num_parallel_shards")
_IDENTITY = (
    "batch_size",
    "batch_frames",
    "shuffle",
    "shuffle_buffer",
    "seed",
    "crop_frames",
    "equal_batches",
    "follow",
)


@dataclass(frozen=True)
class StreamSettings:
    """Arguments of ``ShardStream``, which documents them, and its rank. Invalid ones raise ``ValueError``."""

    task: Task
    batch_size: int | None
    batch_frames: int | None
    shuffle: bool
    shuffle_buffer: int
    seed: int
    min_frames: int
    max_frames: int | None
    crop_frames: int | None
    select: Callable[[str], bool] | None
    where: Expression | None
    equal_batches: bool
    follow: bool
    partial: bool
    on_error: Literal["raise", "skip"]
    num_parallel_shards: int | None
    poll_seconds: float
    rank: int
    world_size: int
    weights: Any = None  # see ``stream.weights.Weights``
    mix: Sequence[float] | None = None
    num_locations: int = 1
    offsets: Mapping[str, int] | None = None  # frames by which the audio of a clip is late, by key

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or self.poll_seconds <= 0:
            raise ValueError(f"seed must be >= 0 and poll_seconds > 0, got {self.seed} and {self.poll_seconds}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        if self.follow and (self.weights is not None or self.mix is not None):
            raise ValueError("weights and mix need all samples beforehand, which follow=True does not know")
        if self.follow and self.partial:
            raise ValueError("follow waits for all shards of a run and partial for none: give one of the two")
        given = (self.batch_size is not None) + (self.batch_frames is not None)
        if given and not self.task.batched:
            raise ValueError(
                f"task {self.task.name!r} gives one sample at a time: leave out batch_size and batch_frames"
            )
        if self.task.batched and given != 1:
            raise ValueError(f"task {self.task.name!r} needs one of batch_size and batch_frames")
        if self.crop_frames is not None and getattr(self.task, "whole_clips", False):
            raise ValueError(f"task {self.task.name!r} reads whole clips: leave out crop_frames, or give max_frames")
        for name in ("max_frames", "crop_frames"):
            value = getattr(self, name)
            if value is not None and value < self.shortest:
                raise ValueError(
                    f"{name} = {value} is below the {self.shortest} frames that task {self.task.name!r} needs"
                )

    @property
    def shortest(self) -> int:
        """Clips with fewer 25 fps frames are skipped."""
        return max(self.min_frames, self.task.min_frames)

    @property
    def longest(self) -> int:
        """Clips with more 25 fps frames are cut to this many."""
        return self.crop_frames or sys.maxsize

    @property
    def skips_errors(self) -> bool:
        return self.on_error == "skip"

    def identity(self) -> dict[str, Any]:
        """Return the arguments that must be equal when a saved position is loaded."""
        identity = {"task": self.task.name, **{name: getattr(self, name) for name in _IDENTITY}}
        return identity if self.where is None else {**identity, "where": self.where.text}

    def frames_left(self, key: str, num_frames: int) -> int:
        """Return how many frames of a clip are left once its audio-video offset is undone; -1 if none are."""
        offset = abs(self.offsets.get(key, 0)) if self.offsets is not None else 0
        return num_frames if offset == 0 else num_frames - offset if num_frames > offset else -1

    def selects(self, key: str, num_frames: int) -> bool:
        """Return whether a clip belongs to the stream."""
        fits = num_frames >= self.shortest and (self.max_frames is None or num_frames <= self.max_frames)
        return fits and (self.select is None or self.select(key))

    @property
    def rule(self) -> BatchRule:
        """The rule that decides when a batch is full."""
        batch_size = self.batch_size if self.task.batched else 1
        return BatchRule(batch_size, self.batch_frames, self.task.multiple, self.shuffle)


def resolve_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks: those given, else those of ``torch.distributed``, of torchrun, or (0, 1)."""
    if (rank is None) != (world_size is None):
        raise ValueError("give both rank and world_size, or neither")
    if rank is None or world_size is None:
        if dist.is_available() and dist.is_initialized():
            rank, world_size = dist.get_rank(), dist.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size - 1, got {rank} of {world_size}")
    return rank, world_size
