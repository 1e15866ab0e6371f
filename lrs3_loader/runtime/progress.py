"""Says how far a long job is, and how long it will take."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LINE_SECONDS = 10.0  # between lines where there is no terminal
FIRST_LINE_SECONDS = 2.0  # before the first; quicker jobs say nothing


def with_progress(
    items: Iterable[Item], total: int, unit: str, logger: logging.Logger, first: int = 0
) -> Iterator[Item]:
    """Yield the items; an item is done when the next one is asked for.

    On a terminal there is a bar meanwhile. Elsewhere a line goes to the log every ten seconds, the first after two:
    ``3 of 12 clips, about 00:27 left``.

    Args:
        total: number of items, with those done before.
        unit: what an item is, in the plural.
        first: number of items that an earlier process has done, whose time is not known.
    """
    on_terminal = sys.stderr.isatty()
    started = time.monotonic()
    next_line = started + FIRST_LINE_SECONDS
    with tqdm(
        total=total, initial=first, unit=f" {unit}", dynamic_ncols=True, leave=False, disable=not on_terminal
    ) as bar:
        for done, item in enumerate(items, first):
            now = time.monotonic()
            if done > first and not on_terminal and now >= next_line:
                left = tqdm.format_interval((total - done) * (now - started) / (done - first))
                logger.info("%d of %d %s, about %s left", done, total, unit, left)
                next_line = now + LINE_SECONDS
            yield item
            bar.update()
