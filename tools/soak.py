#!/usr/bin/env python3
"""Extract a generated corpus twice, once undisturbed and once under random kills, and compare the two to the byte.

python tools/soak.py runs/soak --picture docs/soak.png

Writes FOLDER/soak.json; exit code 1 if anything differs, does not add up, or if the memory of a process grows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lrs3_loader.launch import cli

COLOURS = {"torchrun": "tab:grey", "rank": "tab:blue", "helper": "tab:green", "decoder": "tab:orange"}


@dataclass(frozen=True)
class Args:
    folder: Annotated[Path, tyro.conf.Positional]
    """Empty or new folder to work in."""
    clips: int = 2000
    """Clips of the corpus: sixteen generated ones under as many names."""
    ranks: int = 2
    """Ranks of each launch."""
    seed: int = 0
    """Seed of what is killed, and when."""
    assets: Path | None = None
    """Folder with model files, as for tools/extract.py."""
    picture: Path | None = None
    """Draw the memory of every process here."""


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    from benchmarks.soak import Soak, run_soak  # torch takes seconds to import

    soak = Soak(args.folder, clips=args.clips, ranks=args.ranks, seed=args.seed, assets=args.assets)
    found = run_soak(soak, lambda line: print(line, flush=True))
    (args.folder / "soak.json").write_text(json.dumps(found) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "lives"}, indent=1))
    if args.picture is not None:
        draw(found, args.picture)
        print(args.picture)
    is_sound = all(found[what] for what in ("adds_up", "same_bytes", "same_rejects", "is_flat"))
    return cli.EXIT_OK if is_sound and not found["problems"] + found["scratch_left"] else cli.EXIT_PROBLEM


def draw(found: dict[str, Any], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 3.6), sharey=True, layout="constrained")
    for axis, (name, lives) in zip(axes, found["lives"].items(), strict=True):
        for life in lives:
            axis.plot(life["seconds"], life["mebibytes"], color=COLOURS[life["kind"]], linewidth=1)
        axis.set(title=f"{name}: {len(lives)} processes", xlabel="seconds")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="private memory, MiB", ylim=(0, None))
    kills = ", ".join(f"{count} x {what}" for what, count in sorted(found["kills"].items()))
    axes[1].set_title(f"killed: {kills}; {found['launches']} launches")
    handles = [pyplot.Line2D([], [], color=colour) for colour in COLOURS.values()]
    figure.legend(handles, list(COLOURS), loc="outside lower center", ncols=len(COLOURS))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    cli.main(main)
