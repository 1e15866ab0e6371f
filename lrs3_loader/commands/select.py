"""Choose clips of a run by their figures: write their keys, or the whole table.

lrs3-loader select runs/demo --where "face_size_px > 150 and abs(yaw_p95) < 40" --out keys.txt

lrs3-loader select /data/lrs3-shards --preset talkvid --csv figures.csv --parquet figures.parquet

No tar is opened. The lines printed say how many clips and hours each condition takes, after those before it and alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lrs3_loader.launch import cli
from lrs3_loader.selection.presets import PRESETS
from lrs3_loader.selection.settings import Choice

if TYPE_CHECKING:
    from lrs3_loader.run.figure_table import FigureTable
    from lrs3_loader.selection.waterfall import Step


@dataclass(frozen=True)
class Args:
    run: Annotated[str, tyro.conf.Positional]
    """Folder or URL of the run."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    out: Path | None = None
    """File for the keys of the chosen clips, one a line."""
    csv: Path | None = None
    """File for the figures of the chosen clips, as CSV."""
    parquet: Path | None = None
    """The same as parquet (needs the extra `table`)."""
    json: bool = False
    """Print what each condition takes as one JSON object, for scripts."""


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "select", argv)

    from lrs3_loader.io.files import write_result
    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.selection.waterfall import describe_waterfall, waterfall

    where = args.choice.expression()
    table = RunFolder.open(args.run).figures()
    chosen = table
    steps: list[Step] = []
    if where is not None:
        mask, steps = waterfall(table, where)
        chosen = table.rows(mask)
    if args.json:
        print(_as_json(table, chosen, steps))
    else:
        if table.missing:
            print(f"note: {cli.as_called(table.missing)}")
        if where is not None:
            print(*describe_waterfall(table, steps), sep="\n")
        if args.choice.preset:
            preset = PRESETS[args.choice.preset]
            print(f"{args.choice.preset}: {preset.source}", f"not covered: {preset.not_covered}", sep="\n")
    if args.out is not None:
        with write_result(args.out) as file:
            file.writelines(f"{key}\n".encode("utf-8", "surrogateescape") for key in chosen.columns["key"])
    if args.csv is not None:
        chosen.write_csv(args.csv)
    if args.parquet is not None:
        chosen.write_parquet(args.parquet)
    if args.json:
        return cli.EXIT_OK
    written = ", ".join(str(path) for path in (args.out, args.csv, args.parquet) if path is not None)
    print(
        f"{len(chosen)} of {len(table)} clips, {chosen.seconds / 3600:.3f} of {table.seconds / 3600:.3f} hours"
        + (f" in {written}" if written else "")
    )
    return cli.EXIT_OK


def _as_json(table: FigureTable, chosen: FigureTable, steps: Sequence[Step]) -> str:
    return json.dumps(
        {
            "clips": len(table),
            "seconds": table.seconds,
            "chosen": len(chosen),
            "chosen_seconds": chosen.seconds,
            "without_figures": len(table) - int(table.has_figures.sum()),
            "conditions": [dataclasses.asdict(step) for step in steps],
        }
    )
