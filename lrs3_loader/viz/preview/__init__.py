"""Draws what was extracted from one clip, so that a person can judge the fit in ten seconds."""

from __future__ import annotations

from pathlib import Path

from lrs3_loader.viz.mesh import PAINTERS
from lrs3_loader.viz.output import check_output, write_image, write_video
from lrs3_loader.viz.preview.page import Page
from lrs3_loader.viz.preview.subject import Subject, from_file, from_run, list_keys

__all__ = ["Subject", "check_output", "from_file", "from_run", "list_keys", "write_image", "write_preview"]


def write_preview(subject: Subject, out: Path, panel_px: int, mesh: str = "simple", small: bool = False) -> None:
    """Write ``out``, whole or not at all: an ``.mp4`` of all frames, or a ``.png`` with a few of them.

    Args:
        panel_px: side of a panel.
        mesh: what draws it, a name of ``PAINTERS``.
        small: a png of 256 colours.

    Raises:
        RunError: ``out`` cannot be written or is of another kind, or pytorch3d is asked for and missing.
    """
    check_output(out)
    page = Page(subject, panel_px, PAINTERS[mesh])
    if out.suffix.lower() == ".png":
        write_image(out, page.sheet(), small)
    else:
        write_video(out, page.video(), subject.waveform)
