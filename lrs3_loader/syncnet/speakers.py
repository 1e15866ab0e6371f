"""Chooses the held-out speakers. The speaker of a clip is the middle part of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set


def speaker_of(key: str) -> str:
    """Return the speaker of a key ``"<split>/<speaker>/<utterance>"``."""
    return key.split("/")[1]


def is_spoken_by(speakers: Set[str], key: str) -> bool:
    """Return whether a clip is of one of the speakers."""
    return speaker_of(key) in speakers


def hold_out(speakers: Iterable[str], fraction: float, fold: int = 0) -> frozenset[str]:
    """Choose a fraction (0..1) of the speakers, at least one and never all, by the hashes of their names.

    The next ``fold`` holds out the next speakers in the order of the hashes, beginning again after the last.

    Raises:
        ValueError: there are fewer than two speakers.
    """
    known = sorted(set(speakers), key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    if len(known) < 2:
        raise ValueError(f"speakers can be held out only where there are two or more, got {len(known)}")
    count = min(max(round(fraction * len(known)), 1), len(known) - 1)
    return frozenset(known[(fold * count + number) % len(known)] for number in range(count))
