"""From what the user asks for to what a stream passes over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from lrs3_loader.errors import RunError
from lrs3_loader.stream.error_policy import ErrorPolicy
from lrs3_loader.stream.follow import wait_for_run
from lrs3_loader.stream.indexed import Cursor, IndexedBatches, LoadedBatch
from lrs3_loader.stream.plans import FollowedPlan, IndexedPlan, Plan
from lrs3_loader.stream.sequential import SequentialBatches
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.shared_state import SharedState
from lrs3_loader.stream.sources import Listing, Locations, list_sources, split_locations
from lrs3_loader.stream.tasks import Task


class BatchSource(Protocol):
    """One rank's passes over whatever a stream reads. Positions are its own kind: anything with an ``epoch``."""

    unit_lost: str  # what is counted of a bad tar

    @property
    def num_filtered(self) -> int | None: ...

    def identity(self) -> dict[str, Any]:
        """What a saved position depends on."""
        ...

    def fresh(self, epoch: int) -> Any:
        """The position at the beginning of an epoch."""
        ...

    def restore(self, plain: dict[str, Any], identity: dict[str, Any]) -> Any:
        """A saved position, saved along with that identity."""
        ...

    def num_batches(self, epoch: int) -> int:
        """Batches of this rank in a whole pass; ``TypeError`` where it is not known."""
        ...

    def load_batches(self, start: Any, worker: int, num_workers: int) -> Iterator[LoadedBatch]:
        """What one worker has left from a position on, in order."""
        ...

    def after(self, start: Any, cursor: Cursor) -> Any:
        """The position once the batch with this cursor has come out of a pass begun at ``start``."""
        ...

    def within(self, start: Any, cursor: Cursor) -> Any:
        """The same for one worker by itself, whose state is kept along with those of the others."""
        ...


class Opened(NamedTuple):
    """What a stream is made of."""

    source: BatchSource
    shared: SharedState
    names: list[str]  # of the tars
    left_out: dict[str, str]  # bad tars by name, with the reason


def open_stream(locations: Locations, settings: StreamSettings, task: Task, rank: int, world_size: int) -> Opened:
    """Find what there is and plan it.

    Raises:
        ValueError, RunError: as ``ShardStream``.
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
    opened = _opened(plan, names, listing.bad, settings, task, rank, world_size)
    opened.source.num_batches(0)  # what cannot be shared evenly is refused here, not in a worker later on
    return opened


def _opened(
    plan: Plan,
    names: list[str],
    left_out: dict[str, str],
    settings: StreamSettings,
    task: Task,
    rank: int,
    world_size: int,
) -> Opened:
    shared = SharedState(plan.max_batches, len(names))
    error_policy = ErrorPolicy(settings.on_error == "skip", names, shared)
    source = IndexedBatches(plan, task.fields, rank, world_size, settings.equal_batches, shared, error_policy)
    return Opened(source, shared, names, left_out)


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
    return Opened(source, shared, names, listing.bad)
