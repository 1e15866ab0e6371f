"""Decides whether samples that cannot be read are an error or are skipped, logged and counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lrs3_loader.errors import RunError
from lrs3_loader.run.tar import DamagedError
from lrs3_loader.stream.shared_state import SharedState

logger = logging.getLogger(__name__)


class ErrorPolicy:
    """Is called with every sample that cannot be read.

    Args:
        skip: skip damage instead of raising an error.
        names: names of the tars, for messages.
        shared: counts the samples skipped.
    """

    def __init__(self, skip: bool, names: Sequence[str], shared: SharedState):
        self._skip = skip
        self._names = names
        self._shared = shared
        self._logged: set[int] = set()

    def lost(self, source: int, error: DamagedError) -> None:
        """Count a sample as lost to its tar, and log the first one of each tar.

        Raises:
            RunError: damage must not be skipped.
        """
        if not self._skip:
            raise RunError(f"{error}. Run the extraction again to replace it, or skip it (on_error='skip')") from error
        self._shared.add_lost(source)
        if source not in self._logged:
            self._logged.add(source)
            logger.warning("skipping damaged samples of %s: %s", self._names[source], error)
