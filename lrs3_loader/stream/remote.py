"""Opens remote tars and runs for sequential reading: by ``io.remote`` where it can, else by webdataset.

webdataset runs commands: those of ``pipe:``, and tools for some protocols that fsspec does not support here. They have
their own time-outs and attempts. ``io.storage`` does all other remote access.
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
from lrs3_loader.io.remote import open_stream
from lrs3_loader.io.storage import is_url, store_at
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name
from lrs3_loader.run.record import MANIFEST_FILE, RECORD_FILE, manifest_of, read_record

logger = logging.getLogger(__name__)

_NUM_REQUESTS = 16  # small files fetched at a time


def is_remote(location: str) -> bool:
    """Return whether a location is a URL or a command (``pipe:``)."""
    return location.startswith("pipe:") or is_url(location)


def _is_store(url: str) -> bool:
    """Return whether the fsspec installed here opens a URL that is not on a web server."""
    protocol = url.split("://", 1)[0].split("::", 1)[0]
    if protocol in ("pipe", "http", "https"):
        return False
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        logger.debug("webdataset opens %s (%s)", url, error)
        return False
    return True


def open_remote(url: str) -> IO[bytes]:
    """Open a URL for sequential reading.

    ``pipe:COMMAND`` runs a shell command and reads its output: do not pass URLs from untrusted sources.

    Raises:
        OSError: it cannot be opened; ``FileNotFoundError`` where the protocol tells that it does not exist.
        UnreachableError: its server cannot be reached, or refuses. Reading raises this, too.
    """
    if url.startswith(("http://", "https://")) or _is_store(url):
        return open_stream(url)
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
    if _is_store(location):
        yield RunFolder.open(location)
        return
    with tempfile.TemporaryDirectory(prefix="lrs3_loader.") as scratch:
        yield _copy_run(location, Path(scratch))


def _copy_run(location: str, scratch: Path) -> RunFolder:
    (scratch / "ledger").mkdir()
    for name in (RECORD_FILE, MANIFEST_FILE):
        if not _fetch(f"{location}/{name}", scratch / name):
            raise RunError(f"{location} holds no run (no {name} there)")
    name, _ = manifest_of(read_record(store_at(scratch)))
    if name != MANIFEST_FILE:
        _fetch(f"{location}/{name}", scratch / name)
    folder = RunFolder.open(scratch)
    names = [ledger_name(shard) for shard in folder.shards.names]
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        list(pool.map(lambda name: _fetch(f"{location}/{name}", scratch / name), names))
    return folder


def _fetch(url: str, path: Path) -> bool:
    """Copy a small file; return False if it does not exist."""
    try:
        with open_remote(url) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunError(f"{url} cannot be read: {error}") from error
    return True
