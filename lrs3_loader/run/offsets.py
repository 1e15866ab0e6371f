"""Audio-video offsets of a run's clips: ``verify --sync`` writes them to ``sync.jsonl``, and they can be applied.

An offset of k frames (25 fps) is positive if the audio is late: the mouth at frame t belongs to the audio at t + k.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import Store, location, store_at
from lrs3_loader.types import Clip

logger = logging.getLogger(__name__)

OFFSETS_FILE = "sync.jsonl"
MAX_OFFSET = 10  # of those that are measured
MIN_APPLIED = 2  # one frame is within the error of a measurement: a sixth of the demo's clips come out so
MAX_APPLIED = 6  # LatentSync's bound; larger ones are rather another voice or a wrong measurement
MIN_CONFIDENCE = 0.1  # cosine of the best offset above the median


def read_offsets(store: Store, name: str = OFFSETS_FILE) -> list[dict[str, Any]] | None:
    """Read the offsets of the run in a store; None if they were not measured, ``RunError`` if the file is damaged."""
    path = store.where(name)
    try:
        lines = [decode_json(line) for line in store.read(name).splitlines()]
        for line in lines:
            measured = isinstance(line, dict) and line.get("offset_frames") is not None
            check_types(line, {"key": str, "in_training": bool})
            check_types(
                line, {"offset_frames": int, "confidence": float} if measured else {"offset_frames": type(None)}
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it, or measure again with verify.py --sync") from error
    return lines


def load_offsets(
    path: str | Path,
    *,
    min_offset_frames: int = MIN_APPLIED,
    max_offset_frames: int = MAX_APPLIED,
    min_confidence: float = MIN_CONFIDENCE,
) -> dict[str, int]:
    """Read the offsets to be applied from a ``sync.jsonl``, and log how many there are.

    Args:
        path: the file, or its URL.
        min_offset_frames: smaller offsets are not applied.
        max_offset_frames: larger offsets are not applied.
        min_confidence: offsets that were measured with less confidence are not applied.

    Returns:
        by the key of the clip, its offset in frames; without those of 0.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    text = str(path)
    folder, _, name = text.rpartition("/")
    lines = read_offsets(store_at(location(folder or ("/" if text.startswith("/") else "."))), name)
    if lines is None:
        raise RunError(f"there is no {text}; measure offsets with: lrs3-loader verify RUN --sync CHECKPOINT")
    measured = {line["key"]: line for line in lines if line["offset_frames"]}
    applied = {
        key: line["offset_frames"]
        for key, line in measured.items()
        if min_offset_frames <= abs(line["offset_frames"]) <= max_offset_frames and line["confidence"] >= min_confidence
    }
    logger.info(
        "%s: %d of %d clips have an offset; those %d of %d to %d frames with a confidence of %g or more are shifted",
        *(text, len(measured), len(lines), len(applied), min_offset_frames, max_offset_frames, min_confidence),
    )
    return applied


def with_offsets(clips: Iterable[Clip], offsets: Mapping[str, int]) -> tuple[Clip, ...]:
    """Return the clips with their offsets, so that their audio is read from as many frames later on."""
    return tuple(dataclasses.replace(clip, audio_offset_frames=offsets.get(clip.key)) for clip in clips)
