"""One rank of a run without models: leases shards and publishes made-up features. Started by torchrun.

elastic_rank.py FOLDER

Shards come in stages of ten; those of a later stage wait for a file ``stage1``, ``stage2``... in the folder, so that
a test decides what happens before what.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lrs3_loader.launch import cli
from lrs3_loader.launch.leases import connect
from lrs3_loader.run.folder import RunFolder
from support.factory import make_features

STAGE = 10  # shards


def main() -> int:
    folder = RunFolder.open(sys.argv[1])
    queue = connect()
    if queue.rank == 0:
        queue.announce({"pending": folder.pending()})
    pending = queue.announcement()["pending"]
    with Path(sys.argv[1], "rounds.txt").open("a") as log:
        log.write(f"{os.environ['NODE']} {queue.rank} {queue.world_size} {len(pending)}\n")
    for index in queue.leases(pending):
        wait_for_stage(index // STAGE)
        publish(folder, index)
    queue.leave()
    if queue.rank == 0 and queue.wait_for_all(unresponsive_seconds=float(os.environ.get("SILENT", "60"))):
        for index in queue.leases(folder.pending(), "left"):
            publish(folder, index)
    return cli.EXIT_OK


def wait_for_stage(number: int) -> None:
    while number and not Path(sys.argv[1], f"stage{number}").exists():
        time.sleep(0.05)


def publish(folder: RunFolder, index: int) -> None:
    shard = folder.shards[index]
    folder.publish(shard, [make_features(clip, seed=index) for clip in shard.clips], {}, {})


if __name__ == "__main__":
    cli.main(main)
