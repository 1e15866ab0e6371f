"""Describes what a launch would do, without loading a model or writing a file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import LaunchConfig, RunConfig
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import find_corpus
from lrs3_loader.doctor.disk_space import duration_text, estimate_bytes, size_text
from lrs3_loader.errors import count_of
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.runtime.device import pick_device
from lrs3_loader.types import FRAMES_PER_SECOND

#: Of one rank on one core with HuBERT-large and the other networks of default size, as BENCH.md has it.
CPU_FRAMES_PER_SECOND = 13.0


def describe_launch(config: RunConfig, launch: LaunchConfig) -> str:
    """Describe the corpus, its splits, the shards to be written, their size, and the time that this takes.

    Hours and bytes are estimated from the sizes of the files and the headers of a few.

    Raises:
        RunError: the corpus cannot be used; see ``find_corpus``.
    """
    return "\n".join(_lines(config, launch))


def _lines(config: RunConfig, launch: LaunchConfig) -> Iterator[str]:
    corpus, assets = find_corpus(config.corpus), Assets(launch.assets)
    shards = make_plan(corpus.clips, config.plan, corpus.root)
    yield f"{config.corpus.corpus}: {corpus.describe()}"
    for split in sorted({clip.split for clip in corpus.clips}):
        clips = [clip for clip in corpus.clips if clip.split == split]
        num_shards = sum(shard.clips[0].split == split for shard in shards)
        speakers = {clip.speaker for clip in clips}
        _, num_frames = estimate_bytes(config, clips, corpus.root, assets)
        counts = (len(clips), "clip"), (len(speakers), "speaker"), (num_shards, "shard")
        length = duration_text(num_frames / FRAMES_PER_SECOND)
        yield f"  {split}: {', '.join(count_of(*count) for count in counts)}, about {length} long"
    num_bytes, num_frames = estimate_bytes(config, corpus.clips, corpus.root, assets)
    yield f"to write: {count_of(len(shards), 'shard')}, about {size_text(num_bytes)} in {launch.out}"
    if RunFolder.exists(launch.out):
        folder = RunFolder.open(launch.out)
        num_done = len(folder.published())
        yield f"a run is there already: {num_done} of {count_of(len(folder.shards), 'shard')} published"
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if pick_device(launch.device).type == "cpu":
        seconds = num_frames / CPU_FRAMES_PER_SECOND / num_ranks
        ranks, rate = count_of(num_ranks, "CPU rank"), f"{CPU_FRAMES_PER_SECOND:.0f} frames/s"
        yield f"time to expect: {duration_text(seconds)} on {ranks}, at {rate} each with HuBERT-large (see BENCH.md)"
    else:
        yield "time to expect: not known for this GPU; after a minute of the run, its progress bar tells"
