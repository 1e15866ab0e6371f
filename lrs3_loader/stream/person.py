"""One person's clips beside a corpus: passed over again and again, a batch for each batch of the corpus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.stream.catalog import Catalog
from lrs3_loader.stream.readers import LocalReader
from lrs3_loader.stream.schedule import make_batches, shuffle_blocks, shuffled_order
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.sources import Locations, list_sources
from lrs3_loader.stream.tarindex import DamagedError, Sample
from lrs3_loader.stream.tasks import Task


class PersonClips:
    """Which samples go with batch number ``g`` of the corpus: a pure function of seed, epoch and g."""

    def __init__(self, locations: Locations, settings: StreamSettings, task: Task):
        """Settings and task are those of the corpus stream; ``select`` log_waits of the corpus and is not applied.

        Raises:
            RunError: nothing there, no clip is long enough, or not a local run or tar.
        """
        listing = list_sources(locations, partial=False, skip_errors=False)
        if not (listing.is_local and listing.is_indexed):
            raise RunError(f"the person's clips must be local, got {locations}: copy the run first")
        self._catalog = Catalog(replace(settings.clip_filter(task), select=None)).extend(listing.sources)
        if not len(self._catalog):
            raise RunError(f"none of the {self._catalog.num_filtered} clips in {locations} fits in length")
        self._settings = settings
        self._rule = settings.rule(task)
        self._reader = LocalReader(self._catalog, task.fields)
        self._rewind(-1)

    def __getstate__(self) -> dict[str, Any]:
        self._rewind(-1)  # a pass half-way cannot be pickled, and need not be
        return self.__dict__

    def _rewind(self, epoch: int) -> None:
        self._epoch = epoch
        self._turn = 0  # how many times the clips were passed over before
        self._first = 0  # number of the first batch of this turn
        self._batches: list[list[int]] = []

    def samples(self, epoch: int, number: int) -> list[Sample]:
        """Numbers of an epoch may be asked for in any order; rising order costs least.

        Raises:
            RunError: a tar is bad.
        """
        if epoch != self._epoch or number < self._first:
            self._rewind(epoch)
            self._batches = self._pass_over()
        while number >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._turn += 1
            self._batches = self._pass_over()
        try:
            return [self._reader.read(0, sample_id) for sample_id in self._batches[number - self._first]]
        except DamagedError as error:
            raise RunError(f"{error}. Run the extraction of the person's clips again") from error

    def _pass_over(self) -> list[list[int]]:
        settings, catalog = self._settings, self._catalog
        order = shuffled_order(catalog.shard_sizes, settings.shuffle, settings.seed, self._epoch + self._turn)
        stretches = shuffle_blocks(order, settings.shuffle_buffer)
        seed = [settings.seed, self._epoch, self._turn]
        return [ids.tolist() for ids in make_batches(stretches, catalog.frames, self._rule, seed)]
