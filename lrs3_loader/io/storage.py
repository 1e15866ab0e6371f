"""Storage of runs and corpora: a folder of this machine, or object storage through fsspec (``s3://bucket/run``).

A store holds whole files under names relative to its root. The rest of the package relies on three properties: a file
appears whole or not at all; one listing gives all files of a folder with their sizes; reading or writing a file lists
nothing. Object storage has them because an upload becomes an object only when it is completed. (An FTP server, for
example, does not: a run on one may show half a file.)

Endpoints and keys are configured as for the service's own tools: for S3 by the ``AWS_*`` variables and files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as StillRunning
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, make_folder, output_file, reading, sync_folder, writing
from lrs3_loader.io.remote import file_system, retry

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

SCRATCH = "tmp"  # folder of a local store for files that are being written
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://|[a-z0-9+.-]+::)")
_BATCH = 2_000  # small files requested at once; fsspec keeps about a hundred requests in flight
_BEAT_SECONDS = 1.0
MAX_FILE_BYTES = 1 << 30  # of a file that is read whole: the index of a million ledgers has 200 MB

UPLOAD_SECONDS = 60.0  # for an upload, and more for each byte
SLOWEST_UPLOAD = 256 << 10  # bytes per second


class Url(str):
    """A location that is not a path of this machine."""


Location = Path | Url


def is_url(text: str | Path) -> bool:
    return isinstance(text, str) and not text.startswith("file://") and _URL.match(text) is not None


def location(text: str | Path) -> Location:
    """Convert a user's text to a path, or to a URL without a slash at its end."""
    if is_url(text):
        return Url(str(text).rstrip("/"))
    return Path(str(text).removeprefix("file://"))


@dataclass(frozen=True)
class FileState:
    """Size and version of a file, from a listing."""

    num_bytes: int
    stamp: str  # changes with the file: its modification time, or its tag on object storage


class LocalStore:
    """A folder of this machine. Files are written under a temporary name and renamed into place.

    Names are relative to ``root``, with POSIX separators. Every method raises ``RunError`` if the storage cannot be
    reached, or refuses to be read or written.
    """

    def __init__(self, root: Path):
        self.root = root
        #: Called right before each file appears or goes; an exception of it prevents that.
        self.guard: Callable[[], None] | None = None

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for messages and for readers of tars."""
        return str(self.root / name)

    def create(self, folders: Sequence[str]) -> None:
        """Create the root and its folders, where the storage has folders."""
        for folder in (SCRATCH, *folders):
            make_folder(self.root / folder)

    def listing(self, folder: str) -> dict[str, FileState]:
        """Return the files of a folder by name, without hidden ones; empty if there is no such folder."""
        try:
            with reading(self.root / folder), os.scandir(self.root / folder) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return {}
        return {name: FileState(state.st_size, str(state.st_mtime_ns)) for name, state in found}

    def size(self, name: str) -> int:
        """Return the size of a file in bytes (``FileNotFoundError`` if there is none)."""
        return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        """Return the contents of a file (``FileNotFoundError`` if there is none)."""
        path = self.root / name
        with reading(path):
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise RunError(f"{path} has {size} bytes, {MAX_FILE_BYTES} are allowed")
            return path.read_bytes()

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, contents) of small files in order, many requests at a time; missing files are left out."""
        for name in names:
            with suppress(FileNotFoundError):
                yield name, self.read(name)

    def write(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file that appears under its name only if the block ends without an exception."""
        return atomic_write(self.root / name, self.root / SCRATCH, self.guard)

    def delete(self, name: str) -> None:
        """Remove a file if it is there, durably."""
        path = self.root / name
        if self.guard is not None:
            self.guard()
        with writing(path), suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)

    @contextmanager
    def local_copy(self, *names: str, beat: Callable[[], None] | None = None) -> Iterator[Path]:
        """Provide a folder of this machine that holds these files under their names until the block ends.

        Files that do not exist are missing there, too. ``beat`` is called every second while files are fetched.
        """
        yield self.root

    def clear_scratch(self) -> None:
        """Remove what killed writers left behind. Call it only while nobody writes."""
        scratch = self.root / SCRATCH
        if scratch.is_symlink():
            raise RunError(
                f"{scratch} is a symbolic link, and the files in its target may not be of this run: remove the link, "
                "then run the same command again"
            )
        with writing(scratch):
            for path in scratch.iterdir():
                path.unlink()


class RemoteStore:
    """A folder behind a URL, through fsspec. Files are written to a local temporary file and uploaded from there.

    What fails for a while (no connection, no answer, a service that is busy) is tried again: ``io.remote.retry``.
    """

    def __init__(self, root: Url):
        self.root = root
        self._call("", lambda fs, root: None)

    def _call(self, name: str, operation: Callable[[Any, str], Result]) -> Result:
        """Return ``operation(file system, root)``; see ``retry``."""
        return retry(self.where(name), lambda: operation(*file_system(str(self.root))))

    def where(self, name: str) -> str:
        return f"{self.root}/{name}" if name else str(self.root)

    def create(self, folders: Sequence[str]) -> None:
        """On object storage folders are parts of names."""

    def listing(self, folder: str) -> dict[str, FileState]:
        try:
            entries = self._call(folder, lambda fs, root: fs.ls(f"{root}/{folder}", detail=True))
        except FileNotFoundError:
            return {}
        return {
            name: FileState(int(entry["size"]), _stamp(entry))
            for entry in entries
            if entry["type"] == "file" and not (name := entry["name"].rpartition("/")[2]).startswith(".") and name
        }

    def tree(self) -> dict[str, int]:
        """Return the size in bytes of every file below the root, without hidden ones: one request per 1000 names."""
        root, found = self._call("", lambda fs, root: (root, fs.find(root, detail=True)))
        start = len(root.rstrip("/")) + 1
        names = {path[start:]: int(entry["size"] or 0) for path, entry in found.items()}
        return {name: size for name, size in sorted(names.items()) if not _is_hidden(name)}

    def size(self, name: str) -> int:
        return int(self._call(name, lambda fs, root: fs.info(f"{root}/{name}")["size"]))

    def read(self, name: str) -> bytes:
        # Without ``start`` some of fsspec's services ask for the size first, which lists the folder needlessly.
        return bytes(self._call(name, lambda fs, root: fs.cat_file(f"{root}/{name}", start=0)))

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for first in range(0, len(names), _BATCH):
            batch = names[first : first + _BATCH]
            found = self._call(batch[0], partial(_read_each, batch))
            for name, data in zip(batch, found, strict=True):
                if isinstance(data, FileNotFoundError):
                    continue
                yield name, self.read(name) if isinstance(data, BaseException) else bytes(data)

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryDirectory(prefix="lrs3_loader.") as folder:
            local = Path(folder) / "upload"
            with writing(local):
                handle = os.open(local, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
            with output_file(handle, local) as file:
                yield file
            try:
                self._call(name, partial(_upload, local, name, self.where(name)))
            except (FileNotFoundError, RunError) as error:
                text = str(error).partition(" cannot be reached: ")[2] or str(error)
                raise RunError(
                    f"{self.where(name)} could not be uploaded, and nothing of it is there: {text}; "
                    "run the same command again when it can be reached"
                ) from error

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call(name, lambda fs, root: fs.rm_file(f"{root}/{name}"))

    @contextmanager
    def local_copy(self, *names: str, beat: Callable[[], None] | None = None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="lrs3_loader.") as folder, ThreadPoolExecutor(1) as pool:
            fetching = pool.submit(self._fetch, names, Path(folder))
            while True:
                try:
                    fetching.result(timeout=_BEAT_SECONDS)
                    break
                except StillRunning:
                    if beat is not None:
                        beat()
            yield Path(folder)

    def _fetch(self, names: Sequence[str], folder: Path) -> None:
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise RunError(f"{self.where(name)} leads out of {self.root}")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._call(name, partial(_download, name, target))
            except FileNotFoundError:
                target.unlink(missing_ok=True)

    def clear_scratch(self) -> None:
        """An interrupted upload leaves no object."""


Store = LocalStore | RemoteStore


def store_at(where: str | Path) -> Store:
    """Open the store with this root.

    Raises:
        RunError: no installed package supports the URL's protocol.
    """
    root = location(where)
    return LocalStore(root) if isinstance(root, Path) else RemoteStore(root)


def local_path(where: Location, purpose: str) -> Path:
    """Return a location that must be a path of this machine.

    Raises:
        RunError: it is a URL; the message says that ``purpose`` needs a path.
    """
    if isinstance(where, Path):
        return where
    raise RunError(f"{where} is not a folder of this machine, which {purpose} needs")


def _read_each(names: Sequence[str], fs: Any, root: str) -> Any:
    return fs.cat_ranges([f"{root}/{name}" for name in names], 0, None, on_error="return")


def _upload(local: Path, name: str, where: str, fs: Any, root: str) -> None:
    """Upload a file, in a limited time: aiohttp waits without end for a server that takes nothing."""
    if not fs.async_impl:
        fs.put_file(str(local), f"{root}/{name}")
        return
    num_bytes = local.stat().st_size
    limit = UPLOAD_SECONDS + num_bytes / SLOWEST_UPLOAD
    begun = time.monotonic()
    upload = asyncio.run_coroutine_threadsafe(fs._put_file(str(local), f"{root}/{name}"), fs.loop)
    while not wait([upload], min(UPLOAD_SECONDS / 2, limit)).done:
        seconds = time.monotonic() - begun
        if seconds >= limit:
            upload.cancel()
            raise TimeoutError(f"{num_bytes / 1e6:.1f} MB were not taken within {seconds:.0f} s")
        logger.warning("%s: still uploading %.1f MB after %.0f s", where, num_bytes / 1e6, seconds)
    upload.result()


def _download(name: str, target: Path, fs: Any, root: str) -> None:
    fs.get_file(f"{root}/{name}", str(target))


def _stamp(entry: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created"):
        if entry.get(name):
            return str(entry[name])
    return ""


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or not part for part in name.split("/"))
