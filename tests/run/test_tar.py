"""The tar headers that are read: against ``tarfile``, in every format, and hostile ones within bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from lrs3_loader.run import tar as tar_module
from lrs3_loader.run.tar import MAX_HEADER_BYTES, DamagedError, TarIndex, tar_members
from lrs3_loader.stream.readers import tar_samples

pytestmark = pytest.mark.smoke

NAMES = ["a/b/c.f0.npy", "ä/" + "long" * 20 + "/ü.json", "x" * 300 + ".npy", "no extension", "folder/", "d.e/link"]
KINDS = {"folder/": tarfile.DIRTYPE, "d.e/link": tarfile.SYMTYPE}


def make_tar(format: int, names: list[str] = NAMES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, pax_headers={"comment": "for all"}) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.type, info.mtime = KINDS.get(name, tarfile.REGTYPE), 1.5  # type: ignore[assignment]
            info.size = 0 if name in KINDS else 700 * number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return buffer.getvalue()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(format: int) -> None:
    names = [name for name in NAMES if format != tarfile.USTAR_FORMAT or len(name) < 100]
    data = make_tar(format, names)
    found = list(tar_members(lambda offset, size: data[offset : offset + size], len(data)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = list(tar)
    assert [(member.name.rstrip("/"), member.size) for member in found] == [(info.name, info.size) for info in expected]
    assert [member.offset for member in found] == [info.offset_data for info in expected]
    assert [member.kind == "file" for member in found] == [info.isreg() for info in expected]


def test_sparse_files_are_passed_over(tmp_path: Path) -> None:
    with open(tmp_path / "hole.npy", "wb") as file:
        for place in range(0, 1 << 22, 1 << 16):  # more pieces than fit into one header
            file.seek(place)
            file.write(b"x")
    (tmp_path / "a.npy").write_bytes(b"123")
    for format in ("gnu", "posix"):
        command = ["tar", "--format", format, "-cSf", f"{format}.tar", "hole.npy", "a.npy"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with TarIndex(tmp_path / f"{format}.tar") as index:
            assert [sample.key for sample in index.samples] == ["a"]
            assert len(index.ignored) == 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_streams_give_the_same_compressed_or_not(pack, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack(make_tar(tarfile.PAX_FORMAT)))
    found = {
        key: {name: bytes(data) for name, data in members.items()}
        for key, members in tar_samples(f"file://{path}", None)
    }
    assert found == {"a/b/c": {"f0.npy": b""}, NAMES[1][:-5]: {"json": b"\1" * 700}, "x" * 300: {"npy": b"\2" * 1400}}
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedError, match=r"a\.tar\.gz is damaged"):
        list(tar_samples(f"file://{path}", None))


def header(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("a.npy")
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(b"x", b"1" * 60_000), "bad header at byte 0"),
        (header(b"x", b"", MAX_HEADER_BYTES + 1), r"a header of 1048577 bytes at byte 0, 1048576 are allowed"),
        (header(b"L", b"", 8_000_000_000), "are allowed"),
        (header(b"x", b"11 size=-1\n") + header(b"0", b""), "bad header"),
        (header(b"x", b"99 size=1\n"), "bad header"),
        (header(b"x", b"0 \n"), "bad header"),
        (header(b"x", b"25 size=99999999999999999\n") + header(b"0", b""), "bad header|cut off"),
        (header(b"0", b"", 8_000_000_000), "cut off inside a member: 'a.npy'"),
    ],
    ids=["digits", "large", "long name", "negative", "past the end", "zero", "size", "member"],
)
def test_hostile_headers(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data + bytes(1024))
    begun = time.monotonic()
    with pytest.raises(DamagedError, match=message):
        TarIndex(path)
    with pytest.raises(DamagedError, match="is damaged"):
        list(tar_samples(f"file://{path}", None))
    assert time.monotonic() - begun < 5


def test_headers_upon_headers_are_read(tmp_path: Path) -> None:
    """Python's tarfile recurses over them."""
    path = tmp_path / "a.tar"
    path.write_bytes(header(b"x", b"14 path=b.npy\n") * 5000 + header(b"0", b"123") + bytes(1024))
    with TarIndex(path) as index:
        assert [sample.key for sample in index.samples] == ["b"]


def test_a_member_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.stream.readers.MAX_MEMBER_BYTES", 1000)
    monkeypatch.setattr(tar_module, "MAX_MEMBER_BYTES", 1000)
    path = tmp_path / "a.tar"
    path.write_bytes(header(b"0", bytes(2000)) + bytes(1024))
    with pytest.raises(DamagedError, match="a member of 2000 bytes, 1000 are allowed"):
        list(tar_samples(f"file://{path}", None))
    with TarIndex(path) as index, pytest.raises(DamagedError, match="a member of 2000 bytes"):
        index.read(0, None)
