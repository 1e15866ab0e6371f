"""The checked arguments of a ``ShardStream``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist

from lrs3_loader.stream.catalog import ClipFilter
from lrs3_loader.stream.schedule import BatchRule
from lrs3_loader.stream.tasks import Task


@dataclass(frozen=True)
class StreamSettings:
    """Arguments of ``ShardStream``, which documents them. Invalid ones raise ``ValueError``."""

    batch_size: int | None = None
    batch_frames: int | None = None
    shuffle: bool = True
    shuffle_buffer: int = 1024
    seed: int = 0
    min_frames: int = 0
    max_frames: int | None = None
    crop_frames: int | None = None
    select: Callable[[str], bool] | None = None
    equal_batches: bool = True
    follow: bool = False
    partial: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    num_parallel_shards: int | None = None
    poll_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "batch_frames",
            "shuffle_buffer",
            "max_frames",
            "crop_frames",
            "num_parallel_shards",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or self.poll_seconds <= 0:
            raise ValueError(f"seed must be >= 0 and poll_seconds > 0, got {self.seed} and {self.poll_seconds}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        if self.follow and self.partial:
            raise ValueError("follow waits for all shards of a run and partial for none: give one of the two")

    def identity(self) -> dict[str, Any]:
        """Return the arguments that must be equal when a saved position is loaded."""
        names = (
            "batch_size",
            "batch_frames",
            "shuffle",
            "shuffle_buffer",
            "seed",
            "crop_frames",
            "equal_batches",
            "follow",
        )
        return {name: getattr(self, name) for name in names}

    def rule(self, task: Task) -> BatchRule:
        """Return the rule that decides when a batch of this task is full."""
        if not task.batched:
            if self.batch_size is not None or self.batch_frames is not None:
                raise ValueError(
                    f"task {task.name!r} gives one sample at a time: leave out batch_size and batch_frames"
                )
            return BatchRule(1, None, task.multiple, self.shuffle)
        if (self.batch_size is None) == (self.batch_frames is None):
            raise ValueError(f"task {task.name!r} needs one of batch_size and batch_frames")
        return BatchRule(self.batch_size, self.batch_frames, task.multiple, self.shuffle)

    def clip_filter(self, task: Task) -> ClipFilter:
        """Return the filter of the clips that this task can use."""
        shortest = max(self.min_frames, task.min_frames)
        for name in ("max_frames", "crop_frames"):
            value = getattr(self, name)
            if value is not None and value < shortest:
                raise ValueError(f"{name} = {value} is below the {shortest} frames that task {task.name!r} needs")
        return ClipFilter(shortest, self.max_frames, self.crop_frames, self.select)


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
