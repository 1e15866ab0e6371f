"""Reads samples of WebDataset tars: ``TarIndex`` gives any sample of a local tar, ``decode_sample`` its arrays.

Opening a ``TarIndex`` reads only headers (512 bytes per member). With a ledger, the bytes of each member that is read
are compared with its checksum. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lrs3_loader.io.safe_load import check_types, decode_json, decode_npy
from lrs3_loader.run.ledger import REPAIR, Ledger
from lrs3_loader.types import MEDIA_FIELDS, check_field, field_of_member, field_spec, printable, rows_per_frame

MAX_HEADER_BYTES = 1 << 20  # of one long name or pax header; those of this package have under 1 kB
MAX_MEMBER_BYTES = 2 << 30  # two hours of a 1024-wide speech encoder are 1.5 GB
_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_EXTENSIONS = (b"x", b"X", b"g", b"L", b"K")  # headers of headers
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")

Sample = dict[str, Any]  # {"__key__": str, "json": dict, "<field>": ndarray, ...}


class DamagedError(Exception):
    """A tar or one of its samples is damaged or missing; the message names the tar and the damage."""

    remedy = REPAIR


class ReplacedError(DamagedError):
    """The tar was replaced by one without this sample."""

    remedy = "open the stream again"


@dataclass(frozen=True)
class SampleLocation:
    """The key of one sample of a tar, and the positions of its members in the file."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> (offset, size) in bytes


class TarIndex:
    """Random access to the samples of a local tar; a context manager that closes it.

    Args:
        path: the tar.
        ledger: its ledger, if it has one.

    Attributes:
        samples: the samples in the order of the tar.
        ignored: names of the members that belong to no sample: folders, links, sparse files, names without an
            extension.

    Raises:
        DamagedError: the file cannot be opened, is not a tar, is cut off, or holds other samples than its ledger names.
    """

    def __init__(self, path: Path, ledger: Ledger | None = None):
        self.path: Path | str = path
        self.ledger = ledger
        self.samples: list[SampleLocation] = []
        self.ignored: list[str] = []
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise DamagedError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            handle = self._file.fileno()
            for member in tar_members(lambda offset, size: os.pread(handle, size, offset), os.fstat(handle).st_size):
                key, extension = split_name(member)
                if not key:
                    self.ignored.append(member.name)
                    continue
                if not self.samples or self.samples[-1].key != key:
                    self.samples.append(SampleLocation(key))
                self.samples[-1].members[extension] = (member.offset, member.size)
            if ledger is not None and [sample.key for sample in self.samples] != list(ledger.places):
                raise DamagedError("holds other samples than its ledger names")
        except (DamagedError, OSError) as error:
            self._file.close()
            raise DamagedError(f"{path}: {error}") from error

    def __enter__(self) -> TarIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, index: int, fields: tuple[str, ...] | None) -> Sample:
        """Read sample number ``index``: its json and the arrays named in ``fields`` (None: all), as writable arrays.

        Raises:
            DamagedError: a member cannot be read or decoded, does not have its checksum, or a field is missing.
        """
        return decode_sample(str(self.path), self.samples[index].key, self.read_members(index, fields), fields)

    def read_members(self, index: int, fields: tuple[str, ...] | None = None) -> dict[str, bytearray]:
        """Read the bytes of the same members by their extensions, without decoding them.

        Raises:
            DamagedError: a member cannot be read, or does not have its checksum.
        """
        sample = self.samples[index]
        try:
            data = {name: self._bytes(*span) for name, span in sample.members.items() if is_selected(name, fields)}
        except OSError as error:
            raise DamagedError(f"{self.path}: {printable(sample.key)}: {error}") from error
        if self.ledger is not None:
            check_members(str(self.path), sample.key, data, self.ledger)
        return data

    def num_frames(self, index: int) -> int:
        """The number of 25 fps frames that a sample's json gives, or 0 if it gives none."""
        meta = self.read(index, ()).get("json")
        frames = meta.get("num_frames", 0) if isinstance(meta, dict) else 0
        return frames if isinstance(frames, int) else 0

    def _bytes(self, offset: int, size: int) -> bytearray:
        if size > MAX_MEMBER_BYTES:
            raise OSError(f"a member of {size} bytes, {MAX_MEMBER_BYTES} are allowed")
        data = bytearray(size)
        got = os.preadv(self._file.fileno(), [data], offset)
        if got != size:
            raise OSError(f"ends {size - got} bytes early")
        return data


def split_name(member: TarMember) -> tuple[str, str]:
    """Return the key of a member's sample and its extension, from the first dot of the last path component on.

    Both are empty for what belongs to no sample: folders, links, names without an extension.
    """
    folder, slash, last = member.name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not dot or not stem or member.kind != "file":
        return "", ""
    return folder + slash + stem, extension.lower()


def is_selected(extension: str, fields: tuple[str, ...] | None) -> bool:
    """Return whether a member is read: the json always, an array if ``fields`` names it (None: all)."""
    return fields is None or extension == "json" or field_of_member(extension) in fields


def checksum(data: bytes | bytearray) -> str:
    """Return the CRC-32 of the bytes of a member as 8 hexadecimal digits, as ledgers record it."""
    return f"{zlib.crc32(data):08x}"


def check_members(where: str, key: str, members: Mapping[str, bytearray], ledger: Ledger) -> None:
    """Compare members of a sample, given by extension, with their checksums.

    Raises:
        DamagedError: the bytes of a member, which is named with the tar ``where``, are not those that were written.
    """
    if key not in ledger.places:
        raise DamagedError(f"{where}: {printable(key)} is not in its ledger")
    for extension, digits in ledger.checksums_of(key).items():
        if extension in members and checksum(members[extension]) != digits:
            raise DamagedError(
                f"{where}: {printable(key)}.{extension} is damaged: its checksum is not the one in the ledger"
            )


def decode_sample(where: str, key: str, data: Mapping[str, Any], fields: tuple[str, ...] | None) -> Sample:
    """Decode the members of one sample, the json into a dict, and ``.npy`` files, audio and video into arrays.

    Args:
        where: path or URL of the tar, for messages.
        key: key of the sample.
        data: bytes of each member by its extension; members of other kinds are ignored. Arrays share this memory.
        fields: arrays that must be there; None: any.

    Raises:
        DamagedError: a member cannot be decoded, a field is missing, or one in ``fields`` has not the shape and type
            that ``types.FIELDS`` says.
    """
    sample: Sample = {"__key__": key}
    for extension, raw in data.items():
        try:
            if extension == "json":
                sample["json"] = decode_json(raw)
            elif (name := field_of_member(extension)) in MEDIA_FIELDS:
                sample[name] = decode_media(name, raw, sample.get("json") or decode_json(data.get("json", b"{}")))
            elif name is not None:
                sample[name] = decode_npy(raw)
        except ValueError as error:
            raise DamagedError(f"{where}: {printable(f'{key}.{extension}')} is damaged: {error}") from error
    missing = [name for name in fields or () if name not in sample]
    if missing:
        raise DamagedError(f"{where}: {printable(key)} has no {', '.join(missing)}")
    try:
        _check_shapes({name: sample[name] for name in fields or () if field_spec(name)})
    except ValueError as error:
        raise DamagedError(f"{where}: {printable(key)}: {error}") from error
    return sample


def decode_media(field: str, data: bytes | bytearray, meta: Any) -> np.ndarray:
    """Decode an encoded field of a sample: ``audio`` [640 T] f32, ``mouth`` [T, S, S] or ``face`` [T, S, S, 3] u8.

    Raises:
        ValueError: it is damaged, or of another kind than an extraction writes.
    """
    from lrs3_loader.io.media_codec import decode_flac, decode_video  # with FFmpeg, which other fields do not need

    if field != "audio":
        return decode_video(data, grey=field == "mouth")
    check_types(meta, {"audio_scale?": int}, "json")
    return decode_flac(data, meta.get("audio_scale", 1))


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    frames = {len(array) / rows for name, array in arrays.items() if array.ndim and (rows := rows_per_frame(name))}
    if len(frames) > 1:
        raise ValueError(f"no single length in frames, found {sorted(frames)}")
    for name, array in arrays.items():
        check_field(name, array, int(max(frames, default=0)), finite=False)


class TarMember(NamedTuple):
    """One member of a tar."""

    name: str
    offset: int  # of its data, in bytes
    size: int
    kind: Literal["file", "folder", "other"]  # other: links, devices, sparse files


def tar_members(read: Callable[[int, int], bytes | bytearray], length: int | None) -> Iterator[TarMember]:
    """Read the headers of an untrusted tar: ustar, GNU (long names, large sizes) and pax.

    Time is proportional to the number of headers, memory is bounded. (Python's ``tarfile`` needs quadratic time for a
    long pax header, and recurses over headers that follow one another.)

    Args:
        read: gives the bytes at (offset, size), fewer where the file ends; offsets ascend.
        length: of the file; None if not known.

    Raises:
        DamagedError: a header does not parse or is larger than ``MAX_HEADER_BYTES``, data is cut off, or the end mark
            is missing.
    """
    offset = 0
    for_all: dict[bytes, bytes] = {}  # pax records
    for_next: dict[bytes, bytes] = {}
    while True:
        block = read(offset, _BLOCK)
        if len(block) < _BLOCK:
            raise DamagedError("cut off: no end of the archive")
        if not block.strip(b"\0"):
            return
        if _number(block[148:156], offset) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise _bad_header(offset)
        kind, size = block[156:157], _number(block[124:136], offset)
        start = offset + _BLOCK
        if kind in _EXTENSIONS:
            if size > MAX_HEADER_BYTES:
                raise DamagedError(f"a header of {size} bytes at byte {offset}, {MAX_HEADER_BYTES} are allowed")
            data = bytes(read(start, size))
            if len(data) < size:
                raise DamagedError("cut off inside a header")
            if kind == b"L":
                for_next[b"path"] = data
            elif kind != b"K":  # the target of a link
                (for_all if kind == b"g" else for_next).update(_pax_records(data, offset))
            offset = start + -(-size // _BLOCK) * _BLOCK
            continue
        name, is_sparse = _text(block[:100]), kind == b"S"
        if block[345] and block[257:262] == b"ustar" and not is_sparse:
            name = f"{_text(block[345:500])}/{name}"
        if for_all or for_next:
            records = for_all | for_next
            for_next = {}
            name = _text(records[b"path"]) if b"path" in records else name
            size = _decimal(records[b"size"], offset) if b"size" in records else size
            is_sparse |= any(record.startswith(b"GNU.sparse.") for record in records)
        more = block[482] if kind == b"S" else 0  # blocks with the map of a sparse file
        while more:
            block = read(start, _BLOCK)
            if len(block) < _BLOCK:
                raise DamagedError("cut off inside a header")
            more, start = block[504], start + _BLOCK
        is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
        has_data = kind not in _WITHOUT_DATA and not is_folder
        if has_data and length is not None and start + size > length:
            raise DamagedError(f"cut off inside a member: {name!r:.200}")
        is_file = kind in _REGULAR and not is_folder and not is_sparse
        yield TarMember(name, start, size, "file" if is_file else "folder" if is_folder else "other")
        offset = start + (-(-size // _BLOCK) * _BLOCK if has_data else 0)


def _bad_header(offset: int) -> DamagedError:
    return DamagedError(f"bad header at byte {offset}")


def _number(field: bytes | bytearray, offset: int) -> int:
    """A number of a header: octal digits, or base 256 as GNU tar writes large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        number = int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise _bad_header(offset)
    return number


def _decimal(digits: bytes, offset: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _bad_header(offset)
    return int(digits)


def _pax_records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Parse ``length name=value\\n`` ..., where the length is that of the whole record."""
    records = {}
    start = 0
    while start < len(data) and data[start]:
        digits, space, _ = data[start : start + 21].partition(b" ")
        size = _decimal(digits, offset)
        record = data[start + len(digits) + 1 : start + size]
        name, equals, value = record[:-1].partition(b"=")
        if not space or not equals or record[-1:] != b"\n" or start + size > len(data):
            raise _bad_header(offset)
        records[name] = value
        start += size
    return records


def _text(raw: bytes | bytearray) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
