"""The processes of one launch, told apart by their place in the tree, and the memory that each holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

Kind = Literal["torchrun", "rank", "helper", "decoder"]

KINDS: tuple[Kind, ...] = ("torchrun", "rank", "helper", "decoder")  # by depth; helpers start and count decoders
MIN_SECONDS = 60.0  # of life, for a process's memory to have a direction
SETTLED = 0.4  # share of a life in which caches still fill


@dataclass
class Life:
    """One process: what it was, and its private memory over time."""

    pid: int
    kind: Kind
    seconds: list[float] = field(default_factory=list)  # since the sampling began
    mebibytes: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float | None:
        """From the middle of its life to its end, as a share of its memory; None for a life too short to tell."""
        if not self.seconds or self.seconds[-1] - self.seconds[0] < MIN_SECONDS:
            return None
        settled = self.mebibytes[round(SETTLED * len(self.mebibytes)) :]
        third = max(1, len(settled) // 3)
        return median(settled[-third:]) / max(median(settled[:third]), 1.0) - 1


class Sampler:
    """Notes the memory of every process below a launch's first one, twice a second, in a thread."""

    def __init__(self) -> None:
        self.lives: dict[tuple[int, Kind], Life] = {}
        self.root: int | None = None  # process id of the launch that runs now
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            root = self.root
            if root is None:
                continue
            now = time.monotonic() - self._begun
            for pid, kind in family(root):
                held = private_mebibytes(pid)
                if held is not None:
                    life = self.lives.setdefault((pid, kind), Life(pid, kind))
                    life.seconds.append(round(now, 1))
                    life.mebibytes.append(round(held, 1))


def family(root: int) -> Iterator[tuple[int, Kind]]:
    """A launch's first process and all below it: torchrun, its ranks, their helpers, and the decoders."""
    level = [root]
    for kind in KINDS:
        for pid in level:
            yield pid, kind
        level = [child for pid in level for child in children(pid)]


def children(pid: int) -> list[int]:
    """Ids of the processes that a process has started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return found


def private_mebibytes(pid: int) -> float | None:
    """Memory of a process that is its own (what is shared in transit is left out); None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) / 1024 if found else None
