"""Show landmarks, mesh, mel, pitch, speech features and curves of one clip, to judge the fit by eye.

lrs3-loader preview clip.mp4 --out preview.mp4

lrs3-loader preview runs/demo pretrain/DemoHead000/00001 --out preview.png

lrs3-loader preview runs/demo --where "identity_change > 2" --out preview.png

A clip file is extracted on the spot; RUN KEY shows a sample as it was written, drawn over its video if the corpus is
still available, RUN --where the first clip that a condition chooses. An .mp4 shows all frames, a .png a few frames and
the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lrs3_loader.config import Fit, Place, rarely
from lrs3_loader.launch import cli
from lrs3_loader.selection.settings import Choice

if TYPE_CHECKING:
    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.selection.expression import Expression

NUM_NAMED = 5  # of the clips that are chosen


@dataclass(frozen=True)
class Sources:
    """Files that the preview reads, and the device that computes it."""

    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    corpus: Path | None = None
    """Where the run's corpus is now, if it was moved."""
    device: str = "auto"
    """For a clip file: auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Drawing:
    """Settings of the drawing."""

    small: bool = False
    """Write a .png of 256 colours, a quarter of the size."""
    panel: int = 320
    """Side of a panel in pixels (even, at least 64)."""
    mesh: Literal["simple", "wireframe", "pytorch3d"] = "simple"
    """How the mesh is drawn: shaded, as a wireframe, or shaded by pytorch3d (seconds per frame on a CPU)."""

    def __post_init__(self) -> None:
        if self.panel < 64 or self.panel % 2:
            raise ValueError(f"panel must be even and at least 64, got {self.panel}")


@dataclass(frozen=True)
class Args:
    source: Annotated[Place, tyro.conf.Positional]
    """A clip file, or the folder or URL of a run."""
    out: Path
    """The .mp4 or .png to write."""
    key: Annotated[str | None, tyro.conf.Positional] = None
    """Which sample of the run: <split>/<speaker>/<utterance>."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    face_model: str | None = None
    """ict, demo, or a model file FILE.npz (ict for a clip, the run's own for a sample when not given)."""
    fit: Fit | None = None
    """For a clip file: how to fit the face model, as for extract (fast when not given)."""
    video: bool = True
    """Show the video of a run's sample if available, and the crops that the run stores (--store-face, --store-mouth);
    --no-video shows only extracted values, and nobody's face."""
    hubert: str | None = None
    """For a clip file: the speech encoder to show as well, a Hugging Face name or a folder."""
    sources: Annotated[Sources, rarely("files and device")] = field(default_factory=Sources)
    drawing: Annotated[Drawing, rarely("drawing")] = field(default_factory=Drawing)


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "preview", argv)
    clip = args.source if isinstance(args.source, Path) and args.source.is_file() else None
    if clip is not None and (args.key is not None or args.sources.corpus is not None):
        raise cli.UsageError("KEY and --corpus go with the folder of a run, not with a clip file")
    if clip is None and args.fit is not None:
        raise cli.UsageError("--fit goes with a clip file: a run's sample was fitted when it was made")
    if clip is None and args.hubert is not None:
        raise cli.UsageError("--hubert goes with a clip file: a run's sample holds its own speech features")

    where = args.choice.expression()
    if where is not None and (clip is not None or args.key is not None):
        raise cli.UsageError("--where and --preset choose a clip of a run: give no KEY, and no clip file")

    from lrs3_loader.assets.locate import Assets
    from lrs3_loader.errors import RunError
    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.runtime.device import pick_device
    from lrs3_loader.viz import preview

    preview.check_output(args.out)
    assets = Assets(args.sources.assets)
    subject_of = partial(
        preview.from_run,
        args.source,
        assets=assets,
        face_model=args.face_model,
        corpus=args.sources.corpus,
        video=args.video,
    )
    if clip is not None:
        device = pick_device(args.sources.device)
        subject = preview.from_file(clip, args.face_model or "ict", assets, device, args.hubert, args.fit or "fast")
    elif isinstance(args.source, Path) and not args.source.exists():
        raise RunError(f"no such clip or run: {args.source}")
    elif where is not None:
        subject = subject_of(_first_key(RunFolder.open(args.source), where))
    elif args.key is None:
        keys = preview.list_keys(args.source)
        raise RunError(f"{args.source} holds {len(keys)} clips: give a KEY as well, such as {', '.join(keys[:3])}")
    else:
        subject = subject_of(args.key)
    drawing = args.drawing
    preview.write_preview(subject, args.out, drawing.panel, drawing.mesh, drawing.small)
    print(args.out)
    return cli.EXIT_OK


def _first_key(folder: RunFolder, where: Expression) -> str:
    """Return the first of the clips for which a condition is true, and print how many there are."""
    from lrs3_loader.errors import RunError
    from lrs3_loader.selection.waterfall import waterfall

    table = folder.figures()
    keys = table.columns["key"][waterfall(table, where)[0]].tolist()
    if not keys:
        raise RunError(f"{where.text} is true for none of {len(table)} clips of {folder.path}")
    others = f"; others: {', '.join(keys[1:NUM_NAMED])}{', ...' if len(keys) > NUM_NAMED else ''}" if keys[1:] else ""
    print(f"{len(keys)} of {len(table)} clips, the first is {keys[0]}{others}")
    return str(keys[0])
