"""Opens remote tars and runs for sequential reading: by fsspec where it supports the protocol, else by webdataset.

webdataset runs shell commands (``pipe:``) and fetches URLs with curl. ``io.storage`` does all other remote access.
"""

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

_NUM_REQUESTS = 16  # small files fetched at a time
_CURL_NOT_FOUND = 22  # exit status of curl -f for error 404


def is_remote(location: str) -> bool:
    """Return whether a location is a URL or a command (``pipe:``)."""
    return location.startswith("pipe:") or is_url(location)


def _protocol_of(url: str) -> str | None:
    """Return the protocol of a URL if the fsspec installed here supports it."""
    protocol = url.split("://", 1)[0].split("::", 1)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        logger.debug("webdataset opens %s (%s)", url, error)
        return None
    return protocol


def open_remote(url: str) -> IO[bytes]:
    """Open a URL for sequential reading.

    ``pipe:COMMAND`` runs a shell command and reads its output: do not pass URLs from untrusted sources.

    Raises:
        OSError: it cannot be opened; ``FileNotFoundError`` where the protocol tells that it does not exist.
    """
    if not url.startswith("pipe:") and _protocol_of(url) is not None:
        return fsspec.open(url, "rb").open()
    try:
        return webdataset.gopen(url, "rb")
    except ValueError as error:
        raise OSError(f"{url} cannot be opened ({error}): is the fsspec package for it installed?") from error


@contextmanager
def remote_run(location: str) -> Iterator[RunFolder]:
    """Open a run at a URL: in place if fsspec supports the protocol, else as a temporary copy of all but its tars.

    Raises:
        RunError: there is no run, or it cannot be reached.
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
    """Copy a small file; return False if it does not exist."""
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
