"""Progress of the whole run, displayed on rank 0, from counters that all ranks share."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.types import FRAMES_PER_SECOND

logger = logging.getLogger(__name__)

PLAIN_LINE_SECONDS = 30.0  # between lines where there is no terminal


#: Names of the shared counters. Slots are the places in batches, padding included.
COUNTERS = ("clips", "frames", "rejects", "frame_slots", "sound_samples", "sound_slots")


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

    def flush(self) -> None:
        with self._lock:
            waiting = {name: amount for name, amount in self._waiting.items() if amount}
            self._waiting.update(dict.fromkeys(waiting, 0))
            self._last_flush = time.monotonic()
        for name, amount in waiting.items():
            self._queue.add(name, amount)
        self._queue.heartbeat()


class ProgressDisplay:
    """Context manager that shows clips, frames/s, speed in real time, rejects and remaining time.

    On a terminal it draws a bar; elsewhere it logs a line every half minute.
    """

    def __init__(self, queue: WorkQueue, num_clips: int, num_clips_done: int):
        self._queue = queue
        self._num_clips = num_clips
        self._num_clips_done = num_clips_done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._started = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def _counts(self) -> tuple[int, str]:
        clips, frames, rejects = (self._queue.add(name, 0) for name in ("clips", "frames", "rejects"))
        rate = frames / max(self.seconds, 1e-9)
        return clips, f"{rate:.0f} frames/s, {rate / FRAMES_PER_SECOND:.1f}x real time, {rejects} rejects"

    def _show(self) -> None:
        if sys.stderr.isatty():
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        with tqdm(total=self._num_clips, initial=self._num_clips_done, unit="clip", dynamic_ncols=True) as bar:
            while True:
                stopped = self._stop.wait(0.5)
                clips, text = self._counts()
                bar.set_postfix_str(text, refresh=False)
                bar.update(self._num_clips_done + clips - bar.n)
                if stopped:
                    return

    def _show_lines(self) -> None:
        while not self._stop.wait(PLAIN_LINE_SECONDS):
            clips, text = self._counts()
            done = self._num_clips_done + clips
            left = "unknown time"
            if clips:
                left = "about " + tqdm.format_interval((self._num_clips - done) * self.seconds / clips)
            logger.info("%d of %d clips, %s, %s left", done, self._num_clips, text, left)
