"""Chooses the held-out speakers. The speaker of a clip is the middle part of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


def speaker_of(key: str) -> str:
    """Return the speaker of a key ``"<split>/<speaker>/<utterance>"``."""
    return key.split("/")[1]


def hold_out(speakers: Iterable[str], fraction: float) -> frozenset[str]:
    """Choose a fraction of the speakers, at least one and never all, by the hashes of their names.

    Raises:
        ValueError: there are fewer than two speakers, or the fraction does not lie between 0 and 1.
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
    """Selects the clips of some speakers, for ``ShardStream(select=...)``; unlike a lambda, it can be pickled."""

    speakers: frozenset[str]

    def __call__(self, key: str) -> bool:
        return speaker_of(key) in self.speakers
