"""Finds the samples that a ``ShardStream`` was asked for, and plans its batches."""

from __future__ import annotations

from typing import NamedTuple

from lrs3_loader.errors import RunError
from lrs3_loader.stream.error_policy import ErrorPolicy
from lrs3_loader.stream.follow import wait_for_run
from lrs3_loader.stream.indexed import IndexedBatches
from lrs3_loader.stream.plans import FollowedPlan, IndexedPlan, Plan
from lrs3_loader.stream.sequential import SequentialBatches
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.shared_state import SharedState
from lrs3_loader.stream.sources import Listing, Locations, list_sources, split_locations
from lrs3_loader.stream.tasks import Task

#: The batches of one rank. Both kinds have the same methods; their positions differ, but for ``epoch`` and ``to_json``.
BatchSource = IndexedBatches | SequentialBatches


class Opened(NamedTuple):
    """The parts that a stream is made of."""

    source: BatchSource
    shared: SharedState
    names: list[str]  # of the tars
    skipped_tars: dict[str, str]  # name -> reason


def open_stream(locations: Locations, settings: StreamSettings, task: Task, rank: int, world_size: int) -> Opened:
    """Find the samples of a stream and plan the batches of one rank.

    Raises:
        ValueError, RunError: see ``ShardStream``.
    """
    if settings.follow:
        followed = _follow(locations, settings, task, rank, world_size)
        names = [shard.name for shard in followed.folder.shards]
        return _opened(followed, names, {}, settings, task, rank, world_size)
    listing = list_sources(locations, partial=settings.partial, skip_errors=settings.on_error == "skip")
    if not listing.is_indexed:
        return _open_sequential(listing, settings, task, rank, world_size)
    plan = IndexedPlan(listing, settings.clip_filter(task), settings.rule(task), settings, world_size)
    if not len(plan.catalog):
        raise RunError(f"none of the {plan.catalog.num_filtered} clips in {locations} is long enough and selected")
    names = [source.name for source in listing.sources]
    opened = _opened(plan, names, listing.skipped, settings, task, rank, world_size)
    opened.source.num_batches(0)  # raises here, not later in a worker, if the ranks cannot have equally many
    return opened


def _opened(
    plan: Plan,
    names: list[str],
    skipped_tars: dict[str, str],
    settings: StreamSettings,
    task: Task,
    rank: int,
    world_size: int,
) -> Opened:
    shared = SharedState(plan.max_batches, len(names))
    error_policy = ErrorPolicy(settings.on_error == "skip", names, shared)
    source = IndexedBatches(plan, task.fields, rank, world_size, settings.equal_batches, shared, error_policy)
    return Opened(source, shared, names, skipped_tars)


def _follow(locations: Locations, settings: StreamSettings, task: Task, rank: int, world_size: int) -> FollowedPlan:
    found = split_locations(locations)
    if len(found) != 1 or found[0].startswith("pipe:") or found[0].endswith(".tar"):
        raise ValueError(f"follow=True takes the folder or URL of one run, got {locations}")
    if world_size > 1 and settings.equal_batches and not task.batched:
        raise ValueError(
            f"task {task.name!r} gives one sample at a time, and how many there will be is not known while a run is "
            "followed: ranks cannot be given equally many (equal_batches=False lets them end apart)"
        )
    folder = wait_for_run(found[0], settings.poll_seconds, log_waits=rank == 0)
    return FollowedPlan(folder, settings.clip_filter(task), settings.rule(task), settings)


def _open_sequential(listing: Listing, settings: StreamSettings, task: Task, rank: int, world_size: int) -> Opened:
    if world_size > 1 and settings.equal_batches:
        raise ValueError("tars without a ledger cannot be shared evenly by several ranks: pass equal_batches=False")
    names = [source.name for source in listing.sources]
    shared = SharedState(0, len(names))
    error_policy = ErrorPolicy(settings.on_error == "skip", names, shared)
    urls = [source.url for source in listing.sources]
    source = SequentialBatches(urls, task, settings, rank, world_size, error_policy)
    return Opened(source, shared, names, listing.skipped)
