"""Compare every shard of a run with its ledger, and list missing or damaged ones.

lrs3-loader verify runs/demo

With --repair, also mark them, so that the extraction makes them again when it is run the next time.

With --sync, also measure each clip's audio-video offset, by a network that lrs3-loader train-syncnet has trained:

lrs3-loader verify runs/demo --sync runs/syncnet/checkpoint.pt
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from lrs3_loader.errors import count_of
from lrs3_loader.launch import cli


@dataclass(frozen=True)
class Args:
    out: Annotated[str, tyro.conf.Positional]
    """Folder or URL of the run."""
    repair: bool = False
    """Remove the records of damaged shards: the next extraction makes these shards again."""
    add_figures: bool = False
    """Of a run that an older version wrote: copy the figures of every clip from the shards to the ledgers, where select
    and streams find them."""
    json: bool = False
    """Print the result as JSON, for scripts."""
    sync: Path | None = None
    """A checkpoint that train-syncnet wrote: measure offsets as well, into OUT/sync.jsonl."""


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.parse(Args, __doc__ or "", "verify", argv)
    if args.json and args.sync is not None:
        raise cli.UsageError("give either --json or --sync")

    from lrs3_loader.launch.summary import describe_rejects, totals_as_json
    from lrs3_loader.run.folder import RunFolder
    from lrs3_loader.run.lock import RunLock

    folder = RunFolder.open(args.out)
    found: dict[str, list[str]] = {}
    num_completed = 0
    writes = args.repair or args.add_figures
    with RunLock(folder.path) if writes and isinstance(folder.path, Path) else nullcontext():
        if args.add_figures:  # what was killed while it wrote a ledger left its temporary file
            folder.store.create(())
            folder.store.clear_scratch()
        for shard, problems in tqdm(folder.check(), total=len(folder.shards), unit="shard", disable=None):
            if problems:
                found[shard.name] = problems
            for problem in problems if not args.json else ():
                tqdm.write(f"{shard.name}: {problem}")
            if problems and args.repair:
                folder.unpublish(shard)
            if not problems and args.add_figures:
                num_completed += folder.add_figures(shard)
    totals = folder.totals()
    num_bad = len(found)
    if args.json:
        print(json.dumps({"out": str(folder.path), "problems": found, **totals_as_json(totals)}))
        return cli.EXIT_PROBLEM if num_bad else cli.EXIT_OK
    print(
        f"{len(folder.shards) - num_bad} of {count_of(len(folder.shards), 'shard')} intact: "
        f"{count_of(totals.num_samples, 'sample')}, {count_of(len(totals.rejects), 'reject')}",
        *describe_rejects(totals),
        sep="\n",
    )
    if args.add_figures:
        print(f"figures were added to {count_of(num_completed, 'ledger')}")
    if num_bad:
        option = "" if args.repair else " with --repair"
        print(f"missing or damaged: {count_of(num_bad, 'shard')}; run the extraction again{option} to make them again")
        return cli.EXIT_PROBLEM
    if args.sync is not None:
        from lrs3_loader.io.storage import local_path
        from lrs3_loader.run.offsets import OFFSETS_FILE
        from lrs3_loader.syncnet import measure
        from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint

        clips = measure.measure_offsets(folder, SyncNetCheckpoint.load(args.sync))
        offsets = list(tqdm(clips, total=totals.num_samples, unit="clip", disable=None))
        path = local_path(folder.path, "writing offsets next to the shards") / OFFSETS_FILE
        measure.write_offsets(path, offsets)
        print(measure.describe_offsets(offsets), f"offset and confidence of each clip: {path}", sep="\n")
    return cli.EXIT_OK
