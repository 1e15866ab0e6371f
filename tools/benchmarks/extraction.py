"""Whole extractions, started as a user starts them, and what they took of the machine."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Usage, run_measured
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.types import Clip

#: Parts that processes play, by what their command line holds; the first that fits counts.
ROLES = {"torch.distributed.run": "launcher", "extract.py": "ranks", "multiprocessing": "decode workers"}
_SUMMARY = re.compile(r"this launch: (\d+) frames in ([\d.]+) s")


@dataclass(frozen=True)
class Extraction:
    """A finished run of tools/extract.py."""

    num_frames: int
    seconds: float  # with all models loaded, from the first clip asked for to the last shard published
    usage: Usage  # of the whole command, start-up included
    stage_seconds: dict[str, float]  # of the ranks, added up
    num_rejects: int

    @property
    def frames_per_second(self) -> float:
        return self.num_frames / self.seconds


class ExtractRunner:
    """Runs ``extract.py`` with options that are the same for all its runs."""

    def __init__(self, script: Path, options: Sequence[str], threads: int, on_gpu: bool) -> None:
        self._script = script
        self._options = list(options)
        self._threads = threads
        self._on_gpu = on_gpu

    def command(self, corpus: Path, out: Path, ranks: int, extra: Sequence[str] = ()) -> list[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        where = ["--corpus", str(corpus), "--out", str(out)]
        return [*(launcher if ranks > 1 else [sys.executable]), str(self._script), *where, *self._options, *extra]

    def run(self, corpus: Path, out: Path, ranks: int, extra: Sequence[str] = ()) -> Extraction:
        """Extract a corpus into a new folder.

        Raises:
            CommandFailedError: it did not work.
        """
        env = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "TQDM_DISABLE": "1"}
        usage = run_measured(self.command(corpus, out, ranks, extra), env, role_of, self._on_gpu)
        found = _SUMMARY.search(usage.output)
        if found is None:
            raise RuntimeError(f"extract.py did not say how long it took:\n{usage.output}")
        folder = RunFolder.open(out)
        stages: Counter[str] = Counter()
        for shard in folder.shards:
            stages.update(folder.ledger(shard).timings)
        rejects = len(folder.totals().rejects)
        return Extraction(int(found[1]), float(found[2]), usage, dict(stages), rejects)


def role_of(command_line: str) -> str:
    """Which part a process of an extraction plays."""
    return next((role for text, role in ROLES.items() if text in command_line), "other")


def forget(paths: Iterable[Path]) -> None:
    """Have the operating system drop these files from its memory, as far as nobody has them open."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def link_copies(corpus: Path, target: Path, copies: int) -> Path:
    """A corpus ``copies`` times as large: the same files, hard links under other speakers' names."""
    for path in sorted(corpus.rglob("*")):
        parts = path.relative_to(corpus).parts
        if path.is_file() and len(parts) == 3 and path.suffix in (".mp4", ".txt"):
            for copy in range(copies):
                place = target / parts[0] / f"{parts[1]}x{copy:03d}" / parts[2]
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, place)
    return target


def copy_clips(root: Path, clips: Iterable[Clip], target: Path) -> Path:
    """A corpus of these clips alone, in LRS3's layout, without transcripts."""
    for clip in clips:
        place = target / f"{clip.key}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / clip.video_path, place)
    return target
