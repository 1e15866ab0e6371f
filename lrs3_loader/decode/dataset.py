"""Clips -> frames and sound, in worker processes, in order, whatever becomes of a worker.

``ClipDataset`` decodes one chunk of one clip; ``ClipLoader`` drives it through a torch ``DataLoader``. An expected
failure of a clip becomes a :class:`~lrs3_loader.types.Reject`; so does a clip whose worker hung or died.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lrs3_loader.config import DecodeConfig, WorkerConfig
from lrs3_loader.corpus.scan import read_transcript
from lrs3_loader.decode.clip_queue import ChunkRequest, ClipQueue, Tag, Ticket
from lrs3_loader.decode.sound import Stretch, read_sound
from lrs3_loader.decode.video import Allocate, VideoTrack, probe_video, read_pictures
from lrs3_loader.decode.workers import Crew, StartMethod, WorkTable, own_child_signals, prepare_parent
from lrs3_loader.errors import (
    ClipError,
    DecoderCrashedError,
    DecoderHungError,
    LengthMismatchError,
    RunError,
    TooLargeError,
    TooShortError,
)
from lrs3_loader.io.storage import Location, store_at
from lrs3_loader.runtime.memory import in_shared_memory, pack, unpack
from lrs3_loader.types import FRAMES_PER_SECOND, ROWS_PER_FRAME, Clip, ClipHead, DecodedChunk, Reject, SourceInfo

logger = logging.getLogger(__name__)

MIN_CHUNK_FRAMES = 128
POLL_SECONDS = 1
START_SECONDS = 300  # processes that neither work nor die for this long cannot be started here
DYING_SECONDS = 10.0
MAX_IDLE_DEATHS = 5  # in a row, of workers that were on no clip: something kills them that no clip explains

Pitch = Callable[[np.ndarray, int], tuple[np.ndarray, int]]
"""(waveform [n] f32 at 16 kHz, rows wanted) -> (F0 in Hz [rows] f32, rows before fitting). A module-level function."""


def _no_beat() -> None:
    """Nobody watches."""


def import_ahead(pitch: Pitch, start_method: StartMethod = "forkserver") -> None:
    """Have the process that workers come from import what they need, while this one does something else."""
    prepare_parent(start_method, [__name__, pitch.__module__])


class ClipDataset(Dataset[DecodedChunk | Reject]):
    """Map-style dataset whose index is a :class:`ChunkRequest`.

    Args:
        root: folder or URL that the clips' paths are relative to.
        pitch: computes the head's F0.
    """

    def __init__(self, root: Location, config: DecodeConfig, pitch: Pitch) -> None:
        self.files = store_at(root)
        self._root = _identity(self.files.root)
        self.config = config
        self.pitch = pitch
        self.beat: Callable[[], None] = _no_beat  # called between the steps of the work
        self.allocate: Allocate = torch.empty  # makes what frames are decoded into

    def __getitem__(self, request: ChunkRequest) -> DecodedChunk | Reject:
        """Decode one chunk. A ``ClipError`` becomes a Reject; any other exception is let through.

        The clip's files are fetched first where they are not on this machine. When that fails, or when the corpus
        has gone, it is no clip's fault: a ``RunError``.
        """
        with self.files.at_hand(*_files_for(request), beat=self.beat) as root:
            try:
                return self._decode(request, root)
            except ClipError as error:
                self._check_there(request.clip)
                # A corpus may be mounted anywhere: no message says where.
                return Reject(request.clip, error.reason, str(error).replace(f"{root}{os.sep}", ""))
            except MemoryError:
                message = f"{request.clip.video_path}: not enough memory to decode it"
                return Reject(request.clip, TooLargeError.reason, message)

    def _check_there(self, clip: Clip) -> None:
        """A clip without its video may be one of many: a disk that is not mounted any more leaves an empty folder."""
        root = self.files.root
        if isinstance(root, Path) and not os.path.lexists(root / clip.video_path) and _identity(root) != self._root:
            raise RunError(
                f"{root} is not what it was when the run began, and {clip.video_path} is not in it: "
                "mount it again, or put it back, then run the same command again"
            )

    def _decode(self, request: ChunkRequest, root: Path) -> DecodedChunk:
        clip = request.clip
        track = probe_video(root / clip.video_path, clip.video_path, self.config)
        self.beat()
        sources, skip = select_stretch(track, clip, self.config)
        head = self._head(clip, root, track, sources, skip) if request.start == 0 else None
        picture_bytes = track.height * track.width * 3
        size = max(MIN_CHUNK_FRAMES, self.config.chunk_mebibytes * 2**20 // picture_bytes)
        frames = read_pictures(track, sources[request.start : request.start + size], self.allocate)
        if head is not None:  # a file may ask to be shown on its side
            shown = dataclasses.replace(head.source, height=frames.shape[1], width=frames.shape[2])
            head = dataclasses.replace(head, source=shown)
        return DecodedChunk(clip, len(sources), request.start, frames, head)

    def _head(self, clip: Clip, root: Path, track: VideoTrack, sources: np.ndarray, skip: Fraction) -> ClipHead:
        transcript = read_transcript(root / clip.transcript_path) if clip.transcript_path else None
        name = clip.sound_path or clip.video_path
        start = None if clip.sound_path else track.start_seconds
        stretch = Stretch(start, skip, len(sources), open_end=clip.end_seconds is None)
        sound = read_sound(root / name, name, stretch, self.config.max_sound_gap_seconds)
        self.beat()
        f0_hz, num_f0_rows = self.pitch(sound.waveform.numpy(), ROWS_PER_FRAME * len(sources))
        self.beat()
        source = SourceInfo(
            frames_per_second=_average_rate(track, sources),
            num_frames=len(track.pts),
            height=track.height,
            width=track.width,
            sample_rate=sound.sample_rate,
            num_channels=sound.num_channels,
            num_samples=sound.num_samples,
            sound_offset_seconds=float(sound.start_seconds - start) if start is not None else 0.0,
            num_missing_samples=sound.num_missing_samples,
            num_excess_samples=sound.num_excess_samples,
        )
        return ClipHead(sound.waveform, torch.from_numpy(f0_hz), num_f0_rows, source, transcript)


def _identity(root: Location) -> tuple[int, int] | None:
    """Which folder it is: device and inode. None where there is none, and for object storage."""
    if not isinstance(root, Path):
        return None
    try:
        state = root.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _files_for(request: ChunkRequest) -> list[str]:
    clip = request.clip
    first_only = [clip.sound_path, clip.transcript_path] if request.start == 0 else []
    return [clip.video_path, *(name for name in first_only if name is not None)]


def select_stretch(track: VideoTrack, clip: Clip, config: DecodeConfig) -> tuple[np.ndarray, Fraction]:
    """Which pictures a clip's frames show.

    Returns:
        [T] indices of pictures, and the time (seconds after the first picture, a multiple of 1/25) of the first frame.

    Raises:
        TooShortError, TooLargeError: T is out of the configured range.
        LengthMismatchError: the stretch ends well after the video does.
    """
    whole = track.sources_at_25()
    start = round((clip.start_seconds or 0) * FRAMES_PER_SECOND)
    stop = len(whole) if clip.end_seconds is None else round(clip.end_seconds * FRAMES_PER_SECOND)
    if stop - len(whole) > config.max_sound_gap_seconds * FRAMES_PER_SECOND:
        length = len(whole) / FRAMES_PER_SECOND
        raise LengthMismatchError(f"{track.name}: to be used until {clip.end_seconds} s, but it lasts {length:.2f} s")
    sources = whole[start:stop]
    if len(sources) < config.min_frames:
        raise TooShortError(f"{track.name}: {len(sources)} frames at 25 fps, fewer than {config.min_frames}")
    if len(sources) > config.max_frames:
        raise TooLargeError(f"{track.name}: {len(sources)} frames at 25 fps, more than {config.max_frames}")
    return sources, Fraction(start, FRAMES_PER_SECOND)


def _average_rate(track: VideoTrack, sources: np.ndarray) -> float:
    """Source frames a second over the pictures used."""
    first, last = int(sources[0]), int(sources[-1])
    end = track.end_pts if last + 1 == len(track.pts) else int(track.pts[last + 1])
    return float((last + 1 - first) / ((end - int(track.pts[first])) * track.time_base))


class _WatchedDataset(Dataset[tuple[int, torch.Tensor | None]]):
    """What really runs in the workers: the dataset, with its work entered in the table and results packed."""

    def __init__(self, dataset: ClipDataset, table: WorkTable) -> None:
        self.dataset = dataset
        self.table = table

    def __getitem__(self, item: tuple[int, ChunkRequest | None]) -> tuple[int, torch.Tensor | None]:
        number, request = item
        if request is None:
            return number, None
        info = get_worker_info()
        assert info is not None
        self.dataset.beat = lambda: self.table.beat(info.id)
        self.dataset.allocate = in_shared_memory
        with self.table.working_on(info.id, number):
            try:
                result: DecodedChunk | Reject | RunError = self.dataset[request]
            except RunError as error:  # one line for the user, without this process's traceback
                result = error
            return number, pack(result)


def _as_is(item: Any) -> Any:
    return item


class ClipLoader(Generic[Tag]):
    """Decodes clips in worker processes and yields their chunks in the clips' own order.

    For any number of workers and any timing the same items come in the same order: all chunks of a clip one after
    another, or one Reject (after a chunk or more, if the clip fails late). A worker that gives nothing for
    ``workers.deadline_seconds``, or dies, is replaced; its clip is tried ``workers.attempts`` times.

    Args:
        clips: pairs (tag, clip), drawn only as far as the workers' queues reach (``prefetch`` for each worker, and
            those being decoded). It must not wait for items that this loader has still to yield.
        root: folder or URL that the clips' paths are relative to.
        workers: how many processes, and how long they are waited for.
        pitch: computes F0, see :data:`Pitch`.
        prefetch: requests waiting at each worker.
        start_method: ``forkserver`` (a new worker takes a fraction of a second) or ``spawn``.

    Raises (while iterating):
        RunError: workers cannot run here at all (no shared memory, or something keeps killing them), or a remote
            corpus cannot be reached.
    """

    def __init__(
        self,
        clips: Iterable[tuple[Tag, Clip]],
        root: Location,
        config: DecodeConfig,
        workers: WorkerConfig,
        *,
        pitch: Pitch,
        prefetch: int = 2,
        start_method: StartMethod = "forkserver",
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {prefetch}")
        self.workers = workers
        self._dataset = ClipDataset(root, config, pitch)
        self._prefetch = prefetch
        self._start_method: StartMethod = start_method
        self._queue = ClipQueue(clips)
        self._idle_deaths = 0
        self._crew: Crew | None = None
        self._results: Iterator[tuple[int, torch.Tensor | None]] | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> ClipLoader[Tag]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Have the iteration end early, within about a second; for other threads than the one that iterates."""
        self._stopped.set()

    def close(self) -> None:
        """End all workers at once."""
        if self._crew is not None:
            self._crew.close()
        self._crew = self._results = None

    def __iter__(self) -> Iterator[tuple[Tag, DecodedChunk | Reject]]:
        while True:
            yield from self._queue.ready()
            if self._queue.is_done or self._stopped.is_set():
                self.close()
                return
            self._receive()

    def _receive(self) -> None:
        """Wait for one result, replacing the workers if one of them has failed."""
        if self._results is None:
            self._start()
            if self._queue.is_done:  # there was no clip at all
                return
        assert self._results is not None
        num_polls = 0
        while not self._stopped.is_set():
            try:
                number, packed = next(self._results)
                result = None if packed is None else unpack(packed)
            except (RuntimeError, OSError, EOFError) as error:
                # DataLoader: "timed out", "worker exited unexpectedly"; others: the sender of a tensor has died.
                timed_out = str(error).startswith("DataLoader timed out")
                # One that is dying may take its time: its connection breaks before it has ended.
                patience = 0.0 if timed_out else 1.0 if isinstance(error, RuntimeError) else DYING_SECONDS
                if not self._replace_failed(patience):
                    if not timed_out:
                        raise
                    num_polls += 1
                    self._check_started(num_polls)
                    continue
                return
            if isinstance(result, RunError):
                raise result
            if self._queue.accept(number, result):
                self._idle_deaths = 0
            return

    def _start(self) -> None:
        import_ahead(self._dataset.pitch, self._start_method)
        crew = self._crew = Crew(self.workers.num_workers, self.workers.deadline_seconds, self._start_method)
        with warnings.catch_warnings():
            # How many processes there should be is the user's to say.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            self._results = self._connect(crew)
        crew.start_watching()

    def _connect(self, crew: Crew) -> Iterator[tuple[int, torch.Tensor | None]]:
        loader: DataLoader[Any] = DataLoader(
            _WatchedDataset(self._dataset, crew.table),
            batch_size=None,
            sampler=self._queue,
            collate_fn=_as_is,
            num_workers=self.workers.num_workers,
            prefetch_factor=self._prefetch,
            multiprocessing_context=crew.context,
            worker_init_fn=crew.worker_init,
            timeout=POLL_SECONDS,
            generator=torch.Generator(),  # else each start would draw from the global one
        )
        with own_child_signals():
            return iter(loader)

    def _replace_failed(self, wait_seconds: float) -> bool:
        """If a worker has died, settle what it was on and start all anew. False: none has."""
        crew = self._crew
        assert crew is not None
        dead = crew.dead(wait_seconds)
        if not dead:
            return False
        for worker in dead:
            number, _ = crew.table.read(worker)
            exit_code = crew.processes[worker].exitcode
            if exit_code == -signal.SIGBUS:
                raise RunError(f"a decode worker ran out of shared memory: {_shared_memory()}; give it more")
            killed_for = crew.hung.get(worker)
            if killed_for is not None and killed_for != number:
                continue  # it got over that item just before it was killed, and what it is on now is not to blame
            ticket = self._queue.in_flight.get(number)
            if ticket is not None:
                self._settle(ticket, hung=killed_for is not None, exit_code=exit_code)
            else:
                self._idle_deaths += 1
                logger.warning("a decode worker ended while it had no clip (exit code %s); replaced", exit_code)
        if self._idle_deaths > MAX_IDLE_DEATHS:
            raise RunError(f"decode workers end without a cause in any clip (last exit code {exit_code})")
        self.close()
        self._queue.send_again()
        return True

    def _settle(self, ticket: Ticket[Tag], hung: bool, exit_code: int | None) -> None:
        """Count a failure of the worker that was on this; after the last attempt reject the clip."""
        ticket.num_failures += 1
        failures, clip = ticket.num_failures, ticket.job.clip
        error: ClipError
        if hung:
            error = DecoderHungError(
                f"{clip.video_path}: nothing decoded for {self.workers.deadline_seconds:g} s, "
                f"{failures} of {self.workers.attempts} times"
            )
        else:
            ended = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
            error = DecoderCrashedError(
                f"{clip.video_path}: the decode process ended with {ended}, {failures} of {self.workers.attempts} times"
            )
        logger.warning("%s", error)
        if failures >= self.workers.attempts:
            self._queue.accept(ticket.number, Reject(clip, error.reason, str(error)))

    def _check_started(self, num_polls: int) -> None:
        assert self._crew is not None
        if num_polls * POLL_SECONDS > START_SECONDS + self.workers.deadline_seconds and self._crew.is_idle():
            raise RunError(f"decode workers do not start within {num_polls * POLL_SECONDS} s")


def _shared_memory() -> str:
    stats = os.statvfs("/dev/shm")
    return f"/dev/shm has {stats.f_blocks * stats.f_frsize >> 20} MiB, {stats.f_bavail * stats.f_frsize >> 20} MiB free"
