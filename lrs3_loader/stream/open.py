"""Finds the samples that a ``ShardStream`` was asked for, and plans its batches."""

from __future__ import annotations

from lrs3_loader.errors import RunError
from lrs3_loader.selection.expression import known_names, unknown_name
from lrs3_loader.stream.agreement import require_agreement, require_unique_keys
from lrs3_loader.stream.indexed import IndexedBatches
from lrs3_loader.stream.plans import FollowedPlan, IndexedPlan, wait_for_run
from lrs3_loader.stream.sequential import SequentialBatches
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.shared_state import SharedState
from lrs3_loader.stream.sources import Locations, list_sources, published_source, require_fields, split_locations
from lrs3_loader.stream.where import Where

#: The batches of one rank. Both kinds have the same methods; their positions differ, but for ``epoch`` and ``to_json``.
BatchSource = IndexedBatches | SequentialBatches


def open_stream(locations: Locations, settings: StreamSettings) -> tuple[BatchSource, dict[str, str]]:
    """Find the samples of a stream and plan the batches of one rank.

    Returns:
        the batches, and by name the tars that were skipped, with the reason.

    Raises:
        ValueError, RunError: see ``ShardStream``.
    """
    if settings.follow:
        followed = _follow(locations, settings)
        names: list[str] = list(followed.folder.shards.names)
        shared = SharedState(followed.max_batches, names, settings.skips_errors)
        return IndexedBatches(followed, settings, shared), {}
    require_agreement(split_locations(locations))
    where = None if settings.where is None else Where(settings.where)
    listing = list_sources(locations, partial=settings.partial, skip_errors=settings.skips_errors, where=where)
    require_fields(listing.sources, settings.task.fields)
    names = [source.name for source in listing.sources]
    if not listing.is_indexed:
        if settings.world_size > 1 and settings.equal_batches:
            raise ValueError("tars without a ledger cannot be shared evenly by several ranks: pass equal_batches=False")
        if settings.weights is not None or settings.mix is not None:
            raise ValueError("weights and mix need to know all samples, which remote tars without a ledger do not tell")
        shared = SharedState(0, names, settings.skips_errors)
        urls = [source.url for source in listing.sources]
        return SequentialBatches(urls, settings, shared), listing.skipped
    require_unique_keys(listing.sources)
    plan = IndexedPlan(listing, settings)
    if not len(plan.catalog):
        raise RunError(f"none of the {plan.catalog.num_filtered} clips in {locations} is long enough and selected")
    batches = IndexedBatches(plan, settings, SharedState(plan.max_batches, names, settings.skips_errors))
    batches.num_batches(
        batches.epoch_start(0)
    )  # raises here, not later in a worker, if the ranks cannot have equally many
    return batches, listing.skipped


def _follow(locations: Locations, settings: StreamSettings) -> FollowedPlan:
    found = split_locations(locations)
    if len(found) != 1 or found[0].startswith("pipe:") or found[0].endswith(".tar"):
        raise ValueError(f"follow=True takes the folder or URL of one run, got {locations}")
    if settings.world_size > 1 and settings.equal_batches and not settings.task.batched:
        raise ValueError(
            f"task {settings.task.name!r} gives one sample at a time, and how many there will be is not known while a "
            "run is followed: ranks cannot be given equally many (equal_batches=False lets them end apart)"
        )
    folder = wait_for_run(found[0], settings)
    first, _ = published_source(folder, folder.shards[0])
    require_fields([] if first is None else [first], settings.task.fields)
    if settings.where is not None and (unknown := sorted(set(settings.where.names) - known_names().keys())):
        raise RunError(unknown_name(unknown[0], known_names()))
    return FollowedPlan(folder, settings)
