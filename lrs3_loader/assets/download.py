"""Download model files over https or out of a Python wheel. A file appears only when it is complete and its hash
right."""

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
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.io.files import HashingFile, atomic_write
from lrs3_loader.io.zip_files import read_zip

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0  # to connect, and between two reads
_PIP_TIMEOUT_SECONDS = 1800.0
_MAX_WHEEL_BYTES = 1 << 30  # unpacked; mediapipe has 0.1 GB
_CHUNK_BYTES = 1 << 20
_WHEEL_OF = ("--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel."""

    path: str  # within the wheel
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def download(url: str, path: Path, sha256: str | None) -> None:
    """Download ``url`` to ``path``, which appears only when the file is complete and its hash right.

    Raises:
        UnreachableError: no connection within a few seconds, an error status, or a transfer that stalls or breaks.
        RunError: the file has another hash, or cannot be written.
    """
    logger.info("fetching %s", url)
    try:
        with atomic_write(path) as file:
            hashing = HashingFile(file)
            for chunk in _read_chunks(url):
                hashing.write(chunk)
            if sha256 not in (None, hashing.sha256):
                raise RunError(f"{url} gave another file than expected: sha256 {hashing.sha256}, not {sha256}")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _read_chunks(url: str) -> Iterator[bytes]:
    num_bytes = 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(_CHUNK_BYTES):
                num_bytes += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url}: {getattr(error, 'reason', None) or error}") from error
    if expected is not None and num_bytes != int(expected):
        raise UnreachableError(f"{url}: ended after {num_bytes} of {expected} bytes")


def wheel_command(requirement: str, folder: str | Path) -> list[str]:
    """Return the pip command that downloads a wheel into ``folder``; it does not depend on this Python and system."""
    return [sys.executable, "-m", "pip", "download", "--no-deps", *_WHEEL_OF, "--dest", str(folder), requirement]


def versions_command(package: str) -> list[str]:
    """Return the pip command that lists the versions of a package of which there are such wheels."""
    return [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", *_WHEEL_OF, package]


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``name==version`` into ``folder`` with pip, as the user has configured it.

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
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"no answer after {_PIP_TIMEOUT_SECONDS:.0f} s: {shown}") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"pip did not get {requirement} ({lines[-1] if lines else 'no reason given'}): {shown}")
    return wheels[0]


def extract_wheel(wheel: Path, members: Sequence[WheelMember], folder: Path) -> None:
    """Extract files of a wheel into ``folder``, without their paths. All are checked before any is written.

    Raises:
        RunError: the wheel is damaged, lacks one of them, or holds another version of it.
    """
    try:
        contents = read_zip(wheel, [member.path for member in members], _MAX_WHEEL_BYTES)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {wheel}: {error}") from error
    for member in members:
        found = hashlib.sha256(contents[member.path]).hexdigest()
        if found != member.sha256:
            raise RunError(f"{member.path} in {wheel.name} has sha256 {found}, not {member.sha256}")
    for member in members:
        with atomic_write(folder / member.name) as file:
            file.write(contents[member.path])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time make ``path``; the lock ends with the process.

    The lock only saves work. On a file system without locks all processes continue at once, which is safe: complete
    files are renamed into place.
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
