"""Opens media files with PyAV, whatever its version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

# Titles and comments need not be UTF-8. PyAV 19 always accepts that; older versions do when they are told to.
_ACCEPT_ANY_TEXT: dict[str, Any] = (
    {"metadata_errors": "replace"} if hasattr(av.container.Container, "metadata_errors") else {}
)


def open_input(path: Path, timeout_seconds: float | None = None) -> av.container.InputContainer:
    """Open a media file for reading.

    Args:
        timeout_seconds: of silence after which opening or reading fails; None waits for ever.

    Raises:
        av.error.FFmpegError, OSError: missing, damaged, or no media file.
    """
    return av.open(str(path), timeout=timeout_seconds, **_ACCEPT_ANY_TEXT)
