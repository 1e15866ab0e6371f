"""Clips -> shards. Which clips make up a shard depends on the corpus and two numbers, never on the machine.

Lengths are estimated, not measured: to open 150,000 files takes minutes on a disk and hours on a network, while their
sizes came with the listing. Bytes per frame are calibrated on a few headers of the same corpus. An estimate is
enough, since nothing but the size of a shard follows from it: one that holds a fifth more frames than asked for is
a fifth more work, and no clip is treated differently for it.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import av

from lrs3_loader.config import PlanConfig
from lrs3_loader.errors import UnreadableError
from lrs3_loader.io.media_file import open_input
from lrs3_loader.io.storage import Location, store_at
from lrs3_loader.types import FRAMES_PER_SECOND, Clip, Shard

logger = logging.getLogger(__name__)

NUM_PROBES = 64
#: Used where no header can be read: 224x224 H.264 with its sound takes 900 to 1300 bytes (measured on nine clips).
DEFAULT_BYTES_PER_FRAME = 1_100
_PROBE_DEADLINE_SECONDS = 10.0


def make_plan(clips: Sequence[Clip], config: PlanConfig, corpus_root: Location) -> tuple[Shard, ...]:
    """Cut each split into shards of about ``config.shard_frames`` frames and at most ``config.shard_clips`` clips.

    ``clips`` must be sorted by key, as ``scan_corpus`` gives them; they keep that order. A clip longer than a shard
    has one to itself. Shards are named ``<split>-000000`` and so on.

    Raises:
        ValueError: the clips are not sorted by key, or one key occurs twice.
    """
    for first, second in pairwise(clips):
        if first.key >= second.key:
            raise ValueError(f"clips must be sorted by key and unique, got {first.key} before {second.key}")
    bytes_per_frame = calibrate(clips, corpus_root)
    shards: list[Shard] = []
    for split, members in groupby(clips, key=lambda clip: clip.split):
        cut = _cut(members, config, bytes_per_frame)
        shards += [Shard(f"{split}-{number:06d}", part) for number, part in enumerate(cut)]
    return tuple(shards)


def calibrate(clips: Sequence[Clip], corpus_root: Location) -> int:
    """Bytes of video file per 25 fps frame: the median over at most ``NUM_PROBES`` clips, evenly spaced.

    The median, so that a damaged header that promises hours counts no more than any other. Files that cannot be
    read are passed over; ``DEFAULT_BYTES_PER_FRAME`` if none can.
    """
    step = max(1, -(-len(clips) // NUM_PROBES))
    ratios = []
    store = store_at(corpus_root)
    for clip in clips[::step]:
        try:
            with store.local_copy(clip.video_path) as folder:
                ratios.append(clip.num_bytes / probe_frames(folder / clip.video_path))
        except UnreadableError as error:
            logger.debug("not used to estimate lengths: %s", error)
    # Whole bytes: the plan must not hang on the last bits of a quotient.
    return max(1, round(statistics.median(ratios))) if ratios else DEFAULT_BYTES_PER_FRAME


def probe_frames(path: Path) -> float:
    """Length of the video track in 25 fps frames, as the container's header tells it.

    Raises:
        UnreadableError: no such file, not a video, or a header without a length.
    """
    try:
        with open_input(path, timeout_seconds=_PROBE_DEADLINE_SECONDS) as container:
            if not container.streams.video:
                raise UnreadableError(f"{path}: no video track")
            stream = container.streams.video[0]
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
    except (av.FFmpegError, OSError) as error:
        raise UnreadableError(f"{path}: {error}") from error
    if seconds <= 0:
        raise UnreadableError(f"{path}: the header tells no length")
    return seconds * FRAMES_PER_SECOND


def estimate_frames(clip: Clip, bytes_per_frame: int) -> float:
    """About how many 25 fps frames a clip has: by its start and end where given, otherwise by the file's size."""
    start = clip.start_seconds or 0.0
    if clip.end_seconds is not None:
        return (clip.end_seconds - start) * FRAMES_PER_SECOND
    return max(0.0, clip.num_bytes / bytes_per_frame - start * FRAMES_PER_SECOND)


def _cut(clips: Iterable[Clip], config: PlanConfig, bytes_per_frame: int) -> list[tuple[Clip, ...]]:
    parts: list[tuple[Clip, ...]] = []
    part: list[Clip] = []
    num_frames = 0.0
    for clip in clips:
        length = estimate_frames(clip, bytes_per_frame)
        if part and (num_frames + length > config.shard_frames or len(part) == config.shard_clips):
            parts.append(tuple(part))
            part, num_frames = [], 0.0
        part.append(clip)
        num_frames += length
    if part:
        parts.append(tuple(part))
    return parts
