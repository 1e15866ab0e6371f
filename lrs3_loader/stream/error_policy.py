"""What becomes of samples that cannot be read: an error, or they are left out, named and counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lrs3_loader.errors import RunError
from lrs3_loader.stream.shared_state import SharedState
from lrs3_loader.stream.tarindex import DamagedError

logger = logging.getLogger(__name__)


class ErrorPolicy:
    """Told of every sample that could not be read."""

    def __init__(self, skip: bool, names: Sequence[str], shared: SharedState):
        self._skip = skip
        self._names = names
        self._shared = shared
        self._named: set[int] = set()

    def lost(self, source: int, error: DamagedError, count: int = 1) -> None:
        """Count it against its tar, and name the tar the first time.

        Raises:
            RunError: damage is not to be skipped.
        """
        if not self._skip:
            raise RunError(f"{error}. Run the extraction again to replace it, or skip it (on_error='skip')") from error
        self._shared.add_lost(source, count)
        if source not in self._named:
            self._named.add(source)
            logger.warning("skipping what is bad in %s: %s", self._names[source], error)
