"""How long it takes to find and plan the clips of a corpus as large as LRS3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from lrs3_loader.config import CorpusConfig, PlanConfig
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import scan_corpus

#: Clips per split of LRS3: pretrain, trainval, test.
LRS3_CLIPS = {"pretrain": 118_516, "trainval": 31_982, "test": 1_321}
CLIPS_PER_SPEAKER = 27


def make_empty_tree(root: Path, share: float) -> int:
    """An LRS3-shaped tree of empty files, ``share`` as large as LRS3; returns how many clips it holds."""
    num_clips = 0
    for split, size in LRS3_CLIPS.items():
        for number in range(max(1, round(size * share))):
            folder = root / split / f"speaker{number // CLIPS_PER_SPEAKER:06d}"
            if number % CLIPS_PER_SPEAKER == 0:
                folder.mkdir(parents=True)
            for suffix in (".mp4", ".txt"):
                (folder / f"{number % CLIPS_PER_SPEAKER:05d}{suffix}").touch()
            num_clips += 1
    return num_clips


def run_benchmark(root: Path, share: float) -> Iterator[str]:
    """Make the tree, then time three scans and a plan; one line of text each."""
    num_clips = make_empty_tree(root, share)
    config = CorpusConfig(corpus=root)
    for number in range(3):
        started = time.perf_counter()
        clips = scan_corpus(config)
        yield f"scan {number + 1}: {len(clips)} clips of {num_clips} in {time.perf_counter() - started:.2f} s"
    started = time.perf_counter()
    shards = make_plan(clips, PlanConfig(), root)
    yield f"plan: {len(shards)} shards in {time.perf_counter() - started:.2f} s"
