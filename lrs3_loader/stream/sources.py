"""What there is to read: a run, tars with or without a ledger, local or remote -> shards and their samples.

A run's ledgers say which samples each tar holds and how long they are, before a tar is opened. Local tars without a
ledger are scanned once. Remote ones without a ledger stay unlisted: their samples are known only as they are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import braceexpand

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.shards import tar_name
from lrs3_loader.stream.remote import is_remote, remote_run
from lrs3_loader.stream.tarindex import DamagedError, TarIndex
from lrs3_loader.types import Shard

logger = logging.getLogger(__name__)

_TAR_ENDINGS = (".tar", ".tgz", ".tar.gz")  # compressed ones can only be streamed from afar

Locations = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Source:
    """One tar, and what is known of it."""

    name: str  # of the shard, or the tar's path or URL
    url: str  # local path, or what webdataset or fsspec opens
    samples: tuple[tuple[str, int], ...] | None  # (key, T) in the order of the tar; None: not known before it is read

    @property
    def is_local(self) -> bool:
        return not is_remote(self.url)


@dataclass
class Listing:
    """All tars of a stream, in order."""

    sources: list[Source] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)  # name -> why it was left out

    @property
    def is_indexed(self) -> bool:
        """Every sample is known beforehand."""
        return all(source.samples is not None for source in self.sources)

    @property
    def is_local(self) -> bool:
        return all(source.is_local for source in self.sources)


def split_locations(locations: Locations) -> list[str]:
    """One or many paths or URLs, with braces expanded (``shards/a-{000000..000009}.tar``)."""
    given = [locations] if isinstance(locations, (str, Path)) else list(locations)
    if not given:
        raise ValueError("no run, path or URL was given")
    expanded: list[str] = []
    for location in given:
        text = str(location).removeprefix("file://")
        braces = "{" in text and not text.startswith("pipe:") and not os.path.exists(text)
        expanded += braceexpand.braceexpand(text) if braces else [text]
    return expanded


def list_sources(locations: Locations, *, partial: bool, skip_errors: bool) -> Listing:
    """Find the tars and read their ledgers.

    Args:
        locations: run folders or tars, local or remote, mixed as wanted.
        partial: take what is published of a run that is not finished.
        skip_errors: leave out (and name, in ``bad``) published tars that are missing, cut off or unreadable.

    Raises:
        RunError: nothing there, a run that is not finished, a bad tar (without ``skip_errors``).
    """
    listing = Listing()
    for location in split_locations(locations):
        if location.startswith("pipe:") or location.split("?")[0].endswith(_TAR_ENDINGS):
            _list_tar(location, listing, skip_errors)
        elif is_remote(location):
            _list_remote_run(location.removesuffix("/"), listing, partial)
        else:
            _list_run(location, listing, partial, skip_errors)
    if not listing.sources:
        raise RunError("; ".join([f"there is nothing to read in {locations}", *listing.bad.values()]))
    return listing


def _list_run(location: str, listing: Listing, partial: bool, skip_errors: bool) -> None:
    folder = RunFolder.open(Path(location))
    missing = []
    for shard in folder.shards:
        source, problem = published_source(folder, shard)
        if source is not None:
            listing.sources.append(source)
        elif problem is not None:
            _leave_out(shard.name, problem, listing, skip_errors)
        else:
            missing.append(shard.name)
    _refuse_unfinished(location, missing, partial)


def published_source(folder: RunFolder, shard: Shard) -> tuple[Source | None, str | None]:
    """A shard of a run: (source, None), or (None, what is wrong with it), or (None, None) if not published."""
    try:
        ledger = folder.ledger(shard)
        if ledger.run != folder.run_hash:
            return None, f"the ledger of {shard.name} belongs to another run"
        _check_size(folder.tar_url(shard), lambda: folder.tar_size(shard), ledger)
    except FileNotFoundError:
        return None, None
    except (DamagedError, RunError) as error:
        return None, str(error)
    return Source(shard.name, folder.tar_url(shard), ledger.samples), None


def _list_remote_run(location: str, listing: Listing, partial: bool) -> None:
    with remote_run(location) as folder:
        ledgers = {ledger.shard: ledger for ledger in folder.ledgers()}
        missing = [name for name in folder.shards.names if name not in ledgers]
        for name, ledger in ledgers.items():
            listing.sources.append(Source(name, f"{location}/{tar_name(name)}", ledger.samples))
    _refuse_unfinished(location, missing, partial)


def _refuse_unfinished(location: str, missing: list[str], partial: bool) -> None:
    if missing and not partial:
        raise RunError(
            f"{location} is not finished: {len(missing)} shards are missing, the first is {missing[0]}. "
            "Finish the run, follow it (follow=True), or take what is there (partial=True)"
        )


def _list_tar(location: str, listing: Listing, skip_errors: bool) -> None:
    samples: tuple[tuple[str, int], ...] | None = None
    try:
        if not is_remote(location):
            samples = _local_samples(Path(location))
    except (DamagedError, RunError) as error:
        _leave_out(location, str(error), listing, skip_errors)
    else:
        listing.sources.append(Source(location, location, samples))


def _local_samples(path: Path) -> tuple[tuple[str, int], ...]:
    """(key, T) of each sample: from the ledger of the run that the tar lies in, else by looking into the tar."""
    ledger_path = path.parent.parent / "ledger" / f"{path.stem}.json"
    if path.parent.name == "shards" and ledger_path.is_file():
        ledger = Ledger.read(ledger_path)
        _check_size(str(path), lambda: path.stat().st_size, ledger)
        return ledger.samples
    index = TarIndex(path)
    try:
        return tuple((found.key, index.num_frames(number)) for number, found in enumerate(index.samples))
    finally:
        index.close()


def _check_size(path: str, measure: Callable[[], int], ledger: Ledger) -> None:
    try:
        size = measure()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing although its ledger is there") from None
    if size != ledger.num_bytes:
        raise DamagedError(f"{path} has {size} bytes, its ledger says {ledger.num_bytes}")


def _leave_out(name: str, why: str, listing: Listing, skip_errors: bool) -> None:
    if not skip_errors:
        raise RunError(f"{why}. Run the extraction again to replace it, or skip it (on_error='skip')")
    logger.warning("skipping %s", why)
    listing.bad[name] = why
