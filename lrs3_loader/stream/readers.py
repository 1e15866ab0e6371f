"""Readers return the sample of an id: from its position in a local tar, or by reading a remote tar sequentially."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import logging
import lzma
import os
import zlib
from collections import OrderedDict
from collections.abc import Generator, Iterable
from typing import IO, Any

from lrs3_loader.io.storage import store_at
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.shards import open_tar
from lrs3_loader.run.tar import (
    MAX_MEMBER_BYTES,
    DamagedError,
    ReplacedError,
    Sample,
    TarIndex,
    check_members,
    decode_sample,
    is_selected,
    split_name,
    tar_members,
)
from lrs3_loader.stream.catalog import Catalog
from lrs3_loader.stream.remote import open_remote
from lrs3_loader.stream.schedule import BatchIds
from lrs3_loader.stream.sources import Source

logger = logging.getLogger(__name__)

Members = dict[str, bytearray]  # of one sample, by extension

MAX_OPEN_TARS = 128  # per reader; a shuffle buffer seldom spans more shards
MAX_FETCHED_TARS = 4  # per reader; a run that is followed is read shard by shard
_PIECE_BYTES = 1 << 20


class TarReader:
    """Reads the samples of tars in any order, and keeps the ``most_open`` tars that were used last open.

    A tar on object storage is downloaded whole; every reader does so for itself.
    """

    def __init__(self, catalog: Catalog, fields: tuple[str, ...] | None, most_open: int = MAX_OPEN_TARS):
        self._catalog = catalog
        self._fields = fields
        self._most_open = most_open
        self._open: OrderedDict[int, TarIndex] = OrderedDict()
        self._broken: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files are not pickled

    def read(self, partition: int, sample_id: int) -> Sample:
        """Return a sample; raises ``DamagedError``, which names the tar, if that is not possible."""
        number, place = self._catalog.locate(sample_id)
        index = self._index(number)
        key = self._catalog.key(sample_id)
        if index.ledger is not None:  # the shard may have been replaced since it was listed
            if key not in index.ledger.places:
                raise ReplacedError(f"{index.path}: {key} is not there any more: the shard was replaced")
            place = index.ledger.places[key]
        elif place >= len(index.samples) or index.samples[place].key != key:
            raise DamagedError(f"{index.path}: sample {place} is not {key}: the tar is not the one that was listed")
        return index.read(place, self._fields)

    def _index(self, number: int) -> TarIndex:
        if number in self._broken:
            raise DamagedError(self._broken[number])
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        try:
            self._open[number] = self._open_present(self._catalog.sources[number])
        except DamagedError as error:
            self._broken[number] = str(error)
            raise
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)[1].close()
        return self._open[number]

    def _open_present(self, source: Source) -> TarIndex:
        problem = DamagedError(f"{source.url} cannot be opened")
        for url, ledger in source.versions():
            try:
                root, name = os.path.split(url)
                return open_tar(store_at(root), name, ledger)
            except DamagedError as error:
                problem = error
        raise problem

    def close(self) -> None:
        for index in self._open.values():
            index.close()
        self._open.clear()


class StreamReader:
    """Reads remote tars sequentially, with one connection per partition, and holds samples until their batch is read.

    All batches that will be read must be given; samples of no batch are skipped. A partition holds at most its block of
    the shuffle buffer, and what was carried over from the block before.
    """

    def __init__(self, catalog: Catalog, fields: tuple[str, ...] | None, batches: Iterable[BatchIds]):
        self._partitions: dict[int, _Partition] = {}
        wanted: dict[int, list[int]] = {}
        for partition, ids in batches:
            wanted.setdefault(partition, []).extend(ids.tolist())
        for partition, ordered in wanted.items():
            self._partitions[partition] = _Partition(catalog, fields, ordered)

    def read(self, partition: int, sample_id: int) -> Sample:
        """Return a sample; raises ``DamagedError``, which names the tar, if that is not possible."""
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
        """Yield every wanted sample: its undecoded members, or the error why it cannot be read."""
        for number, wanted in shards.items():
            source = self._catalog.sources[number]
            versions = source.versions()
            problem = DamagedError(f"{source.url} cannot be read")
            while wanted:
                try:
                    url, ledger = next(versions)
                    with contextlib.closing(tar_samples(url, self._fields)) as samples:
                        for key, data in samples:
                            if key in wanted:
                                yield wanted.pop(key), _checked(url, key, data, ledger)
                            if not wanted:
                                break
                    is_replaced = ledger is not None and not wanted.keys() <= ledger.places.keys()
                    kind = ReplacedError if is_replaced else DamagedError
                    problem = kind(f"{url}: samples that were listed are not in it")
                except StopIteration:
                    break
                except DamagedError as error:
                    problem = error
            for sample_id in wanted.values():
                yield sample_id, problem

    def close(self) -> None:
        self._arrivals.close()


def _checked(url: str, key: str, members: Members, ledger: Ledger | None) -> Members | DamagedError:
    try:
        if ledger is not None:
            check_members(url, key, members, ledger)
    except DamagedError as error:
        return error
    return members


#: Reads the samples of a catalog: ``read(partition, sample_id)`` and ``close()``.
Reader = TarReader | StreamReader


class _Head:
    """A stream of which the first bytes have been read."""

    def __init__(self, head: bytes, stream: IO[bytes]):
        self._head, self._stream = head, stream

    def read(self, size: int = -1) -> bytes:
        piece, self._head = self._head[:size], self._head[len(self._head[:size]) :]
        return piece or self._stream.read(size)


class _Forward:
    """Reads a stream, compressed or not, at ascending offsets."""

    def __init__(self, stream: IO[bytes]):
        head = stream.read(6)
        whole: Any = _Head(head, stream)
        for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
            if head.startswith(magic):
                whole = opened(whole, "rb")
        self._stream, self._position = whole, 0

    def read(self, offset: int, size: int) -> bytearray:
        """Return the bytes at an offset, fewer if the stream ends; memory grows only as they arrive."""
        while self._position < offset and self._take(offset - self._position):
            pass
        data = bytearray()
        while len(data) < size and (piece := self._take(size - len(data))):
            data += piece
        return data

    def _take(self, most: int) -> bytes:
        piece = self._stream.read(min(most, _PIECE_BYTES))
        self._position += len(piece)
        return piece


def tar_samples(url: str, fields: tuple[str, ...] | None) -> Generator[tuple[str, Members], None, None]:
    """Read a tar sequentially, compressed or not; yield the key and the undecoded members of each sample.

    Raises:
        DamagedError: the tar cannot be opened or read to its end.
    """
    try:
        stream = open_remote(url)
    except OSError as error:
        raise DamagedError(f"{url} cannot be opened: {error}") from error
    sample: tuple[str, Members] = "", {}
    try:
        tar = _Forward(stream)
        for member in tar_members(tar.read, None):
            key, extension = split_name(member)
            if key and key != sample[0]:
                if sample[1]:
                    yield sample
                sample = key, {}
            if key and is_selected(extension, fields):
                if member.size > MAX_MEMBER_BYTES:
                    raise DamagedError(f"a member of {member.size} bytes, {MAX_MEMBER_BYTES} are allowed")
                sample[1][extension] = tar.read(member.offset, member.size)
                if len(sample[1][extension]) < member.size:
                    raise DamagedError("cut off inside a member")
        if sample[1]:
            yield sample
        tar.read(0, _PIECE_BYTES)  # what follows the end mark, so that a command can end
        stream.close()  # raises if a command failed
    except (DamagedError, OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DamagedError(f"{url} is damaged: {error.args[0] if error.args else error!r}") from error
    finally:
        with contextlib.suppress(OSError):  # a command fails if it is not read to its end
            stream.close()
