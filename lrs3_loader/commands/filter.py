"""Write the chosen clips of a run as a smaller run, which everything reads that reads runs.

lrs3-loader filter /data/lrs3-shards --where "face_size_px > 150" --out /data/lrs3-large

Run the same command again to resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from lrs3_loader.errors import count_of
from lrs3_loader.launch import cli
from lrs3_loader.selection.settings import Choice


@dataclass(frozen=True)
class Args:
    run: Annotated[str, tyro.conf.Positional]
    """Folder or URL of the run, which must be finished."""
    out: Path
    """Folder of the new run."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "filter", argv)

    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.run.lock import RunLock
    from lrs3_loader.selection.smaller_run import filter_run
    from lrs3_loader.selection.waterfall import describe_waterfall

    where = args.choice.expression()
    if where is None:
        raise cli.UsageError("say which clips to keep: --where CONDITION, --preset NAME, or both")
    folder = RunFolder.open(args.run)
    with RunLock(args.out), tqdm(unit="clip", disable=None) as bar:
        new, steps = filter_run(folder, where, args.out, bar.update)
    totals = new.totals()
    print(*describe_waterfall(folder.figures(), steps), sep="\n")
    samples, shards = count_of(totals.num_samples, "sample"), count_of(totals.num_shards, "shard")
    print(f"{samples} in {shards}, {totals.num_bytes / 1e6:.1f} MB in {args.out}")
    return cli.EXIT_OK
