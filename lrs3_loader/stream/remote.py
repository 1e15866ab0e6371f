"""Opening what is not a local file: fsspec where it has what the protocol needs, else webdataset (``pipe:``, curl)."""

from __future__ import annotations

import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import fsspec
import webdataset

from lrs3_loader.errors import RunError
from lrs3_loader.runfolder import RunFolder

logger = logging.getLogger(__name__)

_REMOTE = re.compile(r"^(pipe:|[A-Za-z][A-Za-z0-9+.-]*://|[a-z0-9+.-]+::)")
_NUM_REQUESTS = 16  # small files fetched at once
_CURL_NOT_FOUND = 22  # what curl -f ends with on 404


def is_remote(location: str) -> bool:
    return bool(_REMOTE.match(location))


def open_remote(url: str) -> IO[bytes]:
    """Open a URL for reading front to back.

    ``pipe:COMMAND`` runs a shell command and reads what it writes: pass no URL that you would not run.

    Raises:
        OSError: it cannot be opened (``FileNotFoundError`` where the protocol can tell).
    """
    if not url.startswith("pipe:"):
        protocol = url.split("://", 1)[0].split("::", 1)[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            logger.debug("left to webdataset: %s (%s)", url, error)
        else:
            return fsspec.open(url, "rb").open()
    try:
        return webdataset.gopen(url, "rb")
    except ValueError as error:
        raise OSError(f"{url} cannot be opened ({error}): is the fsspec package for it installed?") from error


def fetch_run(location: str, scratch: Path) -> RunFolder:
    """A remote run's small files, copied: ``run.json``, ``manifest.jsonl`` and the ledgers there are.

    Raises:
        RunError: no run there.
    """
    (scratch / "ledger").mkdir()
    for name in ("run.json", "manifest.jsonl"):
        if not _fetch(f"{location}/{name}", scratch / name):
            raise RunError(f"{location} holds no run (no {name} there)")
    folder = RunFolder.open(scratch)
    names = [f"ledger/{shard.name}.json" for shard in folder.shards]
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
