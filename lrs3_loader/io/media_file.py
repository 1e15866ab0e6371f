"""Opens media files with any version of PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

# Titles and comments may not be UTF-8. PyAV 19 always accepts that, older versions only with this option.
_ACCEPT_ANY_TEXT: dict[str, Any] = (
    {"metadata_errors": "replace"} if hasattr(av.container.Container, "metadata_errors") else {}
)


def open_input(path: Path, timeout_seconds: float | None = None) -> av.container.InputContainer:
    """Open a media file for reading.

    Args:
        timeout_seconds: opening or reading fails after this long without data; None waits for ever.

    Raises:
        av.error.FFmpegError, OSError: the file is missing, damaged, or not a media file.
    """
    return av.open(str(path), timeout=timeout_seconds, **_ACCEPT_ANY_TEXT)
