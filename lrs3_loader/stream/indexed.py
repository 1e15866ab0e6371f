"""Batches of samples that are known beforehand: one rank's share of a schedule, read by its workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from lrs3_loader.errors import RunError
from lrs3_loader.run.tar import DamagedError, Sample
from lrs3_loader.stream.plans import Plan
from lrs3_loader.stream.position import Position, ScheduledBatch, position_after, remaining_batches
from lrs3_loader.stream.readers import Reader
from lrs3_loader.stream.schedule import BatchIds
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.shared_state import SharedState


class Cursor(NamedTuple):
    """Identifies a batch after it has been read; each batch carries one, under the key ``CURSOR``."""

    epoch: int
    step: int  # number among the batches that its rank (sequential tars: its worker) had left as the pass began
    worker: int
    num_workers: int


class LoadedBatch(NamedTuple):
    """The samples of one batch."""

    step: int  # see ``Cursor``
    number: int  # among the batches of all ranks in this epoch
    samples: list[Sample]


class IndexedBatches:
    """The batches of one rank, from a plan. ``ShardStream`` documents what its methods share with those here."""

    unit_lost = "samples lost"  # unit of the counts in ``ShardStream.errors``

    def __init__(self, plan: Plan, settings: StreamSettings, shared: SharedState):
        self.plan = plan
        self.shared = shared
        self._settings = settings

    @property
    def num_filtered(self) -> int | None:
        return self.plan.catalog.num_filtered if self.plan.is_final else None

    def identity(self) -> dict[str, Any]:
        return self.plan.identity()

    def epoch_start(self, epoch: int) -> Position:
        return Position(epoch).for_world_size(self._settings.world_size)

    def restore(self, plain: dict[str, Any], identity: dict[str, Any]) -> Position:
        """Return a position from its JSON and the identity saved with it, for the present number of ranks."""
        self.plan.restore(identity)
        return Position.from_json(plain).for_world_size(self._settings.world_size)

    def num_batches(self, position: Position) -> int:
        """Return the number of batches that this rank has left at a position.

        Raises:
            TypeError: it is not known before the run is complete. (``list`` ignores this error of a ``len``.)
            RunError: the ranks cannot have equally many.
        """
        if not self.plan.is_final:
            raise TypeError(
                "the length of an epoch is not known while a run is followed; ranks end together all the same"
            )
        return sum(1 for _ in self._remaining(position, log_waits=False))

    def _remaining(self, position: Position, log_waits: bool) -> Iterator[ScheduledBatch]:
        batches = self.plan.batches(position.epoch, log_waits)
        return remaining_batches(batches, position, self._settings.rank, self._settings.equal_batches)

    def load_batches(self, start: Position, worker: int, num_workers: int) -> Iterator[LoadedBatch]:
        """Yield the batches that one worker has left, in order."""
        first = 0
        if start.worker is not None:
            saved_worker, saved_num, first = start.worker
            if (saved_worker, saved_num) != (worker, num_workers):
                raise RunError(
                    f"this state was saved by worker {saved_worker} of {saved_num}, loaded by {worker} of "
                    f"{num_workers}: resume with the same num_workers, or save with state_dict(batch)"
                )
        self.shared.skipped[worker::num_workers] = False
        mine = (
            scheduled
            for scheduled in self._remaining(start, log_waits=self._settings.rank == 0 and worker == 0)
            if scheduled.step % num_workers == worker and scheduled.step >= first
        )
        known, reader = self.plan.reader(mine, self._settings.task.fields)
        try:
            for scheduled in known:
                if samples := self._read(reader, scheduled.batch):
                    yield LoadedBatch(scheduled.step, scheduled.number, samples)
                else:
                    self._skip_batch(scheduled.step)
        finally:
            reader.close()

    def _read(self, reader: Reader, batch: BatchIds) -> list[Sample]:
        samples = []
        for sample_id in batch.ids.tolist():
            try:
                samples.append(reader.read(batch.partition, sample_id))
            except DamagedError as error:
                self.shared.add_lost(self.plan.catalog.locate(sample_id)[0], error)
        return samples

    def _skip_batch(self, step: int) -> None:
        if self._settings.world_size > 1 and self._settings.equal_batches:
            raise RunError(
                "a whole batch was lost to bad tars, so this rank would fall behind the others: extract the tars again "
                "(lrs3-loader verify names them), or pass equal_batches=False if ranks may end apart"
            )
        self.shared.skipped[step] = True

    def position_after(self, start: Position, cursor: Cursor) -> Position:
        """Return the position after the batch with this cursor, in a pass that began at ``start``."""
        return position_after(start, self._settings.rank, cursor.step, cursor.num_workers, self.shared.skipped)

    def position_in_worker(self, start: Position, cursor: Cursor) -> Position:
        """Return the position after that batch for one worker alone, whose state is saved with those of the others."""
        worker = (cursor.worker, cursor.num_workers, cursor.step + cursor.num_workers)
        return Position(start.epoch, start.segments, worker)
