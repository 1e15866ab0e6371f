"""Batches of one person's clips, one for each batch of a corpus; the clips are repeated as often as needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.run.tar import DamagedError, Sample
from lrs3_loader.stream.catalog import Catalog
from lrs3_loader.stream.readers import TarReader
from lrs3_loader.stream.schedule import make_batches, shuffle_blocks, shuffled_order
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.sources import Locations, list_sources, require_fields


class PersonClips:
    """Gives the samples for batch number ``g`` of the corpus, which depend only on seed, epoch and g."""

    def __init__(self, locations: Locations, settings: StreamSettings, select: Callable[[str], bool] | None = None):
        """Settings are those of the corpus stream, but for its ``select`` and ``where``, which speak of the corpus.

        Args:
            select: called with the key of each of the person's clips; those for which it is false are left out.

        Raises:
            RunError: there is nothing to read, no clip is chosen and long enough, or a location is remote.
        """
        listing = list_sources(locations, partial=False, skip_errors=False)
        if not (listing.is_local and listing.is_indexed):
            raise RunError(f"the person's clips must be local, got {locations}: copy the run first")
        require_fields(listing.sources, settings.task.fields)
        self._catalog = Catalog(replace(settings, select=select, where=None), listing.sources)
        if not len(self._catalog):
            raise RunError(
                f"none of the {self._catalog.num_filtered} clips in {locations} is selected and fits in length"
            )
        self._settings = settings
        self._reader = TarReader(self._catalog, settings.task.fields)
        self._rewind(-1)

    def __getstate__(self) -> dict[str, Any]:
        self._rewind(-1)  # an unfinished pass need not be pickled
        return self.__dict__

    def _rewind(self, epoch: int) -> None:
        self._epoch = epoch
        self._pass = 0  # complete passes over the clips so far
        self._first = 0  # number of the first batch of this pass
        self._batches: list[list[int]] = []

    def sha256(self) -> str:
        """Return a hash of the selected clips, their lengths and their order."""
        return self._catalog.sha256()

    def samples(self, epoch: int, number: int) -> list[Sample]:
        """Return the samples for a batch of the corpus; rising numbers are the fastest order to ask for them.

        Raises:
            RunError: a tar is damaged.
        """
        if epoch != self._epoch or number < self._first:
            self._rewind(epoch)
            self._batches = self._next_pass()
        while number >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._pass += 1
            self._batches = self._next_pass()
        try:
            return [self._reader.read(0, sample_id) for sample_id in self._batches[number - self._first]]
        except DamagedError as error:
            raise RunError(f"{error}; {error.remedy} (the person's)") from error

    def _next_pass(self) -> list[list[int]]:
        settings, catalog = self._settings, self._catalog
        order = shuffled_order(catalog.shard_sizes, settings.shuffle, settings.seed, self._epoch + self._pass)
        blocks = shuffle_blocks(order, settings.shuffle_buffer)
        seed = [settings.seed, self._epoch, self._pass]
        return [ids.tolist() for ids in make_batches(blocks, catalog.frames, settings.rule, seed)]
