"""Chooses the speakers that a training does not see. The speaker of a clip is the middle part of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.train.settings import TrainingConfig


def speaker_of(key: str) -> str:
    """Return the speaker of a key ``"<split>/<speaker>/<utterance>"``."""
    return key.split("/")[1]


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


@dataclass(frozen=True)
class SpeakerSplit:
    """The speakers of a run: those trained on, and those that the network is evaluated on."""

    trained_on: frozenset[str]
    held_out: frozenset[str]

    @classmethod
    def of(cls, folder: RunFolder, config: TrainingConfig) -> SpeakerSplit:
        """Split the speakers of a run.

        Raises:
            RunError: it has fewer than two.
        """
        speakers = {clip.speaker for shard in folder.shards for clip in shard.clips}
        try:
            held_out = hold_out(speakers, config.held_out, config.fold)
        except ValueError as error:
            raise RunError(f"cannot train on {folder.path}: {error}") from error
        return cls(frozenset(speakers) - held_out, held_out)

    def is_trained_on(self, key: str) -> bool:
        """Return whether a clip is of a speaker who is trained on; ``ShardStream(select=...)`` takes this."""
        return speaker_of(key) in self.trained_on

    def is_held_out(self, key: str) -> bool:
        """Return whether a clip is of a held-out speaker."""
        return speaker_of(key) in self.held_out
