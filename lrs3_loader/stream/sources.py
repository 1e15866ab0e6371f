"""Finds the tars of a stream and their samples, in runs or given one by one, local or remote.

The ledgers of a run tell the samples of each tar and their lengths before a tar is opened. The headers of local tars
without a ledger are read once. The samples of remote tars without a ledger are known only as they are read.
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
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.stream.remote import is_remote, remote_run
from lrs3_loader.types import Shard

logger = logging.getLogger(__name__)

_TAR_ENDINGS = (".tar", ".tgz", ".tar.gz")  # compressed tars can only be read sequentially, through a URL

Locations = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Source:
    """A tar and, where they are known, its samples."""

    name: str  # name of the shard, or path or URL of the tar
    url: str  # local path, URL or ``pipe:`` command
    samples: tuple[tuple[str, int], ...] | None  # (key, T) in the order of the tar; None: not known

    @property
    def is_local(self) -> bool:
        return not is_remote(self.url)


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


def split_locations(locations: Locations) -> list[str]:
    """Return a list of one or several paths or URLs, with braces expanded (``shards/a-{000000..000009}.tar``)."""
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
        locations: run folders and tars, local or remote.
        partial: list the published shards of a run that is not finished.
        skip_errors: skip published tars that are missing, cut off or unreadable, and name them in ``skipped``.

    Raises:
        RunError: there is nothing to read, a run is not finished, or a tar is damaged and not skipped.
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
        raise RunError("; ".join([f"there is nothing to read in {locations}", *listing.skipped.values()]))
    return listing


def _list_run(location: str, listing: Listing, partial: bool, skip_errors: bool) -> None:
    folder = RunFolder.open(Path(location))
    missing = []
    for shard in folder.shards:
        source, problem = published_source(folder, shard)
        if source is not None:
            listing.sources.append(source)
        elif problem is not None:
            _skip_or_raise(shard.name, problem, listing, skip_errors)
        else:
            missing.append(shard.name)
    _refuse_unfinished(location, missing, partial)


def published_source(folder: RunFolder, shard: Shard) -> tuple[Source | None, str | None]:
    """Return (source, None) for a shard of a run, (None, problem), or (None, None) if it is not published."""
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
            "Finish the run, follow it (follow=True), or read the published shards (partial=True)"
        )


def _list_tar(location: str, listing: Listing, skip_errors: bool) -> None:
    samples: tuple[tuple[str, int], ...] | None = None
    try:
        if not is_remote(location):
            samples = _local_samples(Path(location))
    except (DamagedError, RunError) as error:
        _skip_or_raise(location, str(error), listing, skip_errors)
    else:
        listing.sources.append(Source(location, location, samples))


def _local_samples(path: Path) -> tuple[tuple[str, int], ...]:
    """Return (key, T) of each sample, from the ledger if the tar lies in a run, else from the tar."""
    ledger_path = path.parent.parent / "ledger" / f"{path.stem}.json"
    if path.parent.name == "shards" and ledger_path.is_file():
        ledger = Ledger.read(ledger_path)
        _check_size(str(path), lambda: path.stat().st_size, ledger)
        return ledger.samples
    with TarIndex(path) as tar:
        return tuple((sample.key, tar.num_frames(index)) for index, sample in enumerate(tar.samples))


def _check_size(path: str, measure: Callable[[], int], ledger: Ledger) -> None:
    try:
        size = measure()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing although its ledger is there") from None
    if size != ledger.num_bytes:
        raise DamagedError(f"{path} has {size} bytes, its ledger says {ledger.num_bytes}")


def _skip_or_raise(name: str, why: str, listing: Listing, skip_errors: bool) -> None:
    if not skip_errors:
        raise RunError(f"{why}. Run the extraction again to replace it, or skip it (on_error='skip')")
    logger.warning("skipping %s", why)
    listing.skipped[name] = why
