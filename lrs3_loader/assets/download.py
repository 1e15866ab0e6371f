"""Getting model files: over https, or out of a Python wheel. Checked, and there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import importlib.util
import logging
import os
import shlex
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write

logger = logging.getLogger(__name__)

_SILENCE_SECONDS = 5.0  # to connect, and between two pieces of an answer
_DEADLINE_SECONDS = 1800.0
_MAX_BYTES = 2 << 30
_MAX_MEMBER_BYTES = 64 << 20
_PIECE = 1 << 20


class UnreachableError(RunError):
    """An address does not answer, or not with the file: another source may still have it."""


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel."""

    path: str  # within the wheel
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def download(url: str, path: Path, sha256: str | None) -> None:
    """Fetch ``url`` into ``path``, which appears only when the whole file is there and its hash is right.

    Raises:
        UnreachableError: no connection within a few seconds, an error status, or a transfer that stalls or breaks.
        RunError: the file is not the one expected, or cannot be written.
    """
    logger.info("fetching %s", url)
    digest = hashlib.sha256()
    try:
        with atomic_write(path) as file:
            for piece in _pieces(url):
                digest.update(piece)
                file.write(piece)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise RunError(f"{url} gave another file than expected: sha256 {digest.hexdigest()}, not {sha256}")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _pieces(url: str) -> Iterator[bytes]:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    num_bytes = 0
    try:
        with urllib.request.urlopen(url, timeout=_SILENCE_SECONDS) as answer:
            expected = answer.headers.get("Content-Length")
            while piece := answer.read(_PIECE):
                num_bytes += len(piece)
                if num_bytes > _MAX_BYTES or time.monotonic() > deadline:
                    raise UnreachableError(f"{url}: too large or too slow, given up after {num_bytes} bytes")
                yield piece
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url}: {getattr(error, 'reason', None) or error}") from error
    if expected is not None and num_bytes != int(expected):
        raise UnreachableError(f"{url}: ended after {num_bytes} of {expected} bytes")


def wheel_command(requirement: str, folder: str | Path) -> list[str]:
    """The pip call that puts a wheel into ``folder``; the same one whatever Python and system it runs on."""
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]


def download_wheel(requirement: str, folder: Path) -> Path:
    """Have pip put the wheel of ``name==version`` into ``folder``, from wherever the user's pip gets its packages.

    Raises:
        RunError: pip is not installed here, or does not find the wheel.
    """
    command = wheel_command(requirement, folder)
    shown = shlex.join(command)
    if importlib.util.find_spec("pip") is None:
        raise RunError(
            f"pip is not installed for {sys.executable}: add it (python -m ensurepip), or run this where there is "
            f"a pip and copy the wheel's files: {shown}"
        )
    logger.info("running %s", shown)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"no answer after {_DEADLINE_SECONDS:.0f} s: {shown}") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"pip did not get {requirement} ({lines[-1] if lines else 'no reason given'}): {shown}")
    return wheels[0]


def extract_wheel(wheel: Path, members: Sequence[WheelMember], folder: Path) -> None:
    """Take files out of a wheel into ``folder``, under their own names. All are checked before any is written.

    Raises:
        RunError: the wheel is damaged, lacks one of them, or holds another version of it.
    """
    contents = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                if archive.getinfo(member.path).file_size > _MAX_MEMBER_BYTES:
                    raise RunError(f"{member.path} in {wheel.name} is too large to be a model file")
                contents[member.name] = archive.read(member.path)
                found = hashlib.sha256(contents[member.name]).hexdigest()
                if found != member.sha256:
                    raise RunError(f"{member.path} in {wheel.name} has sha256 {found}, not {member.sha256}")
    except KeyError as error:
        raise RunError(f"{wheel.name} holds no such file: {error.args[0]}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise RunError(f"cannot read {wheel}: {error}") from error
    for name, data in contents.items():
        with atomic_write(folder / name) as file:
            file.write(data)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time make ``path``; the lock goes when the process does.

    It only saves work. Where a file system has no locks all go on at once, which is safe: files are renamed into
    place whole.
    """
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            logger.debug("no lock on %s: %s", path, error)
        yield
    finally:
        os.close(lock)
