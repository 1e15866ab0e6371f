"""Opens media files with any version of PyAV, and refuses what is not one media file of its own."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Any

import av

from lrs3_loader.errors import UnreadableError

#: FFmpeg's names of the containers that are read. Others stay out, above all those whose files name further files or
#: addresses to read: playlists (concat, hls, dash), sequences of images, session descriptions, subtitles.
FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegts", "flv", "asf", "ogg", "mxf", "nut", "rm", "dv", "ivf"),
    *("h264", "hevc", "m4v", "mpegvideo"),
    *("wav", "w64", "aiff", "caf", "au", "flac", "mp3", "aac", "ac3", "eac3", "amr"),
)
#: What reading a damaged file raises. IndexError: PyAV, at the end of a file with tracks that its header does not have.
MEDIA_ERRORS = (av.error.FFmpegError, IndexError)
_GENERATE_TIMESTAMPS = 1  # AVFMT_FLAG_GENPTS
_OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
# Titles and comments may not be UTF-8. PyAV 19 always accepts that, older versions only with this option.
_ACCEPT_ANY_TEXT: dict[str, Any] = (
    {"metadata_errors": "replace"} if hasattr(av.container.Container, "metadata_errors") else {}
)


def check_regular(path: Path, name: str) -> None:
    """Check that ``path``, after following links, is a regular file with something in it: opening a pipe may block.

    Raises:
        UnreadableError: it is missing, empty, or not a regular file; the message begins with ``name``.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise UnreadableError(f"{name}: {error.strerror}") from error
    if not stat.S_ISREG(state.st_mode):
        raise UnreadableError(f"{name}: not a regular file (a folder, pipe, socket or device)")
    if state.st_size == 0:
        raise UnreadableError(f"{name}: the file is empty")


def open_input(path: Path, name: str, timeout_seconds: float | None = None) -> av.container.InputContainer:
    """Open a media file for reading.

    Args:
        name: the name of the file in error messages.
        timeout_seconds: opening or reading fails after this long without data; None waits for ever.

    Raises:
        UnreadableError: the file is missing, damaged, or not a media file of one of ``FORMATS``.
    """
    check_regular(path, name)
    try:
        container = av.open(str(path), timeout=timeout_seconds, container_options=_OPTIONS, **_ACCEPT_ANY_TEXT)
    except av.error.FFmpegError as error:
        text = f"not readable as a media file ({error.strerror})"
        if error.errno == errno.EINVAL:  # FFmpeg's answer to a format that is not in ``FORMATS``
            text = f"a playlist, image, text or the like, not a file of video or audio ({error.strerror})"
        raise UnreadableError(f"{name}: {text}") from error
    if container.format.name == "avi":  # PyAV has FFmpeg make up timestamps, wrong ones if frames are out of order
        container.flags = int(container.flags) & ~_GENERATE_TIMESTAMPS
    return container
