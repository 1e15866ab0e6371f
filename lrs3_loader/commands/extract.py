"""Extract a corpus of talking-face clips into WebDataset shards.

lrs3-loader extract --demo --out runs/demo

torchrun --nproc_per_node 4 -m lrs3_loader extract --corpus /data/lrs3 --out /data/lrs3-shards

Exit codes: 0 done, 1 a problem that its last line names, 2 wrong arguments, 3 too many rejects, 130 or 143 stopped by
Ctrl-C or a signal. Run the same command again to resume, or: lrs3-loader extract --resume /data/lrs3-shards
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lrs3_loader import flags
from lrs3_loader.config import LaunchConfig, OptionalPlace, RunConfig, demo_defaults
from lrs3_loader.doctor import checks
from lrs3_loader.errors import RunError
from lrs3_loader.launch import cli, settings


@dataclass(frozen=True)
class Args:
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    launch: Annotated[LaunchConfig, tyro.conf.arg(name="")]
    resume: OptionalPlace = None
    """Continue the run there (a folder or URL) with the settings that it was begun with, instead of --out."""
    config: Path | None = None
    """YAML file with values of flags, such as `min-frames: 8`; the command line counts more."""
    print_config: bool = False
    """Print all settings as such a file, and stop."""
    dry_run: bool = False
    """Print what would be done (layout, clips, hours, shards, bytes, time), and stop."""
    json: bool = False
    """Print the summary as JSON, for scripts."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.print_config:
        if cli.is_rank_0():
            print(settings.as_file(args.run, args.launch), end="")
        return cli.EXIT_OK
    if args.launch.demo == (args.run.corpus.corpus is not None):
        raise cli.UsageError("give either --corpus PATH or --demo")
    checks.stop_if_unfit(args.launch.out, args.launch.workers.num_workers)
    if args.dry_run:
        return dry_run(args)

    with cli.resumable():  # torch takes seconds to import
        from lrs3_loader.launch import leases, runner, summary

        queue = leases.connect()
    if (outcome := runner.run(args.run, args.launch, queue)) is None:
        return cli.EXIT_OK
    print(summary.outcome_as_json(outcome) if args.json else summary.describe_outcome(outcome))
    if args.launch.demo and not args.json:
        print(summary.describe_demo(outcome.folder))
    num_rejects, num_clips = len(outcome.totals.rejects), outcome.folder.shards.num_clips
    if num_rejects == num_clips or num_rejects > args.launch.max_reject_fraction * num_clips:
        print(f"{num_rejects} of {num_clips} clips are rejects", file=sys.stderr)
        return cli.EXIT_REJECTS
    return cli.EXIT_OK


def parse(words: Sequence[str]) -> Args:
    """Parse the command line, with the settings of a file or a run where it names one."""
    try:
        if (file := _value_of("--config", words)) is not None:
            words = _words_of(Path(file), words)
        run, launch = _defaults(words)
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    return cli.parse(Args, __doc__ or "", "extract", words, Args(run, launch))


def _words_of(file: Path, words: Sequence[str]) -> list[str]:
    """Put the words of a file of settings before those of the command line."""
    try:
        return [*settings.words_from_file(file, words), *words]
    except RunError as error:
        raise cli.UsageError(str(error)) from error


def _defaults(words: Sequence[str]) -> tuple[RunConfig, LaunchConfig]:
    """Return the values of flags that are not given."""
    place = _value_of("--resume", words)
    if place is None:
        return demo_defaults(RunConfig()) if "--demo" in words else RunConfig(), LaunchConfig(out=tyro.MISSING)
    if _value_of("--out", words) not in (None, place):
        raise ValueError("give either --resume or --out")
    from lrs3_loader.run.folder import RunFolder

    folder = RunFolder.open(place)
    try:
        run = flags.config_from_json(folder.record["config"])
    except ValueError as error:
        raise ValueError(f"{folder.path} cannot be resumed by its name alone: {error}") from error
    return run, LaunchConfig(out=folder.path, device=folder.record["device_type"])


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """Return the value of a flag among the words of a command line, before these are parsed."""
    for word, following in zip(words, [*words, None][1:], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def dry_run(args: Args) -> int:
    """Print on rank 0 what the launch would do."""
    if cli.is_rank_0():
        from lrs3_loader.launch.dry_run import describe_launch

        if args.launch.demo:
            raise cli.UsageError("--dry-run is for a corpus; --demo makes 12 clips first")
        print(describe_launch(args.run, args.launch))
    return cli.EXIT_OK
