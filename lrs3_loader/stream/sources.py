"""Finds the tars of a stream and their samples, in runs or given one by one, local or remote.

The ledgers of a run tell the samples of each tar and their lengths before a tar is opened. The headers of local tars
without a ledger are read once. The samples of remote tars without a ledger are known only as they are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import braceexpand

from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.io.storage import LocalStore, Store
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import REPAIR, TAR_FOLDER, Ledger, ledger_name, read_ledger, shard_of_tar, tar_name
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.stream.remote import is_remote, open_remote, remote_run
from lrs3_loader.stream.where import Where
from lrs3_loader.types import Shard, field_of_member, field_spec

logger = logging.getLogger(__name__)

_TAR_ENDINGS = (".tar", ".tgz", ".tar.gz")  # compressed tars can only be read sequentially, through a URL

Locations = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Source:
    """A tar and, where they are known, its samples."""

    name: str  # name of the shard, or path or URL of the tar
    url: str  # local path, URL or ``pipe:`` command
    samples: tuple[tuple[str, int], ...] | None  # (key, T) in the order of the tar; None: not known
    shard: tuple[str, str] | None = None  # folder or URL of the run, and name of the shard; None: it has no ledger
    fields: frozenset[str] | None = None  # arrays that every sample has; None: not known
    chosen: tuple[bool, ...] | None = None  # samples that the stream's ``where`` chooses; None: all
    location: int = 0  # number of the run, path or URL, among those given, that it belongs to

    @property
    def is_local(self) -> bool:
        return not is_remote(self.url)

    def versions(self) -> Iterator[tuple[str, Ledger | None]]:
        """Yield where the tar is now, and its ledger; ask again if reading fails, since the shard may just be replaced.

        Raises:
            DamagedError: its ledger is missing or damaged.
            UnreachableError: the storage cannot be reached.
        """
        if self.shard is None:
            yield self.url, None
            return
        run, name = self.shard
        where, last = f"{run}/{ledger_name(name)}", None
        while True:
            try:
                with open_remote(where) if is_remote(where) else open(where, "rb") as file:
                    ledger = Ledger.parse(file.read(), where)
            except UnreachableError:
                raise
            except (OSError, RunError) as error:
                why = str(error) if isinstance(error, RunError) else f"{where} cannot be read: {error}"
                raise DamagedError(why) from error
            if ledger.generation == last:
                return
            last = ledger.generation
            yield f"{run}/{tar_name(name, last)}", ledger


@dataclass
class Listing:
    """The tars of a stream, in order."""

    sources: list[Source] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why it was skipped

    @property
    def is_indexed(self) -> bool:
        """True if all samples are known beforehand."""
        return all(source.samples is not None for source in self.sources)

    @property
    def is_local(self) -> bool:
        return all(source.is_local for source in self.sources)


def list_locations(locations: Locations) -> list[str | Path]:
    """Return one or several locations as a list."""
    given = [locations] if isinstance(locations, (str, Path)) else list(locations)
    if not given:
        raise ValueError("no run, path or URL was given")
    return given


def split_locations(locations: Locations) -> list[str]:
    """Return a list of one or several paths or URLs, with braces expanded (``shards/a-{000000..000009}.tar``)."""
    expanded: list[str] = []
    for location in list_locations(locations):
        text = str(location).removeprefix("file://")
        braces = "{" in text and not text.startswith("pipe:") and not os.path.exists(text)
        expanded += braceexpand.braceexpand(text) if braces else [text]
    return expanded


def list_sources(locations: Locations, *, partial: bool, skip_errors: bool, where: Where | None = None) -> Listing:
    """Find the tars and read their ledgers.

    Args:
        locations: run folders and tars, local or remote.
        partial: list the published shards of a run that is not finished.
        skip_errors: skip published tars that are missing, cut off or unreadable, and name them in ``skipped``.
        where: chooses samples by their figures.

    Raises:
        ValueError: figures are asked for, and a tar has no ledger.
        RunError: there is nothing to read, a run is not finished, or a tar is damaged and not skipped.
    """
    listing = Listing()
    for number, given in enumerate(list_locations(locations)):
        first = len(listing.sources)
        for location in split_locations(given):
            if location.startswith("pipe:") or location.split("?")[0].endswith(_TAR_ENDINGS):
                _list_tar(location, listing, skip_errors, where)
            elif is_remote(location):
                _list_remote_run(location.removesuffix("/"), listing, partial, where)
            else:
                _list_run(location, listing, partial, skip_errors, where)
        listing.sources[first:] = [replace(source, location=number) for source in listing.sources[first:]]
    if not listing.sources:
        raise RunError("; ".join([f"there is nothing to read in {locations}", *listing.skipped.values()]))
    if where is not None:
        where.require()
    return listing


def _list_run(location: str, listing: Listing, partial: bool, skip_errors: bool, where: Where | None) -> None:
    folder = RunFolder.open(Path(location))
    missing = []
    for shard in folder.shards:
        source, problem = published_source(folder, shard, where)
        if source is not None:
            listing.sources.append(source)
        elif problem is not None:
            _skip_or_raise(shard.name, problem, listing, skip_errors)
        else:
            missing.append(shard.name)
    _refuse_unfinished(location, missing, partial)


def published_source(folder: RunFolder, shard: Shard, where: Where | None = None) -> tuple[Source | None, str | None]:
    """Return (source, None) for a shard of a run, (None, problem), or (None, None) if it is not published."""
    return _published(folder.store, shard.name, folder.owns, where)


def _published(
    store: Store, shard: str, owns: Callable[[Ledger], bool] | None, where: Where | None
) -> tuple[Source | None, str | None]:
    seen = None
    while True:
        try:
            ledger = read_ledger(store, shard)
        except FileNotFoundError:
            return None, None
        except UnreachableError:
            raise
        except RunError as error:
            return None, str(error)
        url = store.where(tar_name(shard, ledger.generation))
        try:
            if owns is not None and not owns(ledger):
                return None, f"{store.where(ledger_name(shard))} belongs to another run"
            if (size := store.size(tar_name(shard, ledger.generation))) != ledger.num_bytes:
                return None, f"{url} has {size} bytes, its ledger says {ledger.num_bytes}"
            return _source(store, shard, url, ledger, where), None
        except FileNotFoundError:
            if ledger == seen:
                return None, f"{url} is missing although its ledger is there"
            seen = ledger  # look again: the shard may just have been replaced


def _list_remote_run(location: str, listing: Listing, partial: bool, where: Where | None) -> None:
    with remote_run(location) as folder:
        ledgers = {ledger.shard: ledger for ledger in folder.ledgers()}
        missing = [name for name in folder.shards.names if name not in ledgers]
        for name, ledger in ledgers.items():
            url = f"{location}/{tar_name(name, ledger.generation)}"
            source = _source(folder.store, name, url, ledger, where)
            listing.sources.append(replace(source, shard=(location, name)))
    _refuse_unfinished(location, missing, partial)


def _refuse_unfinished(location: str, missing: list[str], partial: bool) -> None:
    if missing and not partial:
        raise RunError(
            f"{location} is not finished: {len(missing)} shards are missing, the first is {missing[0]}. "
            "Finish the run, follow it (follow=True), or read the published shards (partial=True)"
        )


def _source(store: Store, shard: str, url: str, ledger: Ledger, where: Where | None) -> Source:
    chosen = None if where is None else tuple(where.mask(store, ledger).tolist())
    return Source(shard, url, ledger.samples, (str(store.root), shard), stored_fields(ledger), chosen)


def _list_tar(location: str, listing: Listing, skip_errors: bool, where: Where | None) -> None:
    if is_remote(location):
        _require_ledger(location, where)
        listing.sources.append(Source(location, location, None))
        return None
    path = Path(location)
    if path.parent.name == TAR_FOLDER:
        source, problem = _published(LocalStore(path.parent.parent), shard_of_tar(path.name), None, where)
        if problem is not None:
            return _skip_or_raise(location, problem, listing, skip_errors)
        if source is not None:
            listing.sources.append(replace(source, name=location))
            return None
    _require_ledger(location, where)
    try:
        with TarIndex(path) as tar:
            samples = tuple((sample.key, tar.num_frames(index)) for index, sample in enumerate(tar.samples))
            fields = _array_names(sample.members for sample in tar.samples)
        listing.sources.append(Source(location, location, samples, fields=fields))
    except DamagedError as error:
        _skip_or_raise(location, str(error), listing, skip_errors)


def _require_ledger(location: str, where: Where | None) -> None:
    if where is not None:
        raise ValueError(f"where needs the figures in ledgers, and {location} has none: give the folder of the run")


def stored_fields(ledger: Ledger) -> frozenset[str] | None:
    """Return the arrays that every sample of a shard has, or None where its ledger does not tell (version 0.1)."""
    if not ledger.checksums:
        return None
    return _array_names([[name for name, digits in ledger.checksums.items() if "-" not in digits]])


def _array_names(samples: Iterable[Iterable[str]]) -> frozenset[str] | None:
    """Return the arrays whose extension is among those of every sample; None without any sample."""
    found = [{field for name in sample if (field := field_of_member(name)) is not None} for sample in samples]
    return frozenset(set.intersection(*found)) if found else None


def require_fields(sources: Iterable[Source], fields: tuple[str, ...] | None) -> None:
    """Check that the samples of each tar hold these arrays, as far as that is known (None: any will do).

    Raises:
        RunError: they do not; the message names the array, the tar, and the option of the extraction that stores it.
    """
    wanted = set(fields or ()) - {"json"}
    for source in sources:
        missing = sorted(wanted - source.fields) if source.fields is not None else []
        if missing:
            place = source.shard[0] if source.shard is not None else source.url
            specs = [field_spec(name) for name in missing]
            flags = dict.fromkeys(spec.flag for spec in specs if spec is not None and spec.flag)
            remedy = f"extract the corpus with {' '.join(flags)}" if flags else "choose another task or run"
            held = ", ".join(sorted(source.fields or ())) or "no arrays"
            raise RunError(
                f"{place} does not hold {', '.join(missing)} in all samples of {source.name}, which the task reads: "
                f"{remedy} (they hold {held})"
            )


def _skip_or_raise(name: str, why: str, listing: Listing, skip_errors: bool) -> None:
    if not skip_errors:
        raise RunError(f"{why}; {REPAIR}, or skip it with ShardStream(on_error='skip')")
    logger.warning("skipping %s", why)
    listing.skipped[name] = why
