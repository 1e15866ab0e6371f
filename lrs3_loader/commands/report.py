"""Write a run as one self-contained HTML page: totals, throughput, rejects, distributions, a gallery, provenance.

lrs3-loader report runs/demo

lrs3-loader report /data/lrs3-shards --sample 5000 --page lrs3.html

The page shows extracted values only, and nobody's face unless --video is given. Of an unfinished run it shows the
shards written so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from lrs3_loader.config import Place, rarely
from lrs3_loader.launch import cli
from lrs3_loader.selection.settings import Choice


@dataclass(frozen=True)
class ModelSources:
    """Places to look for the run's face model."""

    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    face_model: str | None = None
    """The run's face model, if it was moved: ict, demo or FILE.npz."""


@dataclass(frozen=True)
class Args:
    out: Annotated[Place, tyro.conf.Positional]
    """Folder or URL of the run."""
    page: Path | None = None
    """The file to write (OUT/report.html when not given, for a run at a URL report.html here)."""
    sample: int | None = 5000
    """Read the arrays of this many clips, evenly spread over the run (None: all). Figures are of all clips anyway."""
    gallery: int = 6
    """Number of clips to draw: the worst fit and other extremes first. 0: none, nor the worst and best by figures."""
    video: bool = False
    """Draw over the frames of the corpus, if it is still there. Without it the page shows nobody's face."""
    corpus: Path | None = None
    """Where the run's corpus is now, if it was moved."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    models: Annotated[ModelSources, rarely("model files")] = field(default_factory=ModelSources)

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"sample must be at least 1, got {self.sample}")
        if self.corpus is not None and not self.video:
            raise ValueError("--corpus goes with --video")
        if self.gallery < 0:
            raise ValueError(f"gallery must be at least 0, got {self.gallery}")


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "report", argv)

    from tqdm import tqdm

    from lrs3_loader.assets.locate import Assets
    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.viz.preview.subject import frame_of_run, model_of_run
    from lrs3_loader.viz.report import write_report

    folder = RunFolder.open(args.out)
    page = args.page or (args.out if isinstance(args.out, Path) else Path()) / "report.html"
    with tqdm(unit="clip", disable=None) as bar:
        findings = write_report(
            folder,
            page,
            sample=args.sample,
            gallery=args.gallery,
            load_model=lambda: model_of_run(folder, args.models.face_model, Assets(args.models.assets), fetch=False),
            progress=bar.update,
            where=args.choice.expression(),
            read_frame=partial(frame_of_run, folder, args.corpus) if args.video else None,
        )
    for problem in findings.damaged:
        print(f"damaged: {problem}")
    print(page)
    return cli.EXIT_PROBLEM if findings.damaged else cli.EXIT_OK
