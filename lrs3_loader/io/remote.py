"""Reaches files behind URLs: how long an answer is waited for, and how failures that may pass are tried again.

All access to object storage and web servers goes through ``retry``, with a line in the log for each new attempt.
"""

from __future__ import annotations

import errno
import http.client
import io
import logging
import math
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO, Any, Protocol, TypeVar, cast

import fsspec

from lrs3_loader.errors import RunError, UnreachableError

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

RETRY_VARIABLE = "LRS3_LOADER_STORAGE_RETRY_SECONDS"
DEFAULT_RETRY_SECONDS = 300.0
ANSWER_SECONDS = 20.0  # without a byte, after which a request has failed
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0  # between two attempts; doubled each time
_PIECE_BYTES = 1 << 20
#: For botocore: one request without an answer ends after 40 seconds.
_S3_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": ANSWER_SECONDS,
    "retries": {"mode": "standard", "total_max_attempts": 2},
}
#: Base classes of errors that may pass, of Python, fsspec, botocore, aiohttp and requests.
_TEMPORARY_ERRORS = {
    *("ConnectionError", "TimeoutError", "FSTimeoutError", "Timeout", "HTTPClientError", "IncompleteReadError"),
    *("ResponseStreamingError", "ClientConnectionError", "ClientPayloadError"),
}
_TEMPORARY_ERRNOS = {
    *(errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
    getattr(errno, "EREMOTEIO", errno.EBUSY),
}
_TEMPORARY_STATUS = (408, 425, 429, 500, 502, 503, 504)  # of HTTP


def retry_seconds() -> float:
    """Return how long what cannot be reached is tried again: ``$LRS3_LOADER_STORAGE_RETRY_SECONDS``.

    Raises:
        RunError: the variable is not a number of seconds.
    """
    text = os.environ.get(RETRY_VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_RETRY_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise RunError(f"${RETRY_VARIABLE} must be a number of seconds, got {text!r}")
    return seconds


def retry(where: str, operation: Callable[[], Result]) -> Result:
    """Return what ``operation`` returns; after an error that may pass, call it again for ``retry_seconds()`` in all.

    Args:
        where: URL that is worked on, for messages.

    Raises:
        FileNotFoundError, RunError: from the operation.
        UnreachableError: any other error of it, in one line that names ``where``.
    """
    deadline = time.monotonic() + retry_seconds()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return operation()
        except (FileNotFoundError, RunError):
            raise
        # Each service raises its own errors and those of its network library: there is no common class.
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            left = deadline - time.monotonic()
            if left <= 0 or not _is_temporary(error):
                raise UnreachableError(f"{where} cannot be reached: {text}") from error
            logger.warning("%s cannot be reached (%s): trying again for up to %.0f s more", where, text, left)
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _is_temporary(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    known = bool(names & _TEMPORARY_ERRORS) or getattr(error, "errno", None) in _TEMPORARY_ERRNOS
    return known or getattr(error, "status", None) in _TEMPORARY_STATUS


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's (file system, path) of a URL. Call it for every operation, because no instance survives a fork.

    Raises:
        RunError: the package for its protocol is not installed.
    """
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**_S3_CONFIG, **own}
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        hint = "pip install 'lrs3_loader[s3]'" if options else "pip install it"
        raise RunError(f"{url} cannot be opened: {error} ({hint})") from error
    if options:
        fs.retries = 1  # of s3fs itself, which says nothing meanwhile
    return fs, path


def open_stream(url: str) -> IO[bytes]:
    """Open a URL of fsspec or a web server for sequential reading, which goes on where a connection breaks.

    Raises:
        FileNotFoundError: it does not exist.
        UnreachableError: it cannot be opened; reading raises this, too.
    """
    source: _Source = _WebSource(url) if url.startswith(("http://", "https://")) else _StoreSource(url)
    return cast(IO[bytes], io.BufferedReader(_ResumedFile(source), _PIECE_BYTES))


class _Source(Protocol):
    url: str

    def open_at(self, position: int) -> IO[bytes]:
        """Open it for reading from a byte on."""


class _ResumedFile(io.RawIOBase):
    """Reads a source from its beginning; opens it again at the same byte when reading fails."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._position = 0
        self._file: IO[bytes] | None = None
        retry(source.url, lambda: self._read(0))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = retry(self._source.url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._source.open_at(self._position)
            return self._file.read(size) if size else b""
        except BaseException:
            self._close_file()
            raise

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._close_file()
        super().close()


class _StoreSource:
    """A file that fsspec opens."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open_at(self, position: int) -> IO[bytes]:
        fs, path = file_system(self.url)
        file = cast(IO[bytes], fs.open(path, "rb"))
        if file.seekable():
            file.seek(position)
        else:
            _skip(file, position)
        return file


class _WebSource:
    """A file on a web server, which is read in one request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._version: str | None = None

    def open_at(self, position: int) -> IO[bytes]:
        range_header = {"Range": f"bytes={position}-"} if position else {}
        try:
            response = urllib.request.urlopen(
                urllib.request.Request(self.url, headers=range_header), timeout=ANSWER_SECONDS
            )
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(errno.ENOENT, f"HTTP status {error.code}", self.url) from error
            raise
        except urllib.error.URLError as error:
            if isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ConnectionError(str(error.reason)) from error
            raise
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if position and version != self._version:
            response.close()
            raise RunError(f"{self.url} was replaced while it was read: start again")
        self._version = version
        if position and response.status != http.client.PARTIAL_CONTENT:
            _skip(response, position)
        return cast(IO[bytes], _WholeResponse(response))


class _WholeResponse:
    """An answer whose end is an error before its announced length has arrived; http.client takes it for the end."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self, size: int) -> bytes:
        left = self._response.length
        try:
            data = bytes(self._response.read(size))
        except http.client.HTTPException as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        if not data and left:
            raise ConnectionError(f"it ended {left} bytes early")
        return data

    def close(self) -> None:
        self._response.close()


def _skip(file: Any, num_bytes: int) -> None:
    while num_bytes and (piece := file.read(min(num_bytes, _PIECE_BYTES))):
        num_bytes -= len(piece)
