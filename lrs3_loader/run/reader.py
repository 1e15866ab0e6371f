"""``Run``: the published clips of a run as a mapping from keys to features, for notebooks and programs."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import Location
from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.shards import check_sample
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.types import ClipFeatures, Reject, Shard

if TYPE_CHECKING:
    import pandas

_MAX_OPEN_TARS = 4
_NUM_NEIGHBOURS = 2


class Run(Mapping[str, ClipFeatures]):
    """The clips that a run has published: ``len(run)``, ``for key in run``, ``run[key]``, ``run.items()``.

    ``run[key]`` reads one sample from its place in a tar, and compares the checksum of each of its arrays. A tar at a
    URL is downloaded whole for that and kept while it is used, so read such a run in its order. Ledgers are read once,
    when they are first needed: open a run again to see what was published since.

    Args:
        folder: the run.

    Attributes:
        folder: the run as commands use it, with its shards, ledgers and ``run.json``.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._shards: dict[str, int] | None = None  # number of the shard of each key that was published
        self._rejects: dict[str, Reject] = {}
        self._tars: OrderedDict[int, tuple[Shard, TarIndex]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self)} of {self.folder.shards.num_clips} clips)"

    @property
    def path(self) -> Location:
        """Folder or URL of the run."""
        return self.folder.path

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``: settings (``config``), models with their hashes, and versions of software."""
        return self.folder.record

    @property
    def rejects(self) -> dict[str, Reject]:
        """The clips that could not be extracted, by key, each with its reason."""
        self._places()
        return self._rejects

    def figures(self) -> FigureTable:
        """Return the figures of all clips as numpy arrays, from the ledgers alone (docs/quality.md)."""
        return self.folder.figures()

    def table(self) -> pandas.DataFrame:
        """Return the figures of all clips as a pandas table, a row per clip (docs/quality.md).

        Raises:
            RunError: pandas is not installed, or a ledger is damaged.
        """
        return self.folder.table()

    def __len__(self) -> int:
        return len(self._places())

    def __iter__(self) -> Iterator[str]:
        """Yield the keys in the order of the run."""
        return iter(self._places())

    def __contains__(self, key: object) -> bool:
        return key in self._places()

    def __getitem__(self, key: str) -> ClipFeatures:
        """Read the features of a clip.

        Raises:
            KeyError: the clip was rejected (with the reason), is not extracted yet, or is not in the run (with keys
                near it).
            RunError: its tar is damaged or missing, or a ledger is.
        """
        places = self._places()
        if key not in places:
            raise KeyError(self._why_missing(key))
        try:
            shard, tar = self._tar(places[key])
            assert tar.ledger is not None
            if key not in tar.ledger.places:
                raise RunError(f"{key} is not in {tar.path} any more: the shard was made again; open the run again")
            sample = check_sample(str(tar.path), tar.read(tar.ledger.places[key], None))
        except DamagedError as error:
            raise RunError(f"{error}; {error.remedy}") from error
        meta = sample.pop("json")
        del sample["__key__"]
        clip = next(clip for clip in shard.clips if clip.key == key)
        return ClipFeatures(clip, meta["num_frames"], sample, meta)

    def close(self) -> None:
        """Close the tars that are kept open."""
        while self._tars:
            self._tars.popitem()[1][1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": OrderedDict()}  # open files are not pickled

    def _places(self) -> dict[str, int]:
        if self._shards is None:
            numbers = {name: number for number, name in enumerate(self.folder.shards.names)}
            found = dict[str, int]()
            for ledger in self.folder.ledgers():
                if not self.folder.owns(ledger):
                    continue
                number = numbers[ledger.shard]
                found |= {key: number for key, _ in ledger.samples}
                if ledger.rejects:
                    clips = {clip.key: clip for clip in self.folder.shards[number].clips}
                    self._rejects |= {key: Reject(clips[key], reason, text) for key, reason, text in ledger.rejects}
            self._shards = found
        return self._shards

    def _tar(self, number: int) -> tuple[Shard, TarIndex]:
        if number not in self._tars:
            shard = self.folder.shards[number]
            self._tars[number] = shard, self.folder.open_tar(shard)
            if len(self._tars) > _MAX_OPEN_TARS:
                self._tars.popitem(last=False)[1][1].close()
        self._tars.move_to_end(number)
        return self._tars[number]

    def _why_missing(self, key: str) -> str:
        if (reject := self._rejects.get(key)) is not None:
            return f"{key} was rejected ({reject.reason}): {reject.message}"
        if len(self) + len(self._rejects) < self.folder.shards.num_clips:
            planned = (shard.name for shard in self.folder.shards if any(clip.key == key for clip in shard.clips))
            if (shard := next(planned, None)) is not None:
                return f"{key} is not extracted yet: its shard {shard} is not published"
        ordered = sorted(self)
        place = bisect.bisect(ordered, str(key))
        near = ", ".join(ordered[max(place - _NUM_NEIGHBOURS, 0) : place + _NUM_NEIGHBOURS])
        return f"no clip {key} in {self.path}" + (f"; keys near it are {near}" if near else "")


def open_run(path: str | Path) -> Run:
    """Open a run, local or at a URL: ``open_run("/data/lrs3-shards").table()`` has the figures of every clip.

    Raises:
        RunError: there is no run, or its files are damaged.
    """
    return Run(RunFolder.open(path))
