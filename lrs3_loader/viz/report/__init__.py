"""Reports on a run as one self-contained HTML page: contents, throughput, rejects, distributions, a gallery."""

from __future__ import annotations

from pathlib import Path

from lrs3_loader.io.files import write_result
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.selection.expression import Expression
from lrs3_loader.viz.report.collect import Findings, Progress, collect
from lrs3_loader.viz.report.gallery import FrameReader, Gallery, ModelLoader
from lrs3_loader.viz.report.page import render

__all__ = ["Findings", "collect", "write_report"]


def write_report(
    folder: RunFolder,
    page: Path,
    *,
    sample: int | None,
    gallery: int,
    load_model: ModelLoader,
    progress: Progress,
    where: Expression | None = None,
    read_frame: FrameReader | None = None,
) -> Findings:
    """Write ``page``, whole or not at all.

    Args:
        sample: measure this many clips, evenly spread over the run (all when None).
        gallery: clips to draw, beside those at the ends of some figures; 0: none at all.
        load_model: gives the run's face model, or raises ``RunError``; then no meshes are drawn.
        progress: told of every clip that was read.
        where: measure and draw only clips for which this is true.
        read_frame: gives frames of the videos, which are shown then; None: no image of anybody.

    Raises:
        RunError: the page cannot be written.
    """
    findings = collect(folder, sample=sample, num_picks=gallery, progress=progress, where=where)
    drawn = Gallery(folder, load_model, read_frame)
    cards = drawn.draw(findings.picks)
    extremes = [(found, drawn.draw(found.picks)) for found in findings.extremes]
    findings.damaged += [problem for problem in drawn.damaged if problem not in findings.damaged]
    with write_result(page) as file:
        file.write(render(findings, cards, extremes, drawn.remarks).encode("utf-8", "replace"))
    return findings
