"""Zip archives and arrays of whatever contents: checked before they are unpacked."""

from __future__ import annotations

import io
import os
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.assets.locate import Assets, Catalogue
from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import decode_npy, read_npz
from lrs3_loader.io.zip_files import read_zip

MEMBERS = {"a": bytes(1000), "b": b"text" * 100, "c/d": b""}


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def overlapping(path: Path, names: list[str], num_bytes: int) -> Path:
    """One deflated file under many names: small, and ``num_bytes`` for each of them when it is unpacked."""
    whole = write(path, {"0": bytes(num_bytes)}).read_bytes()
    start = whole.index(b"PK\x01\x02")
    entry = bytearray(whole[start : start + 46])
    directory = b""
    for name in names:
        entry[28:30] = struct.pack("<H", len(name))
        directory += entry + name.encode()
    count = len(names)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(whole[:start] + directory + end)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sound_archives_are_read(tmp_path: Path, compression: int) -> None:
    path = write(tmp_path / "a.zip", MEMBERS, compression)
    assert read_zip(path) == MEMBERS
    assert list(read_zip(path, ("c/d", "a"))) == ["c/d", "a"]
    with pytest.raises(ValueError, match="no item named 'e' in the archive"):
        read_zip(path, ("a", "e"))
    with pytest.raises(OSError, match="No such file"):
        read_zip(tmp_path / "none.zip")


def test_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "face_landmarker.task")
    for path in (tmp_path, tmp_path / "face_landmarker.task"):
        with pytest.raises(ValueError, match="no regular file"):
            read_zip(path)
    with pytest.raises(RunError, match=r"face_landmarker\.task is damaged .*no regular file"):
        Assets(tmp_path).landmarker()
    assert Assets(tmp_path).canonical_task() is None


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", MEMBERS)
    assert read_zip(path, max_bytes=1400) == MEMBERS
    with pytest.raises(ValueError, match="it would unpack to 1400 bytes, over the limit of 1399"):
        read_zip(path, max_bytes=1399)


def test_files_that_overlap_are_refused(tmp_path: Path) -> None:
    path = overlapping(tmp_path / "a.zip", ["0", "1"], 100)
    with pytest.raises(ValueError, match="1 overlaps another file in the archive"):
        read_zip(path)


def test_a_landmarker_of_overlapping_files_ends_at_once(tmp_path: Path) -> None:
    """It took over a minute: each of its files was unpacked for its check sum."""
    names = [*Catalogue().task_members, *map(str, range(1000))]
    overlapping(tmp_path / "face_landmarker.task", names, 64 << 20)
    started = time.process_time()
    with pytest.raises(RunError, match=r"face_landmarker\.task is damaged .* overlaps another file.*delete it"):
        Assets(tmp_path).landmarker()
    assert time.process_time() - started < 5


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, compression: int) -> None:
    with pytest.raises(ValueError, match="a is compressed in a way that is not supported"):
        read_zip(write(tmp_path / "a.zip", MEMBERS, compression))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ARRAYS = {
    **{kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("<f4", ">f8", "<i2", ">u8", "|i1", "<f2", "<c8")},
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bool": np.array([True, False]),
    "texts": np.array(["a", "łódź", ""]),
    "bytes": np.array([b"a", b"bc"]),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3)),
    "many axes": np.zeros((1,) * 32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_decoded_as_numpy_does(name: str) -> None:
    found, expected = decode_npy(npy(ARRAYS[name])), np.load(io.BytesIO(npy(ARRAYS[name])))
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype, found.flags.f_contiguous) == (expected.dtype, expected.flags.f_contiguous)


def test_headers_of_other_versions_are_read() -> None:
    for version in ((1, 0), (2, 0), (3, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.arange(3), version=version)
        assert decode_npy(stream.getvalue()).tolist() == [0, 1, 2]
    old = npy(np.arange(3, dtype="<i4")).replace(b"(3,), }  ", b"(3L,), } ")  # Python 2
    assert decode_npy(old).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999999), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<V8', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '|S0', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<U99999999999', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f4', 'fortran_order': 1, 'shape': (1,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1" * 5000 + b"), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 40 + b"), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': __import__('os')}",
    ],
)
def test_headers_that_are_not_plain_are_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="not a sound"):
        decode_npy(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))


def test_an_archive_of_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{name.strip("<>|"): array for name, array in ARRAYS.items()})
    assert read_npz(tmp_path / "a.npz", 1 << 20)["scalar"] == 2.5
    with pytest.raises(ValueError, match="over the limit of 100"):
        read_npz(tmp_path / "a.npz", 100)
    np.savez(tmp_path / "b.npz", objects=np.array({"a": 1}))
    with pytest.raises(ValueError, match="does not hold plain numbers"):
        read_npz(tmp_path / "b.npz", 1 << 20)
