"""Writes the preview: an mp4 (H.264, with AAC sound where there is some) or a png."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from lrs3_loader.demo.encode import write_mp4
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write

SUFFIXES = (".mp4", ".png")


def check_output(path: Path) -> None:
    """Find out before the work whether ``path`` can be written.

    Raises:
        RunError: another suffix than .mp4 or .png, no such folder, or no permission.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RunError(f"--out must end in {' or '.join(SUFFIXES)}, got {path}")
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        (path.parent / f".{path.name}.probe").touch()
        (path.parent / f".{path.name}.probe").unlink()
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def write_video(path: Path, pages: Iterable[np.ndarray], waveform: np.ndarray | None) -> None:
    """Pages [h, w, 3] u8 at 25 fps, and sound [n] f32 at 16 kHz; there whole or not at all. Raises ``RunError``."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            made = Path(scratch) / "preview.mp4"
            write_mp4(made, pages, waveform)
            made.replace(path)
    except (OSError, av.error.FFmpegError) as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def write_picture(path: Path, picture: np.ndarray, small: bool = False) -> None:
    """A picture [h, w, 3] u8 as png; ``small``: of 256 colours. There whole or not at all. Raises ``RunError``."""
    image = Image.fromarray(picture)
    if small:  # the other methods leave out what is bright but rare: dots, lines
        image = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    try:
        with atomic_write(path) as file:
            image.save(file, "png", optimize=small)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
