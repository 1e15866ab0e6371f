"""Sample id -> sample: by its place in a local tar, or by reading a remote one front to back."""

from __future__ import annotations

import contextlib
import logging
import tarfile
from collections import OrderedDict
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Protocol

from webdataset import tariterators

from lrs3_loader.io.storage import store_at
from lrs3_loader.stream.catalog import Catalog
from lrs3_loader.stream.remote import open_remote
from lrs3_loader.stream.schedule import BatchIds
from lrs3_loader.stream.tarindex import DamagedError, Sample, TarIndex, decode_sample, is_wanted

logger = logging.getLogger(__name__)

Members = dict[str, bytearray]  # of one sample, by extension

MAX_OPEN_TARS = 128  # of one reader; a shuffle buffer seldom spans more shards
MAX_FETCHED_TARS = 4  # of one reader; a run that is followed comes shard by shard


class Reader(Protocol):
    """Reads the samples of a catalog."""

    def read(self, partition: int, sample_id: int) -> Sample:
        """One sample.

        Raises:
            DamagedError: it cannot be had; the message names the tar.
        """
        ...

    def close(self) -> None: ...


class LocalReader:
    """Reads any sample of local tars, in any order; keeps the tars used last open."""

    _most_open = MAX_OPEN_TARS

    def __init__(self, catalog: Catalog, fields: tuple[str, ...] | None):
        self._catalog = catalog
        self._fields = fields
        self._open: OrderedDict[int, TarIndex] = OrderedDict()
        self._broken: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # files stay with the process that opened them

    def read(self, partition: int, sample_id: int) -> Sample:
        number, place = self._catalog.locate(sample_id)
        index = self._index(number)
        key = self._catalog.key(sample_id)
        if place >= len(index.samples) or index.samples[place].key != key:
            raise DamagedError(f"{index.path}: sample {place} is not {key}: the tar is not the one that was listed")
        return index.read(place, self._fields)

    def _index(self, number: int) -> TarIndex:
        if number in self._broken:
            raise DamagedError(self._broken[number])
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        try:
            self._open[number] = self._open_tar(self._catalog.sources[number].url)
        except DamagedError as error:
            self._broken[number] = str(error)
            raise
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)[1].close()
        return self._open[number]

    def _open_tar(self, url: str) -> TarIndex:
        return TarIndex(Path(url))

    def close(self) -> None:
        for index in self._open.values():
            index.close()
        self._open.clear()


class FetchingReader(LocalReader):
    """The same for tars on object storage: each is fetched whole, and kept for a while.

    Every reader fetches for itself, so those of one run fetch its tars as often as there are readers.
    """

    _most_open = MAX_FETCHED_TARS

    def _open_tar(self, url: str) -> TarIndex:
        root, _, name = url.rpartition("/")
        with store_at(root).local_copy(name) as folder:  # open, it outlives its name
            try:
                return TarIndex(folder / name)
            except DamagedError as error:
                raise DamagedError(str(error).replace(str(folder / name), url)) from error


class StreamReader:
    """Reads remote tars front to back, one connection for each partition, holding what comes before its batch is due.

    All batches that will be read must be given; samples of no batch are skipped. A partition holds at most its block of
    the shuffle buffer, and what was carried over from the block before.
    """

    def __init__(self, catalog: Catalog, fields: tuple[str, ...] | None, batches: Iterable[BatchIds]):
        self._partitions: dict[int, _Partition] = {}
        wanted: dict[int, list[int]] = {}
        for partition, ids in batches:
            wanted.setdefault(partition, []).extend(ids.tolist())
        for partition, in_turn in wanted.items():
            self._partitions[partition] = _Partition(catalog, fields, in_turn)

    def read(self, partition: int, sample_id: int) -> Sample:
        return self._partitions[partition].read(sample_id)

    def close(self) -> None:
        for partition in self._partitions.values():
            partition.close()


class _Partition:
    def __init__(self, catalog: Catalog, fields: tuple[str, ...] | None, ids: list[int]):
        self._catalog = catalog
        self._fields = fields
        self._held: dict[int, Members | DamagedError] = {}
        shards: dict[int, dict[str, int]] = {}  # number of the source -> key -> id, in the order of first use
        for sample_id in ids:
            shards.setdefault(catalog.locate(sample_id)[0], {})[catalog.key(sample_id)] = sample_id
        self._arrivals = self._walk(shards)

    def read(self, sample_id: int) -> Sample:
        while sample_id not in self._held:
            arrived, data = next(self._arrivals)
            self._held[arrived] = data
        data = self._held.pop(sample_id)
        if isinstance(data, DamagedError):
            raise data
        key, source = self._catalog.key(sample_id), self._catalog.sources[self._catalog.locate(sample_id)[0]]
        return decode_sample(source.url, key, data, self._fields)

    def _walk(self, shards: dict[int, dict[str, int]]) -> Generator[tuple[int, Members | DamagedError], None, None]:
        """Every wanted sample, as raw members or as the reason why it cannot be had."""
        for number, wanted in shards.items():
            url = self._catalog.sources[number].url
            problem = DamagedError(f"{url}: samples that were listed are not in it")
            try:
                with contextlib.closing(tar_samples(url, self._fields)) as samples:
                    for key, data in samples:
                        if key in wanted:
                            yield wanted.pop(key), data
                        if not wanted:
                            break
            except DamagedError as error:
                problem = error
            for sample_id in wanted.values():
                yield sample_id, problem

    def close(self) -> None:
        self._arrivals.close()


def tar_samples(url: str, fields: tuple[str, ...] | None) -> Generator[tuple[str, Members], None, None]:
    """(key, raw members by extension) of a tar read front to back by webdataset.

    Raises:
        DamagedError: it cannot be opened or read to its end.
    """
    try:
        stream = open_remote(url)
    except OSError as error:
        raise DamagedError(f"{url} cannot be opened: {error}") from error
    try:
        files = tariterators.tar_file_expander(
            [{"url": url, "stream": stream}], select_files=lambda name: is_wanted(_extension(name), fields)
        )
        for sample in tariterators.group_by_keys(files):
            # Copied into bytes that may be changed, as arrays read from local tars may.
            yield sample["__key__"], {ext: bytearray(data) for ext, data in sample.items() if not ext.startswith("__")}
        stream.close()  # of a command: says whether it failed
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{url} is damaged: {error.args[0] if error.args else error!r}") from error
    finally:
        with contextlib.suppress(OSError):  # left half-read: the command's complaint of it means nothing
            stream.close()


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()
