"""Numbers the samples of a stream: a sample id stands for a tar, a position in it, and a length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np

from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.sources import Source


class Catalog:
    """The selected samples of a list of tars; tars can be added while the run is written."""

    def __init__(self, settings: StreamSettings, sources: Iterable[Source] = ()):
        self._settings = settings
        self.sources: list[Source] = []
        self.shard_sizes: list[int] = []  # selected samples of each source
        self._sources = array("q")
        self._places = array("q")
        self._frames = array("q")
        self.num_filtered = 0
        for source in sources:
            self.add(source)

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, source: Source) -> np.ndarray:
        """Number the selected samples of another tar; return their ids [n] in the order of the tar."""
        assert source.samples is not None, "only a listed tar can be catalogued"
        first = len(self)
        for place, (key, stored_frames) in enumerate(source.samples):
            num_frames = self._settings.frames_left(key, stored_frames)
            chosen = source.chosen is None or source.chosen[place]
            if chosen and self._settings.selects(key, num_frames):
                self._sources.append(len(self.sources))
                self._places.append(place)
                self._frames.append(num_frames)
        self.sources.append(source)
        self.shard_sizes.append(len(self) - first)
        self.num_filtered += len(source.samples) - self.shard_sizes[-1]
        return np.arange(first, len(self))

    def frames(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of frames [n] of each sample as it will be read, that is, after cropping."""
        frames = np.frombuffer(self._frames, np.int64)[ids] if len(ids) else np.zeros(0, np.int64)
        return np.minimum(frames, self._settings.longest)

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return (number of the source, index of the sample in its tar)."""
        return self._sources[sample_id], self._places[sample_id]

    def locations(self) -> np.ndarray:
        """Return the number of the location [n] that each sample comes from."""
        numbers = np.array([source.location for source in self.sources], np.int64)
        return numbers[np.frombuffer(self._sources, np.int64)] if len(self) else np.zeros(0, np.int64)

    def sha256(self) -> str:
        """Return a hash of the selected samples, their lengths and their order."""
        digest = hashlib.sha256(self._frames.tobytes())
        for sample_id in range(len(self)):
            digest.update(f"{self.key(sample_id)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def key(self, sample_id: int) -> str:
        """Return the key of a sample."""
        samples = self.sources[self._sources[sample_id]].samples
        assert samples is not None
        return samples[self._places[sample_id]][0]
