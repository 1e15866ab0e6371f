"""Scale without models: how long a launch of a large run takes to begin, and what leases cost with thousands of ranks.

The run is made of ledgers and empty tars that are as large as their ledgers say (sparse files), so everything that a
launch reads when it begins is there in its real size, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger, ledger_name, tar_name
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.record import run_hash
from lrs3_loader.runtime.progress import LINE_SECONDS, with_progress
from lrs3_loader.types import Clip, Shard

logger = logging.getLogger("lrs3_loader.benchmarks")

NUM_FRAMES = 250  # of a clip
SHARD_BYTES = 100 << 20
CONNECTIONS = 32  # of each process, shared by its ranks: making one may wait for a name server, and thousands for hours


@dataclass(frozen=True)
class StartUp:
    """Seconds of each step of a launch that resumes a run."""

    num_shards: int
    num_clips: int
    open_seconds: float  # run.json, and the manifest checked against its hash
    read_seconds: float  # what is published, every ledger read
    index_seconds: float  # the same by a launch that finds the index
    totals_seconds: float

    def lines(self) -> list[str]:
        return [
            f"{self.num_shards} shards, {self.num_clips} clips",
            f"  open the run, check its manifest    {self.open_seconds:7.2f} s",
            f"  find what is published, by ledgers  {self.read_seconds:7.2f} s",
            f"  find what is published, by index    {self.index_seconds:7.2f} s",
            f"  add it all up                       {self.totals_seconds:7.2f} s",
            f"  a resumed launch begins after       {self.open_seconds + self.index_seconds:7.2f} s "
            f"({self.open_seconds + self.read_seconds:.2f} s without an index)",
        ]


def make_large_run(path: Path, num_shards: int, clips_per_shard: int) -> None:
    """A run of that size of which all but the last shard is published."""
    shards = _Shards(num_shards, clips_per_shard)
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": {}, "device_type": "cpu"}
    RunFolder.create(path, record, shards)
    run = run_hash(record)
    published = islice(shards, num_shards - 1)
    for shard in with_progress(published, num_shards - 1, "shards written", logger):
        with open(path / tar_name(shard.name), "wb") as tar:
            os.truncate(tar.fileno(), SHARD_BYTES)
        samples = tuple((clip.key, NUM_FRAMES) for clip in shard.clips[1:])
        rejects = ((shard.clips[0].key, "no_face", "3 of 250 frames with a face"),)
        ledger = Ledger(shard.name, run, "0" * 64, SHARD_BYTES, samples, rejects, {"fit": 1.0}, {})
        (path / ledger_name(shard.name)).write_text(ledger.to_json())


class _Shards:
    """Shards made again on each pass: millions of clips are never held at once."""

    def __init__(self, num_shards: int, clips_per_shard: int):
        self._size = num_shards, clips_per_shard

    def __iter__(self) -> Iterator[Shard]:
        return (_shard(number, self._size[1]) for number in range(self._size[0]))


def _shard(number: int, num_clips: int) -> Shard:
    name = f"pretrain-{number:06d}"
    keys = [f"pretrain/speaker{number:06d}/{clip:05d}" for clip in range(num_clips)]
    return Shard(name, tuple(Clip(key, f"{key}.mp4", 250_000, transcript_path=f"{key}.txt") for key in keys))


def time_start_up(path: Path) -> StartUp:
    """What a launch does before it leases its first shard, with an index and without."""
    (path / "index.jsonl").unlink(missing_ok=True)
    started = time.perf_counter()
    folder = RunFolder.open(path)
    opened = time.perf_counter()
    assert folder.pending() == [len(folder.shards) - 1]
    read = time.perf_counter()
    folder.save_index()
    folder = RunFolder.open(path)
    before = time.perf_counter()
    assert folder.pending() == [len(folder.shards) - 1]
    indexed = time.perf_counter()
    folder.totals()
    return StartUp(
        num_shards=len(folder.shards),
        num_clips=folder.shards.num_clips,
        open_seconds=opened - started,
        read_seconds=read - opened,
        index_seconds=indexed - before,
        totals_seconds=time.perf_counter() - indexed,
    )


@dataclass(frozen=True)
class Leases:
    """What a launch of many ranks draws from one store."""

    num_ranks: int
    num_shards: int
    seconds: float
    fewest: int  # leases of a rank
    most: int
    announce_bytes: int

    @property
    def per_second(self) -> float:
        return self.num_shards / self.seconds

    def lines(self) -> list[str]:
        return [
            f"{self.num_ranks} ranks drew {self.num_shards} shards in {self.seconds:.1f} s",
            f"  {self.per_second:.0f} leases/s; each came once; a rank drew {self.fewest} to {self.most}",
            f"  the announcement has {self.announce_bytes} bytes",
        ]


def time_leases(num_ranks: int, num_shards: int, num_processes: int = 4) -> Leases:
    """Ranks in some processes, over connections to a real store, drawing turn by turn.

    Every lease is followed by what a rank tells while it works on a shard: its counters and a sign of life.
    """
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    queue = WorkQueue(server, 0, num_ranks)
    queue.announce({"pending": list(range(num_shards))})
    shares = [list(range(first, num_ranks, num_processes)) for first in range(num_processes)]
    processes = [_start_ranks(server.port, share, num_ranks) for share in shares]
    while server.add("ready", 0) < num_processes:  # torch takes seconds to import: that is not measured
        time.sleep(0.1)
    server.set("go", "")
    drawn: dict[int, list[int]] = {}
    seconds = 0.0
    for process in processes:
        output = _wait_for(process, queue, num_shards)
        if process.returncode:
            raise RuntimeError("a process of ranks ended with an error")
        result = json.loads(output)
        seconds = max(seconds, result["seconds"])
        drawn |= {int(rank): found for rank, found in result["drawn"].items()}
    assert sorted(index for found in drawn.values() for index in found) == list(range(num_shards))
    counts = [len(found) for found in drawn.values()]
    return Leases(num_ranks, num_shards, seconds, min(counts), max(counts), len(server.get("launch")))


def _wait_for(process: subprocess.Popen[str], queue: WorkQueue, num_shards: int) -> str:
    """Return what a process of ranks prints, and say meanwhile how far all of them are."""
    while True:
        try:
            return process.communicate(timeout=LINE_SECONDS)[0]
        except subprocess.TimeoutExpired:
            logger.info("%d of %d shards drawn", queue.add("clips", 0), num_shards)


def _start_ranks(port: int, ranks: list[int], num_ranks: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", __name__, str(port), str(num_ranks), *map(str, ranks)]
    tools = Path(__file__).parents[1]  # where this module is found by its name
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tools)


def _client(port: int) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)


def draw_as(port: int, num_ranks: int, ranks: list[int]) -> dict[str, Any]:
    """Some ranks, one after another as in a round: each draws, and tells what it has done."""
    drawn: dict[int, list[int]] = {rank: [] for rank in ranks}
    clients = [_client(port) for _ in range(min(len(ranks), CONNECTIONS))]
    waiting: list[tuple[int, WorkQueue, Iterator[int]]] = []
    for number, rank in enumerate(ranks):
        queue = WorkQueue(clients[number % len(clients)], rank, num_ranks)
        waiting.append((rank, queue, queue.leases(queue.announcement()["pending"])))
    control = clients[0]
    control.add("ready", 1)
    control.wait(["go"])
    started = time.perf_counter()
    while waiting:
        still = []
        for rank, queue, leases in waiting:
            index = next(leases, None)
            if index is None:
                queue.leave()
                continue
            drawn[rank].append(index)
            for counter in ("clips", "frames", "rejects"):
                queue.add(counter, 1)
            queue.heartbeat()
            still.append((rank, queue, leases))
        waiting = still
    return {"seconds": time.perf_counter() - started, "drawn": drawn}


def run_benchmark(folder: Path, num_shards: int, clips_per_shard: int, num_ranks: int) -> Iterator[str]:
    """The whole of it, in a folder that is removed afterwards."""
    path = folder / "scale"
    try:
        make_large_run(path, num_shards, clips_per_shard)
        logger.info("beginning a launch of it, without an index and with one")
        yield from time_start_up(path).lines()
    finally:
        shutil.rmtree(path, ignore_errors=True)
    yield from time_leases(num_ranks, num_shards).lines()


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.stdout.write(json.dumps(draw_as(given[0], given[1], given[2:])))
