#!/usr/bin/env python3
"""Measure how fast things are, beside what else could be used for them.

python tools/bench.py stream

python tools/bench.py scan

python tools/bench.py fit --clips FOLDER
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lrs3_loader import cli


@dataclass(frozen=True)
class Stream:
    """Samples a second from shards: ShardStream, plain webdataset, and torch over .npy files."""

    samples: int = 10_000
    """Synthetic samples to make."""
    workers: int = 0
    """DataLoader workers."""
    passes: int = 3
    """Passes over all samples, of each way in turn."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise); 0.8 GB for 10000 samples."""

    def __call__(self) -> int:
        from lrs3_loader.bench import (
            stream as bench_stream,
        )  # torch takes seconds to import: not before the arguments are right

        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line in bench_stream.run_benchmark(Path(folder), self.samples, self.workers, self.passes):
                print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Scan:
    """Finding and planning the clips of an LRS3-sized tree of empty files."""

    share: float = 1.0
    """Size of the tree as a share of LRS3's 151,819 clips."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise)."""

    def __call__(self) -> int:
        from lrs3_loader.bench import scan

        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            for line in scan.run_benchmark(Path(folder), self.share):
                print(line, flush=True)
        return cli.EXIT_OK


@dataclass(frozen=True)
class Fit:
    """Landmark fitting: against Adam on GeneFace++'s objective, on small faces, with dense points, and on truth."""

    clips: Path | None = None
    """Folder of real clips; synthetic ones when not given."""
    face_model: str = "ict"
    """ict, demo, or a model file FILE.npz."""
    assets: Path | None = None
    """Folder of model files, looked in first."""
    truths: int = 12
    """Synthetic clips for each row of the table of truth."""
    frames: int = 125
    """Frames of each of these."""
    runs: int = 3
    """Runs of each timing; the fastest counts."""

    def __call__(self) -> int:
        from lrs3_loader.assets import Assets
        from lrs3_loader.bench import fit_report

        found = Assets(self.assets)
        for line in fit_report.run_benchmark(self.clips, self.face_model, found, self.truths, self.frames, self.runs):
            print(line, flush=True)
        return cli.EXIT_OK


COMMANDS = {"stream": Stream(), "scan": Scan(), "fit": Fit()}

if TYPE_CHECKING:
    Command = Stream | Scan | Fit
else:
    Command = tyro.extras.subcommand_type_from_defaults(COMMANDS)


@dataclass(frozen=True)
class Args:
    command: tyro.conf.OmitSubcommandPrefixes[Command]


if __name__ == "__main__":
    cli.main(lambda: cli.parse(Args, __doc__ or "").command())
