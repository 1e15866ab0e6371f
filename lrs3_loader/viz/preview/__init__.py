"""Shows what was extracted from one clip, so that a person can judge the fit in ten seconds.

subject                  one clip's features, face model and video: from a file, or a sample of a run
view, mesh               how to draw the parts (lines, dots and text: viz.overlay)
measures, chart          curves below one time axis
conventions              the figure of what landmarks, axes and angles mean
page -> output           panels and strips laid out, as a video or a contact sheet
"""

from __future__ import annotations

from pathlib import Path

from lrs3_loader.viz.preview.mesh import PAINTERS
from lrs3_loader.viz.preview.output import check_output, write_picture, write_video
from lrs3_loader.viz.preview.page import Page
from lrs3_loader.viz.preview.subject import Subject, from_file, from_run, list_keys

__all__ = ["Subject", "check_output", "from_file", "from_run", "list_keys", "write_picture", "write_preview"]


def write_preview(subject: Subject, out: Path, panel_px: int, mesh: str = "simple", small: bool = False) -> None:
    """Write ``out``: an ``.mp4`` of all frames, or a ``.png`` with a few of them; panels of ``panel_px`` pixels.

    mesh: what draws it, a name of ``PAINTERS``. A ``small`` png has 256 colours.

    Raises ``RunError`` where ``out`` cannot be written, or is of another kind, or where pytorch3d is asked for and
    missing.
    """
    check_output(out)
    page = Page(subject, panel_px, PAINTERS[mesh])
    if out.suffix.lower() == ".png":
        write_picture(out, page.sheet(), small)
    else:
        write_video(out, page.video(), None if subject.video is None else subject.video.waveform)
