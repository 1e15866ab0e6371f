"""Opening what is not a local file: fsspec where it has what the protocol needs, else webdataset (``pipe:``, curl)."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec
import webdataset

from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import is_url
from lrs3_loader.run.folder import MANIFEST_FILE, RECORD_FILE, RunFolder
from lrs3_loader.run.ledger import ledger_name

logger = logging.getLogger(__name__)

_NUM_REQUESTS = 16  # small files fetched at once
_CURL_NOT_FOUND = 22  # what curl -f ends with on 404


def is_remote(location: str) -> bool:
    return location.startswith("pipe:") or is_url(location)


def _protocol_of(url: str) -> str | None:
    """The protocol of a URL, if fsspec speaks it here."""
    protocol = url.split("://", 1)[0].split("::", 1)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        logger.debug("left to webdataset: %s (%s)", url, error)
        return None
    return protocol


def open_remote(url: str) -> IO[bytes]:
    """Open a URL for reading front to back.

    ``pipe:COMMAND`` runs a shell command and reads what it writes: pass no URL that you would not run.

    Raises:
        OSError: it cannot be opened (``FileNotFoundError`` where the protocol can tell).
    """
    if not url.startswith("pipe:") and _protocol_of(url) is not None:
        return fsspec.open(url, "rb").open()
    try:
        return webdataset.gopen(url, "rb")
    except ValueError as error:
        raise OSError(f"{url} cannot be opened ({error}): is the fsspec package for it installed?") from error


@contextmanager
def remote_run(location: str) -> Iterator[RunFolder]:
    """A run behind a URL: as it is where fsspec speaks the protocol, else its small files copied while this lasts.

    Raises:
        RunError: no run there, or it cannot be reached.
    """
    if _protocol_of(location) is not None:
        yield RunFolder.open(location)
        return
    with tempfile.TemporaryDirectory(prefix="lrs3_loader.") as scratch:
        yield _copy_run(location, Path(scratch))


def _copy_run(location: str, scratch: Path) -> RunFolder:
    (scratch / "ledger").mkdir()
    for name in (RECORD_FILE, MANIFEST_FILE):
        if not _fetch(f"{location}/{name}", scratch / name):
            raise RunError(f"{location} holds no run (no {name} there)")
    folder = RunFolder.open(scratch)
    names = [ledger_name(shard) for shard in folder.shards.names]
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        list(pool.map(lambda name: _fetch(f"{location}/{name}", scratch / name), names))
    return folder


def _fetch(url: str, path: Path) -> bool:
    """Copy a small file; False where there is none."""
    try:
        source = open_remote(url)
    except FileNotFoundError:
        return False
    try:
        with source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
    except OSError as error:
        path.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError) or getattr(source, "status", None) == _CURL_NOT_FOUND:
            return False
        raise RunError(f"{url} cannot be read: {error}") from error
    return True
