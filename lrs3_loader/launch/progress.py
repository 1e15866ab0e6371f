"""Progress of the whole run, displayed on rank 0, from counters that all ranks share."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lrs3_loader.errors import count_of
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.launch.run_log import METRICS, write_metrics
from lrs3_loader.runtime.boards import Boards
from lrs3_loader.types import FRAMES_PER_SECOND

logger = logging.getLogger(__name__)

PLAIN_LINE_SECONDS = 30.0  # between lines where there is no terminal
METRICS_SECONDS = 5.0  # at least, between two states of the metrics

#: Names of the shared counters. Slots are the rows of batches, padding included.
COUNTERS = ("clips", "frames", "rejects", "frame_slots", "audio_samples", "audio_slots")
#: Stages of the extraction whose time is counted; see ``Tally.add_timings``.
STAGES = ("decode_wait", "landmarks", "quality", "crops", "regression", "speaking", "sound", "media", "fit")


class Tally:
    """Counts of this rank, added to the shared counters at most once a second. Any thread may call ``add``."""

    def __init__(self, queue: WorkQueue):
        self._queue = queue
        self._waiting = dict.fromkeys(COUNTERS, 0)
        self._last_flush = time.monotonic()
        self._lock = threading.Lock()

    def add(self, **amounts: int) -> None:
        """Add to counters by name, such as ``add(frames=125, clips=1)``; see ``COUNTERS``."""
        with self._lock:
            for name, amount in amounts.items():
                self._waiting[name] += amount
            is_due = time.monotonic() - self._last_flush > 1.0
        if is_due:
            self.flush()

    def add_timings(self, timings: Mapping[str, float]) -> None:
        """Add the seconds that each stage took to a counter of milliseconds of its name."""
        for stage, seconds in timings.items():
            self._queue.add(f"{stage}_ms", round(1000 * seconds))

    def flush(self) -> None:
        with self._lock:
            waiting = {name: amount for name, amount in self._waiting.items() if amount}
            self._waiting.update(dict.fromkeys(waiting, 0))
            self._last_flush = time.monotonic()
        for name, amount in waiting.items():
            self._queue.add(name, amount)
        self._queue.heartbeat()


@contextmanager
def progress_display(
    queue: WorkQueue,
    num_clips: int,
    num_clips_done: int,
    metrics_folder: Path | None = None,
    boards: Boards | None = None,
) -> Iterator[None]:
    """Show clips, frames/s, speed in real time, rejects and remaining time while the block runs.

    On a terminal this is a bar; elsewhere a line is logged every half minute. The same figures are kept in
    ``metrics_folder``, if one is given (see ``run_log.write_metrics``), and sent to ``boards`` with the seconds that
    each stage took, by the number of clips that are done.
    """
    stop = threading.Event()
    parameters = queue, num_clips, num_clips_done, metrics_folder, boards, stop
    thread = threading.Thread(target=_show, args=parameters, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5.0)


def _show(
    queue: WorkQueue,
    num_clips: int,
    num_clips_done: int,
    metrics_folder: Path | None,
    boards: Boards | None,
    stop: threading.Event,
) -> None:
    started = time.monotonic()
    written = 0.0
    on_terminal = sys.stderr.isatty()
    stopped = False
    with tqdm(total=num_clips, initial=num_clips_done, unit="clip", dynamic_ncols=True, disable=not on_terminal) as bar:
        while not stopped:
            stopped = stop.wait(0.5 if on_terminal else PLAIN_LINE_SECONDS)
            clips, frames, rejects = (queue.add(name, 0) for name in ("clips", "frames", "rejects"))
            seconds = max(time.monotonic() - started, 1e-9)
            speed = f"{frames / seconds:.0f} frames/s, {frames / seconds / FRAMES_PER_SECOND:.1f}x real time"
            done, text = num_clips_done + clips, f"{speed}, {count_of(rejects, 'reject')}"
            if stopped or time.monotonic() - written > METRICS_SECONDS:
                written = time.monotonic()
                values = dict(zip(METRICS, (num_clips, done, rejects, frames, frames / seconds), strict=True))
                if metrics_folder is not None:
                    write_metrics(metrics_folder, values)
                if boards is not None:
                    boards.write(
                        done, values | {f"seconds/{name}": queue.add(f"{name}_ms", 0) / 1000 for name in STAGES}
                    )
            if on_terminal:
                bar.set_postfix_str(text, refresh=False)
                bar.update(done - bar.n)
            elif not stopped:
                left = (
                    "about " + tqdm.format_interval((num_clips - done) * seconds / clips) if clips else "unknown time"
                )
                logger.info("%d of %d clips, %s, %s left", done, num_clips, text, left)
