"""Batches of samples that are known beforehand: one rank's share of a schedule, read by its workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from lrs3_loader.errors import RunError
from lrs3_loader.stream.error_policy import ErrorPolicy
from lrs3_loader.stream.plans import Plan
from lrs3_loader.stream.position import Position, after, remaining_batches
from lrs3_loader.stream.readers import Reader
from lrs3_loader.stream.schedule import BatchIds
from lrs3_loader.stream.shared_state import SharedState
from lrs3_loader.stream.tarindex import DamagedError, Sample


class Cursor(NamedTuple):
    """Travels with each batch: which one it is."""

    epoch: int
    place: int  # among those its rank had left when the pass began (unlisted tars: its worker)
    worker: int
    num_workers: int


class LoadedBatch(NamedTuple):
    """The samples of one batch, read."""

    place: int
    number: int  # among all batches of the epoch, of all ranks
    samples: list[Sample]


class IndexedBatches:
    """One rank's passes over a plan."""

    unit_lost = "samples lost"

    def __init__(
        self,
        plan: Plan,
        fields: tuple[str, ...] | None,
        rank: int,
        world_size: int,
        equal_batches: bool,
        shared: SharedState,
        error_policy: ErrorPolicy,
    ):
        self.plan = plan
        self._fields = fields
        self._rank = rank
        self._world_size = world_size
        self._equal_batches = equal_batches
        self._shared = shared
        self._error_policy = error_policy

    @property
    def num_filtered(self) -> int | None:
        return self.plan.catalog.num_filtered if self.plan.is_final else None

    def identity(self) -> dict[str, Any]:
        return self.plan.identity()

    def fresh(self, epoch: int) -> Position:
        return Position(epoch).for_world_size(self._world_size)

    def restore(self, plain: dict[str, Any], identity: dict[str, Any]) -> Position:
        """A saved position, to be gone on from by this many ranks."""
        self.plan.adopt(identity)
        return Position.from_json(plain).for_world_size(self._world_size)

    def num_batches(self, epoch: int) -> int:
        """Batches of this rank in a whole pass.

        Raises:
            TypeError: not known before the run is complete (what ``len`` must raise for ``list`` to go on without).
            RunError: the batches cannot be shared evenly.
        """
        if not self.plan.is_final:
            raise TypeError(
                "the length of an epoch is not known while a run is followed; ranks end together all the same"
            )
        batches = self.plan.batches(epoch, log_waits=False)
        return sum(1 for _ in remaining_batches(batches, self.fresh(epoch), self._rank, self._equal_batches))

    def load_batches(self, start: Position, worker: int, num_workers: int) -> Iterator[LoadedBatch]:
        """What one worker has left, in order."""
        first = 0
        if start.worker is not None:
            saved_worker, saved_num, first = start.worker
            if (saved_worker, saved_num) != (worker, num_workers):
                raise RunError(
                    f"this state was saved by worker {saved_worker} of {saved_num}, loaded by {worker} of "
                    f"{num_workers}: go on with the same num_workers, or save with state_dict(batch)"
                )
        self._shared.skipped[worker::num_workers] = False
        batches = self.plan.batches(start.epoch, log_waits=self._rank == 0 and worker == 0)
        mine = (
            scheduled
            for scheduled in remaining_batches(batches, start, self._rank, self._equal_batches)
            if scheduled.place % num_workers == worker and scheduled.place >= first
        )
        known, reader = self.plan.reader(mine, self._fields)
        try:
            for scheduled in known:
                samples = self._read(reader, scheduled.batch)
                if samples:
                    yield LoadedBatch(scheduled.place, scheduled.number, samples)
                else:
                    self._pass_over(scheduled.place)
        finally:
            reader.close()

    def _read(self, reader: Reader, batch: BatchIds) -> list[Sample]:
        samples = []
        for sample_id in batch.ids.tolist():
            try:
                samples.append(reader.read(batch.partition, sample_id))
            except DamagedError as error:
                self._error_policy.lost(self.plan.catalog.locate(sample_id)[0], error)
        return samples

    def _pass_over(self, place: int) -> None:
        if self._world_size > 1 and self._equal_batches:
            raise RunError(
                "a whole batch was lost to bad tars, so this rank would fall behind the others: make the tars anew "
                "(lrs3-loader verify names them), or pass equal_batches=False if ranks may end apart"
            )
        self._shared.skipped[place] = True

    def after(self, start: Position, cursor: Cursor) -> Position:
        """The position once the batch with this cursor has come out of a pass begun at ``start``."""
        return after(start, self._rank, cursor.place, cursor.num_workers, self._shared.skipped)

    def within(self, start: Position, cursor: Cursor) -> Position:
        """The same for one worker by itself, whose state is kept along with those of the others."""
        worker = (cursor.worker, cursor.num_workers, cursor.place + cursor.num_workers)
        return Position(start.epoch, start.segments, worker)
