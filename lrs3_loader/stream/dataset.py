"""``ShardStream``, the dataset that users see; README.md in this folder shows what it is made of."""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from lrs3_loader.errors import RunError
from lrs3_loader.run.offsets import OFFSETS_FILE, load_offsets
from lrs3_loader.run.record import differences
from lrs3_loader.run.tar import Sample
from lrs3_loader.selection.expression import Expression
from lrs3_loader.stream.agreement import require_agreement
from lrs3_loader.stream.indexed import Cursor, LoadedBatch
from lrs3_loader.stream.named_tasks import describe_tasks, make_task
from lrs3_loader.stream.normalize import Normalizer
from lrs3_loader.stream.open import open_stream
from lrs3_loader.stream.person import PersonClips
from lrs3_loader.stream.settings import StreamSettings, resolve_rank
from lrs3_loader.stream.sources import Locations, list_locations, split_locations
from lrs3_loader.stream.tasks import Item, Task, crop, shift_audio
from lrs3_loader.stream.weights import Weights

CURSOR = "__cursor__"
STATE_VERSION = 1
#: Present names of arguments by their deprecated ones, in calls and in saved states.
_RENAMED = {"even": "equal_batches", "on_bad": "on_error", "lanes": "num_parallel_shards"}


class ShardStream(IterableDataset[Item]):
    """Training batches from a run's shards, in an exactly reproducible and resumable order.

    Use it with ``torch.utils.data.DataLoader(stream, batch_size=None, num_workers=N)``, and call ``set_epoch`` before
    each epoch, as with torch's ``DistributedSampler``.

    One epoch yields every selected sample exactly once over all ranks and workers (``weights`` and ``mix`` change how
    often). The contents and the order of the batches depend only on the samples, the arguments, ``seed`` and the epoch.
    Rank r of W gets every W-th batch, so W ranks train on the same batches as one would; at most W - 1 of the last
    batches are split, so that all ranks have equally many.

    Args:
        run_or_urls: one or several run folders or tars, local, or remote by any protocol of fsspec or webdataset
            (``s3://``, ``https://``, ``pipe:``). The samples of a local tar without a ledger are found by reading its
            headers. Those of a remote tar without a ledger are not known beforehand: there is no ``len``, several
            ranks need ``equal_batches=False``, and resuming reads everything before the position again, with the same
            number of ranks and workers.
        task: what a batch holds: ``"raw"`` (one sample), ``"audio2motion"``, ``"syncnet"``, ``"postnet"``,
            ``"wav2lip"``, ``"avsr"`` (names, shapes and units are listed below), or an object with the methods of
            ``lrs3_loader.stream.Task``.
        batch_size: samples per batch. Tasks other than ``"raw"`` need either this or ``batch_frames``.
        batch_frames: 25 fps frames per batch, padding included; a longer clip is a batch by itself.
        shuffle: shuffle shards and samples. If false, samples come in the order of the run.
        shuffle_buffer: samples that are shuffled together and sorted by length, so that the clips of a batch have
            similar lengths. Local tars need memory for one batch only, remote ones for this many samples per rank.
        seed: seed of the shuffling and of the random choices of a task.
        min_frames: skip shorter clips (25 fps frames). ``num_filtered`` counts what was skipped.
        max_frames: skip longer clips.
        crop_frames: cut longer clips to this many frames, at a random place in each epoch.
        select: called with a clip's key ``"<split>/<speaker>/<utterance>"``; skip the clip if it returns false.
        where: skip the clips for which this condition over their figures is not true, as in
            ``"face_size_px > 150 and abs(yaw_p95) < 40 and speech_fraction > 0.3"``; docs/quality.md has the language
            and the figures. It needs ledgers.
        weights: how often each clip comes in an epoch: a table by key (1 for those not in it), a function of the key,
            or ``"speakers"`` (all speakers equally often). A clip of weight 2 comes twice, one of weight 0.5 in
            every second epoch on average, and one of weight 0 never. Local tars only.
        mix: share of the samples of an epoch that each of several ``run_or_urls`` gives, for example ``(0.7, 0.3)``.
        normalize: ``"stats"`` or the path of a ``stats.json`` (``lrs3-loader export stats``): arrays become ``(x -
            mean) / deviation`` for each of their numbers, and pitch its normalised natural logarithm (0 where it is
            unvoiced). ``valid``, ``speaking`` and ``pose`` stay as they are, and so does padding, which is 0.
        offsets: audio-video offsets that are undone: ``"sync"`` for those that ``verify --sync`` wrote into the run,
            the path of such a file, or a table of frames by key (positive: the audio is late). Of a file, offsets of
            2 to 6 frames with a confidence of at least 0.1 are used; ``lrs3_loader.run.offsets.load_offsets``
            makes a table with other limits. A clip loses as many frames as it is shifted by.
        person: local run or tars of one person, for the task ``"postnet"`` only. Each item is then
            ``{"corpus": batch, "person": batch}``; the person's clips are repeated as often as needed, and cropped
            at another place each time.
        person_select: called with the key of each of the person's clips; it is left out if this returns false, as
            those that an evaluation needs.
        equal_batches: give every rank equally many batches, so that no rank waits for ever in a collective.
        follow: read a run (folder or URL) while it is being written: each shard as soon as it is published, in the
            order of the plan, until the run is complete. Do not use ``--retry-rejects`` on the run meanwhile: ranks and
            workers list its shards at different times, and must find the same samples.
        partial: read the published shards of an unfinished run.
        on_error: ``"raise"`` a ``RunError`` on a damaged tar or a sample that does not have its checksum, or ``"skip"``
            it, log it once per tar and count it in ``errors()``.
        num_parallel_shards: remote shards that are read at the same time, all ranks together (default: 12 per rank).
        rank: rank of this process, given together with ``world_size``. Default: from ``torch.distributed``, else from
            torchrun's environment.
        world_size: number of ranks.
        poll_seconds: seconds between two looks at a run that is followed.
        deprecated: earlier names of arguments: ``even`` (``equal_batches``), ``on_bad`` (``on_error``) and ``lanes``
            (``num_parallel_shards``). They work and give a ``DeprecationWarning``.

    Raises:
        ValueError: an argument is invalid, or two do not go together.
        RunError: there is nothing to read, the run is unfinished, a tar is damaged, the samples lack an array that
            the task reads, or they cannot be shared equally among the ranks. While batches are read, also
            ``UnreachableError``: object storage or a server stayed away for
            ``$LRS3_LOADER_STORAGE_RETRY_SECONDS``.

    Example:
        >>> stream = ShardStream("/data/lrs3-shards", "audio2motion", batch_frames=4000)
        >>> stream.set_epoch(0)
        >>> for batch in DataLoader(stream, batch_size=None, num_workers=4):
        ...     state = stream.state_dict(batch)  # load_state_dict(state) resumes after this batch
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
        where: str | None = None,
        weights: Weights | None = None,
        mix: Sequence[float] | None = None,
        normalize: Literal["stats"] | str | Path | None = None,
        offsets: Literal["sync"] | str | Path | Mapping[str, int] | None = None,
        person: Locations | None = None,
        person_select: Callable[[str], bool] | None = None,
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
        given = {name: value for name, value in locals().items() if name in StreamSettings.__dataclass_fields__}
        self.task = make_task(task)
        self.rank, self.world_size = resolve_rank(rank, world_size)
        known: dict[str, Any] = {
            "task": self.task,
            "where": None if where is None else Expression(where),
            "rank": self.rank,
            "world_size": self.world_size,
            "num_locations": len(list_locations(run_or_urls)),
            "offsets": _offsets_table(offsets, run_or_urls),
        }
        self._settings = StreamSettings(**{**given, **known, **_renamed(deprecated)})
        if (person is not None) != (self.task.name == "postnet"):
            raise ValueError("task 'postnet' needs person=..., and no other task takes it")
        if person is None and person_select is not None:
            raise ValueError("person_select chooses among the clips of person=..., which is not given")
        if person is not None:
            require_agreement([*split_locations(run_or_urls), *split_locations(person)])
        self._person = None if person is None else PersonClips(person, self._settings, person_select)
        self._normalizer = None if normalize is None else Normalizer(normalize, run_or_urls, self.task.fields)
        self._source, self._skipped_tars = open_stream(run_or_urls, self._settings)
        self._shared = self._source.shared
        self._generation = 0
        self._start: Any = self._epoch_start(0)  # position at which the next pass begins
        self._pass_start = self._start  # position at which the current pass began
        self._last: Cursor | None = None  # of the batch that this process yielded last
        self._require_agreement()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which decides its shuffling; persistent workers see it as well.

        A position loaded by ``load_state_dict`` is kept if it lies in this epoch, and dropped otherwise.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        if epoch != self._shared.epoch:
            self._shared.epoch = epoch
            self._begin_at(self._epoch_start(epoch))

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._shared.epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank in the whole current epoch.

        Raises:
            TypeError: it is not known, because the run is followed or remote tars have no ledger.
        """
        return self._source.num_batches(self._epoch_start(self.epoch))

    @property
    def num_batches_left(self) -> int:
        """Number of batches that the next pass gives this rank: fewer than ``len`` after ``load_state_dict``.

        Raises:
            TypeError: it is not known; see ``len``.
        """
        return self._source.num_batches(self._next_start())

    def __iter__(self) -> Iterator[Item]:
        """Yield the rest of the current epoch for this worker of this rank."""
        worker, num_workers = self._worker()
        epoch = self.epoch
        self._start = self._pass_start = self._next_start()
        self._last = None
        for loaded in self._source.load_batches(self._pass_start, worker, num_workers):
            item = self._item(epoch, loaded)
            item[CURSOR] = self._last = Cursor(epoch, loaded.step, worker, num_workers)
            yield item
        self._start = self._epoch_start(epoch)

    def state_dict(self, batch: Item | None = None) -> dict[str, Any]:
        """Return the position after a batch, as plain JSON values for ``load_state_dict``.

        The state of any rank serves all ranks, and any number of ranks and workers; only for remote tars without a
        ledger does each rank need its own.

        Args:
            batch: the last batch that was used. It must be given when DataLoader workers read, because they are ahead
                of the main process. Default: the batch yielded last, which is right without workers and inside the
                workers of torchdata's ``StatefulDataLoader``.

        Raises:
            RunError: workers read, and no batch was given.
        """
        cursor = self._last if batch is None else Cursor(*batch[CURSOR])
        if cursor is None:
            if get_worker_info() is None and self._shared.workers_read:
                raise RunError("DataLoader workers read this stream: pass the last batch used, state_dict(batch)")
            position = self._start
        elif batch is None and get_worker_info() is not None:
            position = self._source.position_in_worker(self._pass_start, cursor)
        else:
            known = self._pass_start.epoch == cursor.epoch
            position = self._source.position_after(
                self._pass_start if known else self._epoch_start(cursor.epoch), cursor
            )
        return {"version": STATE_VERSION, "stream": self._identity(), "position": position.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set epoch and position: the next pass yields exactly the batches after the one that the state was saved with.

        Load before the DataLoader starts its workers.

        Raises:
            RunError: the state was saved with other samples, other arguments or another version; the message names the
                difference.
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
            self._shared.generation = self._generation = self._shared.generation + 1

    @property
    def num_filtered(self) -> int | None:
        """Number of clips skipped by ``min_frames``, ``max_frames``, ``select``, ``where``; None: not known."""
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
        """Return what ``on_error="skip"`` has skipped so far, over all epochs.

        Returns:
            for each damaged tar, by shard name or URL, the reason why all of it was skipped, or how many samples were.
        """
        lost = {name: f"{count} {self._source.unit_lost}" for name, count in self._shared.lost().items()}
        return {**self._skipped_tars, **lost}

    def _epoch_start(self, epoch: int) -> Any:
        return self._source.epoch_start(epoch)

    def _next_start(self) -> Any:
        """Return the position at which the next pass begins; in a persistent worker, another one may be set."""
        return self._start if self._start.epoch == self.epoch else self._epoch_start(self.epoch)

    def _begin_at(self, position: Any) -> None:
        self._start = self._pass_start = position
        self._last = None

    def _worker(self) -> tuple[int, int]:
        """Return (id of this worker, number of workers)."""
        info = get_worker_info()
        if info is None:
            return 0, 1
        if self._generation != self._shared.generation:
            raise RunError(
                "a state was loaded after the DataLoader's persistent workers had started: make a new DataLoader"
            )
        self._shared.workers_read = True
        return info.id, info.num_workers

    def _item(self, epoch: int, loaded: LoadedBatch) -> Item:
        # A clip that comes twice in an epoch is cropped and drawn from in two ways.
        visit = [] if self._settings.weights is None and self._settings.mix is None else [loaded.number]

        def random_for(key: str) -> np.random.Generator:
            return np.random.default_rng([self._settings.seed, epoch, zlib.crc32(key.encode()), *visit])

        item = self.task(self._prepared(loaded.samples, [epoch, 1], visit), random_for)
        if self._person is None:
            return item
        # The person's clips come again and again in an epoch, whatever the weights of the corpus.
        person = self._prepared(self._person.samples(epoch, loaded.number), [epoch, 1], [loaded.number])
        return {"corpus": item, "person": self.task(person, random_for)}

    def _prepared(self, samples: list[Sample], seed: list[int], visit: list[int]) -> list[Sample]:
        """Return the samples with their audio in sync, cropped and normalised."""
        if (offsets := self._settings.offsets) is not None:
            samples = [shift_audio(sample, offsets.get(sample["__key__"], 0)) for sample in samples]
        length = self._settings.crop_frames
        if length is not None:
            seeds = [[self._settings.seed, *seed, zlib.crc32(sample["__key__"].encode()), *visit] for sample in samples]
            cut = zip(samples, seeds, strict=True)
            samples = [crop(sample, length, np.random.default_rng(numbers)) for sample, numbers in cut]
        return samples if self._normalizer is None else list(map(self._normalizer, samples))

    def _identity(self) -> dict[str, Any]:
        scaled = {} if self._normalizer is None else {"normalize": self._normalizer.sha256}
        if (offsets := self._settings.offsets) is not None:
            lines = sorted(f"{key} {frames}" for key, frames in offsets.items())
            scaled["offsets"] = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
        if self._person is not None:
            scaled["person"] = self._person.sha256()
        return {**self._settings.identity(), **self._source.identity(), **scaled}

    def _require_agreement(self) -> None:
        """Check that all ranks found the same samples: they may see different states or copies of an unfinished run."""
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


if ShardStream.__doc__ is not None:  # python -OO leaves documentation out
    ShardStream.__doc__ += describe_tasks()


def _offsets_table(given: str | Path | Mapping[str, int] | None, locations: Locations) -> Mapping[str, int] | None:
    """Return the offsets in frames by key that ``ShardStream(offsets=...)`` names."""
    if given is None or isinstance(given, Mapping):
        return given
    if str(given) != "sync":
        return load_offsets(given)
    table: dict[str, int] = {}
    for run in split_locations(locations):
        table |= load_offsets(f"{run.rstrip('/')}/{OFFSETS_FILE}")
    return table


def _renamed(deprecated: dict[str, Any]) -> dict[str, Any]:
    """Return arguments that were given by deprecated names under their present names, with a warning for each."""
    for name in deprecated:
        if name not in _RENAMED:
            raise TypeError(f"ShardStream() got an unexpected keyword argument {name!r}")
        _warn_renamed(name, _RENAMED[name], stacklevel=4)
    return {_RENAMED[name]: value for name, value in deprecated.items()}


def _warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    warnings.warn(f"ShardStream: {old} is now called {new}", DeprecationWarning, stacklevel=stacklevel)
