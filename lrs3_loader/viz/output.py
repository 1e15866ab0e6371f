"""Writes images and videos, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from lrs3_loader.demo.encode import write_mp4
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import write_result


def check_output(path: Path) -> None:
    """Find out before the work whether ``path`` can be written.

    Raises:
        RunError: another suffix than .mp4 or .png, no such folder, or no permission.
    """
    if path.suffix.lower() not in (".mp4", ".png"):
        raise RunError(f"--out must end in .mp4 or .png, got {path}")
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def write_video(path: Path, pages: Iterable[np.ndarray], waveform: np.ndarray | None) -> None:
    """Write pages [h, w, 3] u8 at 25 fps, and audio [n] f32 at 16 kHz, as an mp4, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            made = Path(scratch) / "video.mp4"
            write_mp4(made, pages, waveform)
            made.replace(path)
    except (OSError, av.error.FFmpegError) as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def write_image(path: Path, image: np.ndarray, small: bool = False) -> None:
    """Write an image [h, w, 3] u8 as png, whole or not at all; a ``small`` one has 256 colours.

    Raises:
        RunError: it cannot be written.
    """
    encoded = Image.fromarray(image)
    if small:  # the other methods leave out what is bright but rare: dots, lines
        encoded = encoded.quantize(256, method=Image.Quantize.FASTOCTREE)
    with write_result(path) as file:
        encoded.save(file, "png", optimize=small)
