"""Summaries of all ledgers of a run, cached in one file: large runs have too many ledgers to read at each launch.

``index.jsonl`` holds one summary per line. A line is used only if the listing of ``ledger/`` still shows the file that
it was made from, by size and stamp (time or tag). The file may be deleted at any time, and small runs have none.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import FileState, Store
from lrs3_loader.run.ledger import LEDGER_FOLDER, REPAIR, Ledger

logger = logging.getLogger(__name__)

INDEX_FILE = "index.jsonl"
MAX_LEDGER_BYTES = 64 << 20  # some have 100 kB
SAVE_FROM = 1_000  # ledgers; fewer are read as quickly without an index


@dataclass(frozen=True)
class LedgerSummary:
    """A ledger without its list of samples, timings and provenance."""

    shard: str
    run: str
    num_bytes: int
    num_samples: int
    num_frames: int
    rejects: tuple[tuple[str, str, str], ...]  # (key, reason, message)
    generation: int = 0

    @classmethod
    def of(cls, ledger: Ledger) -> LedgerSummary:
        return cls(
            ledger.shard,
            ledger.run,
            ledger.num_bytes,
            len(ledger.samples),
            ledger.num_frames,
            ledger.rejects,
            ledger.generation,
        )

    @property
    def reasons(self) -> Counter[str]:
        """Number of rejects by reason."""
        return Counter(reason for _, reason, _ in self.rejects)


class LedgerIndex:
    """Gives summaries of the ledgers of a run, and reads only new ones."""

    def __init__(self, store: Store):
        self._store = store
        self._known: dict[str, tuple[FileState, LedgerSummary]] | None = None  # by the ledger's file name
        self._num_unsaved = 0
        self.errors: dict[str, str] = {}  # by file name: why the last ``summaries`` passed over a ledger

    def summaries(self, shards: Iterable[str]) -> list[LedgerSummary]:
        """Return a summary of the ledgers of these shards, sorted by shard.

        Lists the folder, reads the index at the first call, and reads each new ledger once. A ledger that is damaged,
        and one of another shard, counts as none: it is named in the log, and in ``errors``.
        """
        listed = self._store.listing(LEDGER_FOLDER)
        planned = {f"{shard}.json" for shard in shards}
        files, errors = {}, {}
        for name in sorted(listed):
            if name not in planned and name.endswith(".json"):
                errors[name] = f"{self._where(name)} is of no shard of this run; it is ignored"
            elif listed[name].num_bytes > MAX_LEDGER_BYTES:
                errors[name] = f"{self._where(name)} is not a ledger ({listed[name].num_bytes} bytes); {REPAIR}"
            elif name in planned:
                files[name] = listed[name]
        if self._known is None:
            self._known = self._load() if len(files) >= SAVE_FROM else {}
        old = self._known
        known = {name: old[name] for name, state in files.items() if name in old and old[name][0] == state}
        new = [name for name in files if name not in known]
        for name, data in self._store.read_many([f"{LEDGER_FOLDER}/{name}" for name in new]):
            file_name = name.rpartition("/")[2]
            try:
                ledger = Ledger.parse(data, self._store.where(name), file_name.removesuffix(".json"))
            except RunError as error:
                errors[file_name] = str(error)
                continue
            known[file_name] = files[file_name], LedgerSummary.of(ledger)
        self._num_unsaved += len(new) + len(old.keys() - files.keys())
        self._known = known
        for name in errors.keys() - self.errors.keys():
            logger.warning("%s", errors[name])
        self.errors = errors
        return [known[name][1] for name in files if name in known]  # one may have been removed since it was listed

    def save(self) -> None:
        """Write the index if the run has many ledgers and some have changed."""
        if self._known is None or len(self._known) < SAVE_FROM or not self._num_unsaved:
            return
        with self._store.write(INDEX_FILE) as file:
            for name, (state, summary) in self._known.items():
                line = [name, state.num_bytes, state.stamp, *dataclasses.astuple(summary)]
                file.write(json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n")
        self._num_unsaved = 0

    def _where(self, name: str) -> str:
        return self._store.where(f"{LEDGER_FOLDER}/{name}")

    def _load(self) -> dict[str, tuple[FileState, LedgerSummary]]:
        try:
            return dict(_parse(line) for line in self._store.read(INDEX_FILE).splitlines())
        except FileNotFoundError:
            return {}
        except (ValueError, RunError) as error:
            logger.warning("%s is damaged (%s): reading the ledgers", self._store.where(INDEX_FILE), error)
            return {}


_LINE = (str, int, str, str, str, int, int, int, [(str, str, str)])


def _parse(line: bytes) -> tuple[str, tuple[FileState, LedgerSummary]]:
    plain = decode_json(line)
    check_types(plain, _LINE if isinstance(plain, list) and len(plain) < 10 else (*_LINE, int), "line")
    # Indexes of older versions have no generation.
    name, size, stamp, shard, run, num_bytes, num_samples, num_frames, rejects, *generation = plain
    if name != f"{shard}.json":
        raise ValueError(f"{name!r:.100} is not the ledger of {shard!r:.100}")
    found = tuple((key, reason, message) for key, reason, message in rejects)
    counts = num_bytes, num_samples, num_frames
    return name, (FileState(size, stamp), LedgerSummary(shard, run, *counts, found, *generation))
