"""Divides clips into shards, which depend on the corpus and two settings, but never on the machine.

Lengths are estimated from file sizes, with bytes per frame calibrated on a few headers of the same corpus, because
opening 150,000 files takes hours on a network. Only the sizes of shards depend on these estimates.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Iterator, Sequence
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
#: Used if no header can be read: 224x224 H.264 with audio takes 900 to 1300 bytes per frame (measured on nine clips).
DEFAULT_BYTES_PER_FRAME = 1_100
_PROBE_DEADLINE_SECONDS = 10.0


def make_plan(clips: Sequence[Clip], config: PlanConfig, corpus_root: Location) -> tuple[Shard, ...]:
    """Divide each split into shards of about ``config.shard_frames`` frames and at most ``config.shard_clips`` clips.

    A clip longer than a shard gets one to itself. Shards are named ``<split>-000000`` and so on.

    Args:
        clips: sorted by key, as ``scan_corpus`` returns them; this order is kept.

    Raises:
        ValueError: the clips are not sorted by key, or one key occurs twice.
    """
    for first, second in pairwise(clips):
        if first.key >= second.key:
            raise ValueError(f"clips must be sorted by key and unique, got {first.key} before {second.key}")
    bytes_per_frame = calibrate(clips, corpus_root)
    return tuple(
        Shard(f"{split}-{number:06d}", part)
        for split, members in groupby(clips, key=lambda clip: clip.split)
        for number, part in enumerate(_cut(members, config, bytes_per_frame))
    )


def calibrate(clips: Sequence[Clip], corpus_root: Location) -> int:
    """Estimate the bytes of a video file per 25 fps frame, as the median over ``NUM_PROBES`` evenly spaced clips.

    Unreadable files are skipped. If all are, the result is ``DEFAULT_BYTES_PER_FRAME``.
    """
    ratios = []
    store = store_at(corpus_root)
    for clip in clips[:: max(1, -(-len(clips) // NUM_PROBES))]:
        try:
            with store.local_copy(clip.video_path) as folder:
                ratios.append(clip.num_bytes / probe_frames(folder / clip.video_path))
        except UnreadableError as error:
            logger.debug("not used to estimate lengths: %s", error)
    # Rounded, so that the plan does not depend on the last bits of a quotient.
    return max(1, round(statistics.median(ratios))) if ratios else DEFAULT_BYTES_PER_FRAME


def probe_frames(path: Path) -> float:
    """Return the length of the video track in 25 fps frames, according to the container's header.

    Raises:
        UnreadableError: the file is missing, not a video, or its header states no length.
    """
    with open_input(path, str(path), timeout_seconds=_PROBE_DEADLINE_SECONDS) as container:
        if not container.streams.video:
            raise UnreadableError(f"{path}: no video track")
        stream = container.streams.video[0]
        seconds = (container.duration or 0) / av.time_base
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
    if seconds <= 0:
        raise UnreadableError(f"{path}: the header states no length")
    return seconds * FRAMES_PER_SECOND


def estimate_frames(clip: Clip, bytes_per_frame: int) -> float:
    """Estimate the number of 25 fps frames of a clip from its start and end if given, otherwise from its file size."""
    start = clip.start_seconds or 0.0
    if clip.end_seconds is not None:
        return (clip.end_seconds - start) * FRAMES_PER_SECOND
    return max(0.0, clip.num_bytes / bytes_per_frame - start * FRAMES_PER_SECOND)


def _cut(clips: Iterable[Clip], config: PlanConfig, bytes_per_frame: int) -> Iterator[tuple[Clip, ...]]:
    part: list[Clip] = []
    num_frames = 0.0
    for clip in clips:
        length = estimate_frames(clip, bytes_per_frame)
        if part and (num_frames + length > config.shard_frames or len(part) == config.shard_clips):
            yield tuple(part)
            part, num_frames = [], 0.0
        part.append(clip)
        num_frames += length
    yield tuple(part)
