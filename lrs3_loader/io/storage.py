"""Where a run or a corpus lies: a folder of this machine, or object storage through fsspec (``s3://bucket/run``).

A store holds whole files under names relative to its root, and promises what the rest is built on: a file appears whole
or not at all; one listing tells all files of a folder with their sizes; reading or writing a file lists nothing. Object
storage keeps these promises because an upload becomes an object when it is completed and not before. (An FTP server,
say, does not: a run on one may show half a file.)

How to reach a service (endpoint, keys) is told by what its own tools read: for S3 the ``AWS_*`` variables and files.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import fsspec

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, reading, writing

SCRATCH = "tmp"  # folder of a local store for files that are being written
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://|[a-z0-9+.-]+::)")
_BATCH = 2_000  # small files asked for at once; fsspec has about a hundred of them under way
_BEAT_SECONDS = 1.0


class Url(str):
    """Where something lies that is no path of this machine."""


Location = Path | Url


def is_url(text: str | Path) -> bool:
    return isinstance(text, str) and not text.startswith("file://") and _URL.match(text) is not None


def location(text: str | Path) -> Location:
    """What a user gave -> a path or a URL (without a slash at its end)."""
    if is_url(text):
        return Url(str(text).rstrip("/"))
    return Path(str(text).removeprefix("file://"))


@dataclass(frozen=True)
class FileState:
    """What a listing tells of a file."""

    num_bytes: int
    stamp: str  # changes when the file does: its time, or what object storage calls its tag


class Store(Protocol):
    """A folder of whole files, here or elsewhere. Names are relative, with POSIX separators.

    Raises (from every method): ``RunError`` where the store cannot be reached, or refuses to be read or written.
    """

    @property
    def root(self) -> Location:
        """Folder or URL that names are relative to."""
        ...

    def where(self, name: str) -> str:
        """What to call a file in messages; what a reader of tars can open."""
        ...

    def create(self, folders: Sequence[str]) -> None:
        """Make the root and its folders, where there is such a thing."""
        ...

    def listing(self, folder: str) -> dict[str, FileState]:
        """The files of a folder by name, hidden ones left out; empty where there is no such folder."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file (``FileNotFoundError`` where there is none)."""
        ...

    def read(self, name: str) -> bytes:
        """The contents of a file (``FileNotFoundError`` where there is none)."""
        ...

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """(name, contents) of small files in order, many requests at a time; those that are not there are left out."""
        ...

    def write(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file that appears under its name only if the block ends without an exception."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def local_copy(self, *names: str, beat: Callable[[], None] | None = None) -> AbstractContextManager[Path]:
        """A folder of this machine that holds these files under their names, for as long as the block lasts.

        One that does not exist is not there either. ``beat`` is called every second while the block is waited for.
        """
        ...

    def clear_scratch(self) -> None:
        """Remove what killed writers left behind. Only while nobody writes."""
        ...


def store_at(where: str | Path) -> Store:
    """The store with this root.

    Raises:
        RunError: nothing is installed here that speaks the URL's protocol.
    """
    root = location(where)
    return LocalStore(root) if isinstance(root, Path) else RemoteStore(root)


def local_path(where: Location, purpose: str) -> Path:
    """The path of what must lie on this machine.

    Raises:
        RunError: it does not; ``purpose`` says what needs it.
    """
    if isinstance(where, Path):
        return where
    raise RunError(f"{where} is not a folder of this machine, which {purpose} needs")


class LocalStore:
    """A folder. Files are written under a temporary name, those of its folders in ``tmp``, and renamed into place."""

    def __init__(self, root: Path):
        self.root = root

    def where(self, name: str) -> str:
        return str(self.root / name)

    def create(self, folders: Sequence[str]) -> None:
        with writing(self.root):
            for folder in (SCRATCH, *folders):
                (self.root / folder).mkdir(parents=True, exist_ok=True)

    def listing(self, folder: str) -> dict[str, FileState]:
        try:
            with reading(self.root / folder), os.scandir(self.root / folder) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return {}
        return {name: FileState(state.st_size, str(state.st_mtime_ns)) for name, state in found}

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        with reading(self.root / name):
            return (self.root / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            try:
                yield name, self.read(name)
            except FileNotFoundError:
                continue

    def write(self, name: str) -> AbstractContextManager[IO[bytes]]:
        # What lies in a folder is in flight in ``tmp``; the few files of the root are written beside themselves.
        return atomic_write(self.root / name, self.root / SCRATCH if "/" in name else None)

    def delete(self, name: str) -> None:
        with writing(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    @contextmanager
    def local_copy(self, *names: str, beat: Callable[[], None] | None = None) -> Iterator[Path]:
        yield self.root

    def clear_scratch(self) -> None:
        with writing(self.root / SCRATCH):
            (self.root / SCRATCH).mkdir(exist_ok=True)
            for entry in os.scandir(self.root / SCRATCH):
                os.unlink(entry.path)


class RemoteStore:
    """Everything below a URL, through fsspec. Files are written to a local temporary file and uploaded from there."""

    def __init__(self, root: Url):
        self.root = root
        with self._reaching(""):
            self._file_system()

    def _file_system(self) -> tuple[Any, str]:
        """(file system, root without its protocol); asked for each time, because no instance outlives a fork."""
        return fsspec.core.url_to_fs(str(self.root), use_listings_cache=False)

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Turn what goes wrong on the way into one clear line."""
        try:
            yield
        except (FileNotFoundError, RunError):
            raise
        except ImportError as error:
            hint = "pip install 'lrs3_loader[s3]'" if self.root.startswith("s3:") else "pip install it"
            raise RunError(f"{self.root} cannot be opened: {error} ({hint})") from error
        # Each service has errors of its own, down to those of its network library: there is no common class.
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise RunError(f"{self.where(name)} cannot be reached: {text}") from error

    def where(self, name: str) -> str:
        return f"{self.root}/{name}" if name else str(self.root)

    def create(self, folders: Sequence[str]) -> None:
        """Nothing: folders are parts of names there."""

    def listing(self, folder: str) -> dict[str, FileState]:
        with self._reaching(folder):
            fs, root = self._file_system()
            try:
                entries = fs.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {
            name: FileState(int(entry["size"]), _stamp(entry))
            for entry in entries
            if entry["type"] == "file" and not (name := entry["name"].rpartition("/")[2]).startswith(".") and name
        }

    def tree(self) -> dict[str, int]:
        """Bytes of every file below the root by name, hidden ones left out: one listing, a thousand names a request."""
        with self._reaching(""):
            fs, root = self._file_system()
            found = fs.find(root, detail=True)
        start = len(root.rstrip("/")) + 1
        names = {path[start:]: int(entry["size"] or 0) for path, entry in found.items()}
        return {name: size for name, size in sorted(names.items()) if not _is_hidden(name)}

    def size(self, name: str) -> int:
        with self._reaching(name):
            fs, root = self._file_system()
            return int(fs.info(f"{root}/{name}")["size"])

    def read(self, name: str) -> bytes:
        # With a start given, none of fsspec's services asks for the size first (and lists the folder in vain).
        with self._reaching(name):
            fs, root = self._file_system()
            return bytes(fs.cat_file(f"{root}/{name}", start=0))

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for first in range(0, len(names), _BATCH):
            batch = names[first : first + _BATCH]
            with self._reaching(batch[0]):
                fs, root = self._file_system()
                found = fs.cat_ranges([f"{root}/{name}" for name in batch], 0, None, on_error="return")
            for name, data in zip(batch, found, strict=True):
                if isinstance(data, FileNotFoundError):
                    continue
                with self._reaching(name):
                    if isinstance(data, BaseException):
                        raise data
                yield name, bytes(data)

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="lrs3_loader.") as file:
            yield file
            file.flush()
            try:
                with self._reaching(name):
                    fs, root = self._file_system()
                    fs.put_file(file.name, f"{root}/{name}")
            except (FileNotFoundError, RunError) as error:
                text = str(error).partition(" cannot be reached: ")[2] or str(error)
                raise RunError(
                    f"{self.where(name)} could not be uploaded, and nothing of it is there: {text}; "
                    "run the same command again when it can be reached"
                ) from error

    def delete(self, name: str) -> None:
        with self._reaching(name):
            fs, root = self._file_system()
            with suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{name}")

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
            with self._reaching(name):
                fs, root = self._file_system()
                try:
                    fs.get_file(f"{root}/{name}", str(target))
                except FileNotFoundError:
                    target.unlink(missing_ok=True)

    def clear_scratch(self) -> None:
        """Nothing: an upload that was broken off has no name there."""


def _stamp(entry: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created"):
        if entry.get(name):
            return str(entry[name])
    return ""


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or not part for part in name.split("/"))
