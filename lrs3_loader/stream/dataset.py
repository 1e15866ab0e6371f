"""``ShardStream``: what to read, in which order, from where on, and for whom, comes together here."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import differences
from lrs3_loader.stream.indexed import Cursor, LoadedBatch
from lrs3_loader.stream.open import open_stream
from lrs3_loader.stream.person import PersonClips
from lrs3_loader.stream.settings import StreamSettings, resolve_rank
from lrs3_loader.stream.sources import Locations
from lrs3_loader.stream.tarindex import Sample
from lrs3_loader.stream.tasks import Item, Task, crop, make_task

CURSOR = "__cursor__"
STATE_VERSION = 1
#: New names of arguments by those they had before, which still work, in saved states as well.
_RENAMED = {"even": "equal_batches", "on_bad": "on_error", "lanes": "num_parallel_shards"}


class ShardStream(IterableDataset[Item]):
    """Batches of a run's shards, for ``torch.utils.data.DataLoader(stream, batch_size=None, num_workers=N)``.

    One pass gives every chosen sample exactly once, over all ranks and workers together. Which samples make a batch,
    and the order of the batches, follow from the samples, the settings, ``seed`` and epoch alone; rank r of W gets
    every W-th batch, so W ranks see the same batches as one (but for at most W - 1 of the last, which are split so that
    every rank has equally many). Call ``set_epoch`` before each pass, as with torch's ``DistributedSampler``.

    Args:
        run_or_urls: a run's folder, a tar, or many of these; local, or remote by any protocol of fsspec or webdataset
            (``s3://``, ``https://``, ``pipe:``). A tar without a ledger is looked through first if local; if remote,
            its samples become known only as they are read, and then there is no ``len``, no even sharing over ranks
            (``equal_batches=False`` is needed), and resuming reads again what came before, with the same ranks and
            workers.
        task: ``"raw"`` (a sample at a time), ``"audio2motion"``, ``"syncnet"``, ``"postnet"``, or an object like those
            in ``lrs3_loader.stream.tasks``, where the shapes and units of what they give are documented.
        batch_size: samples of a batch; or
        batch_frames: 25 fps frames of a batch, padding included.
        shuffle: without it, samples come in the order of the plan.
        shuffle_buffer: samples shuffled together, and sorted by length to make batches of like lengths. Of local tars
            only the batch at hand is in memory; of remote ones, this many samples for each rank.
        seed: of the shuffling and of what a task draws at random.
        min_frames, max_frames: shorter and longer clips are left out (``num_filtered``).
        crop_frames: longer clips give a random stretch of this many frames, drawn anew each epoch.
        select: whether a clip takes part, by its key ``"<split>/<speaker>/<utterance>"``.
        person: local run or tars of one person (task ``"postnet"`` only). Each item is then
            ``{"corpus": batch, "person": batch}``; the person's clips are passed over again and again.
        even: every rank has equally many batches, so that none waits for ever in a collective.
        follow: read a run (folder or URL) while it is written: every shard of its plan, in that order, as soon as its
            ledger appears; ends when the run is complete. Do not extract shards anew (``--retry-rejects``) meanwhile.
        partial: take the shards there are of a run that is not finished.
        on_error: ``"skip"`` leaves out bad tars and samples, names them in a log line and counts them (``errors``).
        num_parallel_shards: stretches that are read side by side (for remote tars; 12 for each rank).
        rank, world_size: default: ``torch.distributed``'s, or torchrun's environment.
        poll_seconds: how often ``follow`` looks.

    Raises:
        ValueError: arguments that do not go together.
        RunError: nothing to read, an unfinished run, a bad tar, or samples that ranks cannot share evenly.
    """

    def __init__(
        self,
        run_or_urls: Locations,
        task: str | Task = "audio2motion",
        *,
        batch_size: int | None = None,
        batch_frames: int | None = None,
        shuffle: bool = True,
        shuffle_buffer: int = 1024,
        seed: int = 0,
        min_frames: int = 0,
        max_frames: int | None = None,
        crop_frames: int | None = None,
        select: Callable[[str], bool] | None = None,
        person: Locations | None = None,
        equal_batches: bool = True,
        follow: bool = False,
        partial: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        num_parallel_shards: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        poll_seconds: float = 5.0,
        **deprecated: Any,
    ):
        self.task = make_task(task)
        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "batch_frames": batch_frames,
            "shuffle": shuffle,
            "shuffle_buffer": shuffle_buffer,
            "seed": seed,
            "min_frames": min_frames,
            "max_frames": max_frames,
            "crop_frames": crop_frames,
            "select": select,
            "equal_batches": equal_batches,
            "follow": follow,
            "partial": partial,
            "on_error": on_error,
            "num_parallel_shards": num_parallel_shards,
            "poll_seconds": poll_seconds,
        }
        self._settings = StreamSettings(**settings | _renamed(deprecated))
        self.rank, self.world_size = resolve_rank(rank, world_size)
        if (person is not None) != (self.task.name == "postnet"):
            raise ValueError("task 'postnet' needs person=..., and no other task takes it")
        self._person = None if person is None else PersonClips(person, self._settings, self.task)
        opened = open_stream(run_or_urls, self._settings, self.task, self.rank, self.world_size)
        self._source, self._shared, self._names, self._left_out = opened
        self._generation = 0
        self._start: Any = self._source.fresh(0)  # where the next pass of its epoch begins
        self._pass_start = self._start  # where the pass under way began
        self._last: Cursor | None = None  # what this process has given last
        self._require_agreement()

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling of the next pass. Persistent workers hear of it, too; a loaded position in another
        epoch is dropped, one in this epoch is kept.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        if epoch != self._shared.epoch:
            self._shared.epoch = epoch
            self._begin_at(self._source.fresh(epoch))

    @property
    def epoch(self) -> int:
        return self._shared.epoch

    def __len__(self) -> int:
        """Batches of this rank (with ``equal_batches``, of every rank) in a whole pass of the current epoch.

        Raises:
            TypeError: not known: a run that is followed, or tars without a ledger.
        """
        return self._source.num_batches(self.epoch)

    def __iter__(self) -> Iterator[Item]:
        """What is left of the epoch that is set, for this worker of this rank."""
        worker, num_workers = self._worker()
        epoch = self.epoch
        if self._start.epoch != epoch:
            self._start = self._source.fresh(epoch)
        self._pass_start, self._last = self._start, None
        for loaded in self._source.load_batches(self._pass_start, worker, num_workers):
            item = self._item(epoch, loaded)
            item[CURSOR] = self._last = Cursor(epoch, loaded.place, worker, num_workers)
            yield item
        self._start = self._source.fresh(epoch)

    def state_dict(self, batch: Item | None = None) -> dict[str, Any]:
        """The position after a batch, as plain JSON values: load it to go on with exactly what comes after.

        Args:
            batch: the last batch that was used. Needed where DataLoader workers read: they are ahead of what the main
                process has seen. Without workers, and inside the workers of torchdata's ``StatefulDataLoader``, the
                last one given is meant. Any rank's state will do for all ranks, and for another number of ranks and
                workers (but not of tars without a ledger).

        Raises:
            RunError: workers read, and no batch was given.
        """
        cursor = self._last if batch is None else Cursor(*batch[CURSOR])
        if cursor is None:
            if get_worker_info() is None and self._shared.workers_read:
                raise RunError("DataLoader workers read this stream: pass the last batch used, state_dict(batch)")
            position = self._start
        elif batch is None and get_worker_info() is not None:
            position = self._source.within(self._pass_start, cursor)
        else:
            known = self._pass_start.epoch == cursor.epoch
            position = self._source.after(self._pass_start if known else self._source.fresh(cursor.epoch), cursor)
        return {"version": STATE_VERSION, "stream": self._identity(), "position": position.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that the state was saved with: the next pass gives what was left then.

        Sets the epoch. Load before the DataLoader starts its workers.

        Raises:
            RunError: the state is of other samples, other settings or another version; the message says what differs.
        """
        if state.get("version") != STATE_VERSION:
            raise RunError(f"this is no state of a ShardStream of version {STATE_VERSION}: {state.get('version')!r}")
        saved = {_RENAMED.get(name, name): value for name, value in state["stream"].items()}
        position = self._source.restore(state["position"], saved)
        changes = differences(saved, self._identity())
        if changes:
            raise RunError("the state was saved by a stream that differs in " + "; ".join(changes))
        self._shared.epoch = position.epoch
        self._begin_at(position)
        if get_worker_info() is None:
            self._generation = self._shared.next_generation()

    @property
    def num_filtered(self) -> int | None:
        """Clips that were not chosen (length, ``select``); None where they are not known beforehand."""
        return self._source.num_filtered

    @property
    def num_left_out(self) -> int | None:
        """Deprecated name of ``num_filtered``."""
        _warn_renamed("num_left_out", "num_filtered")
        return self.num_filtered

    def damage(self) -> dict[str, str]:
        """Deprecated name of ``errors``."""
        _warn_renamed("damage()", "errors()")
        return self.errors()

    def errors(self) -> dict[str, str]:
        """What was bad so far, by tar: left out whole, or how many samples were lost (added up over passes)."""
        lost = {
            name: f"{count} {self._source.unit_lost}"
            for name, count in zip(self._names, self._shared.lost.tolist(), strict=True)
            if count
        }
        return {**self._left_out, **lost}

    def _begin_at(self, position: Any) -> None:
        self._start = self._pass_start = position
        self._last = None

    def _worker(self) -> tuple[int, int]:
        """(worker, number of workers) that this process is."""
        info = get_worker_info()
        if info is None:
            return 0, 1
        if self._generation != self._shared.generation:
            raise RunError(
                "a state was loaded after the DataLoader's persistent workers had started: make a new DataLoader"
            )
        self._shared.note_worker()
        return info.id, info.num_workers

    def _item(self, epoch: int, loaded: LoadedBatch) -> Item:
        def draw(key: str) -> np.random.Generator:
            return np.random.default_rng([self._settings.seed, epoch, zlib.crc32(key.encode())])

        item = self.task(self._cropped(loaded.samples, epoch), draw)
        if self._person is None:
            return item
        beside = self._cropped(self._person.samples(epoch, loaded.number), epoch)
        return {"corpus": item, "person": self.task(beside, draw)}

    def _cropped(self, samples: list[Sample], epoch: int) -> list[Sample]:
        length = self._settings.crop_frames
        if length is None:
            return samples
        seed = [self._settings.seed, epoch, 1]
        return [
            crop(sample, length, np.random.default_rng([*seed, zlib.crc32(sample["__key__"].encode())]))
            for sample in samples
        ]

    def _identity(self) -> dict[str, Any]:
        return {"task": self.task.name, **self._settings.identity(), **self._source.identity()}

    def _require_agreement(self) -> None:
        """All ranks must have found the same: an unfinished run, or copies of one, may look different to each."""
        alone = self.world_size == 1 or not (dist.is_available() and dist.is_initialized())
        if alone or dist.get_world_size() != self.world_size:
            return
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, self._identity())
        others = [rank for rank, identity in enumerate(found) if identity != found[0]]
        if others:
            raise RunError(
                f"rank {others[0]} found other samples than rank 0: "
                + "; ".join(differences(found[0], found[others[0]]))
            )


def _renamed(deprecated: dict[str, Any]) -> dict[str, Any]:
    """Arguments given by their old names, by their new ones."""
    for name in deprecated:
        if name not in _RENAMED:
            raise TypeError(f"ShardStream() got an unexpected keyword argument {name!r}")
        _warn_renamed(name, _RENAMED[name], stacklevel=4)
    return {_RENAMED[name]: value for name, value in deprecated.items()}


def _warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    warnings.warn(f"ShardStream: {old} is now called {new}", DeprecationWarning, stacklevel=stacklevel)
