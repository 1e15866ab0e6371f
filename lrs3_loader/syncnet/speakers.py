"""Whom a network does not see in training. A clip's speaker is the middle of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


def speaker_of(key: str) -> str:
    """``"<split>/<speaker>/<utterance>"`` -> speaker."""
    return key.split("/")[1]


def hold_out(speakers: Iterable[str], fraction: float) -> frozenset[str]:
    """The share of speakers, at least one, whose names' hashes come first: chosen alike everywhere.

    Raises:
        ValueError: fewer than two speakers, or no fraction between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the share of speakers held out must lie between 0 and 1, got {fraction}")
    known = sorted(set(speakers), key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    if len(known) < 2:
        raise ValueError(f"speakers can be held out only where there are two or more, got {len(known)}")
    count = round(fraction * len(known))
    return frozenset(known[: min(max(count, 1), len(known) - 1)])


@dataclass(frozen=True)
class OfSpeakers:
    """Picks the clips of some speakers: for ``ShardStream(select=...)``, in worker processes, too."""

    speakers: frozenset[str]

    def __call__(self, key: str) -> bool:
        return speaker_of(key) in self.speakers
