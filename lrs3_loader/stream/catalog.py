"""Numbers the samples of a stream: a sample id stands for a tar, a position in it, and a length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lrs3_loader.stream.sources import Source


@dataclass(frozen=True)
class ClipFilter:
    """Selects the clips of a stream by length and key."""

    min_frames: int
    max_frames: int | None  # longer clips are skipped
    crop_frames: int | None  # longer clips are cut to this
    select: Callable[[str], bool] | None  # called with the key

    def __call__(self, key: str, num_frames: int) -> bool:
        fits = num_frames >= self.min_frames and (self.max_frames is None or num_frames <= self.max_frames)
        return fits and (self.select is None or self.select(key))


class Catalog:
    """The selected samples of a list of tars; tars can be added while the run is written."""

    def __init__(self, clip_filter: ClipFilter):
        self._clip_filter = clip_filter
        self.sources: list[Source] = []
        self.shard_sizes: list[int] = []  # selected samples of each source
        self._sources = array("l")
        self._places = array("l")
        self._frames = array("l")
        self.num_filtered = 0

    def __len__(self) -> int:
        return len(self._frames)

    def extend(self, sources: Iterable[Source]) -> Catalog:
        """Add several tars and return the catalog."""
        for source in sources:
            self.add(source)
        return self

    def add(self, source: Source) -> np.ndarray:
        """Number the selected samples of another tar; return their ids [n] in the order of the tar."""
        assert source.samples is not None, "only a listed tar can be catalogued"
        first = len(self)
        for place, (key, num_frames) in enumerate(source.samples):
            if self._clip_filter(key, num_frames):
                self._sources.append(len(self.sources))
                self._places.append(place)
                self._frames.append(num_frames)
        self.sources.append(source)
        self.shard_sizes.append(len(self) - first)
        self.num_filtered += len(source.samples) - self.shard_sizes[-1]
        return np.arange(first, len(self))

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of frames [n] of each sample as it will be read, that is, after cropping."""
        frames = np.array([self._frames[number] for number in ids.tolist()], dtype=np.int64)
        return frames if self._clip_filter.crop_frames is None else np.minimum(frames, self._clip_filter.crop_frames)

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return (number of the source, index of the sample in its tar)."""
        return self._sources[sample_id], self._places[sample_id]

    def sha256(self) -> str:
        """Return a hash of the selected samples, their lengths and their order."""
        digest = hashlib.sha256(self._frames.tobytes())
        for sample_id in range(len(self)):
            digest.update(f"{self.key(sample_id)}\n".encode())
        return digest.hexdigest()

    def key(self, sample_id: int) -> str:
        """Return the key of a sample."""
        samples = self.sources[self._sources[sample_id]].samples
        assert samples is not None
        return samples[self._places[sample_id]][0]
