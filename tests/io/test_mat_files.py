"""The reader of MATLAB files against scipy's, and on damaged files, over some of which scipy's crashes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from lrs3_loader.io.mat_files import read_mat

ARRAYS = {
    **{
        kind: np.arange(6).reshape(2, 3).astype(kind)
        for kind in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
    },
    "a_name_of_sixty_three_letters_the_longest_that_MATLAB_may_give_": np.ones((1, 1)),
    "empty": np.zeros((0, 3)),
    "deep": np.arange(24.0).reshape(2, 3, 4),
    "large": np.arange(3000.0).reshape(30, 100),
}
OTHERS = {"text": "letters", "cell": np.array([1, "a"], dtype=object), "struct": {"a": 1}, "complex": np.array([1j])}


def write(path: Path, compress: bool = False) -> Path:
    savemat(path, {**OTHERS, **ARRAYS}, do_compression=compress)
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_are_read_as_scipy_does(tmp_path: Path, compress: bool) -> None:
    path = write(tmp_path / "a.mat", compress)
    found, expected = read_mat(path, [*ARRAYS, "gone"]), loadmat(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype
    assert read_mat(path, ()) == {}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no array of real numbers"):
        read_mat(write(tmp_path / "a.mat"), (name,))


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    flags, name = struct.pack(">IIII", 6, 8, 6, 0), struct.pack(">HH4s", 1, 1, b"a\0\0\0")
    dimensions = struct.pack(">IIii", 5, 8, 1, 2)
    numbers = struct.pack(">IIdd", 9, 16, 1.5, -2.0)
    matrix = flags + dimensions + name + numbers
    (tmp_path / "a.mat").write_bytes(bytes(124) + b"\1\0MI" + struct.pack(">II", 14, len(matrix)) + matrix)
    assert read_mat(tmp_path / "a.mat", ("a",))["a"].tolist() == [[1.5, -2.0]]


def array(shape: tuple[int, ...] = (1, 2), kind: int = 9, size: int = 16, dims: int | None = None) -> bytes:
    matrix = struct.pack("<IIII", 6, 8, 6, 0) + struct.pack("<II", 5, 4 * len(shape) if dims is None else dims)
    matrix += struct.pack(f"<{len(shape)}i", *shape) + bytes(-4 * len(shape) % 8)
    matrix += struct.pack("<HH4s", 1, 1, b"a\0\0\0") + struct.pack("<II", kind, size) + bytes(16)
    return struct.pack("<II", 14, len(matrix)) + matrix


def packed(matrix: bytes) -> bytes:
    data = zlib.compress(matrix)
    return struct.pack("<II", 15, len(data)) + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array(size=8), "a of 1 x 2 float64 has 8 bytes"),
        (array(size=1 << 31), "ends inside an element of 2147483648 bytes"),
        (array(shape=(1 << 30, 1 << 30)), "a of 1073741824 x 1073741824 float64 has 16 bytes"),
        (array(shape=(-1, -2)), "a of -1 x -2"),
        (array(shape=(2,)), "without flags, dimensions or a name"),
        (array(shape=(1,) * 9), "without flags, dimensions or a name"),
        (array(dims=1 << 30), "ends inside an element"),
        (array(kind=99), "a holds no numbers"),
        (array(kind=15), "a holds no numbers"),
        (struct.pack("<II", 14, 1 << 31), "ends inside an element"),
        (struct.pack("<II", 14, 0), "without flags"),
        (packed(array(size=8)), "a of 1 x 2 float64 has 8 bytes"),
        (packed(struct.pack("<II", 14, (1 << 32) - 1) + array()[8:]), "it unpacks to over"),
        (packed(b""), "an empty element"),
        (struct.pack("<II", 15, 4) + b"text", "its compressed data are damaged"),
    ],
)
def test_damaged_elements_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(bytes(124) + b"\0\1IM" + array())
    assert read_mat(path, ("a",))["a"].tolist() == [[0.0, 0.0]]
    path.write_bytes(bytes(124) + b"\0\1IM" + data)
    with pytest.raises(ValueError, match=message):
        read_mat(path, ("a",))


@pytest.mark.parametrize("data", [b"", b"MATLAB 5.0", b"<html>" * 100, bytes(1000)])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError, match="does not begin as a MATLAB file"):
        read_mat(tmp_path / "a.mat", ("a",))


@pytest.mark.parametrize("data", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(500), b"\x89HDF\r\n\x1a\n"])
def test_newer_files_are_told_how_to_be_saved(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError, match=r"format 7\.3; save it again with -v7"):
        read_mat(tmp_path / "a.mat", ("a",))
