from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.interop.bundle import archive
from lrs3_loader.interop.bundle.bundle import pack_archive, unpack_archive
from lrs3_loader.interop.bundle.part_names import order_parts
from lrs3_loader.interop.bundle.parts import PartsReader, parse_size
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.manifest import plan_sha256
from support.factory import make_features, make_shard

pytestmark = pytest.mark.smoke

FILES = {"train.data": bytes(range(256)) * 200, "val.data": b"v" * 30_000, "stats/sizes.npy": b"", "ü.npy": b"123"}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_files(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "lrs3")


@pytest.fixture
def parts(source: Path, tmp_path: Path) -> list[Path]:
    pack_archive(source, tmp_path / "parts", 20_000)
    return sorted((tmp_path / "parts").glob("*.part_*"))


# Our own parts.


def test_a_run_comes_back_whole(tmp_path: Path) -> None:
    shard = make_shard()
    record = {"config": {}, "plan_sha256": plan_sha256([shard]), "models": {}, "device_type": "cpu"}
    run = RunFolder.create(tmp_path / "run", record, (shard,))
    run.publish(shard, map(make_features, shard.clips), {}, {})
    (run.path / "tmp" / "shard in flight").write_bytes(b"x")
    (run.path / ".stats.json.abc.tmp").write_bytes(b"x")
    manifest = pack_archive(run.path, tmp_path / "parts", 10_000)
    report = unpack_archive([manifest], tmp_path / "there")
    back = RunFolder.open(tmp_path / "there")
    assert [problems for _, problems in back.check()] == [[]]
    assert report.num_written == len(contents(tmp_path / "there")) == 4


def test_parts_have_the_size_asked_for_and_depend_on_the_files_alone(
    source: Path, parts: list[Path], tmp_path: Path
) -> None:
    assert [part.name for part in parts] == [f"lrs3.tar.part_{number:04d}" for number in range(len(parts))]
    assert {part.stat().st_size for part in parts[:-1]} == {20_000}
    for path in source.rglob("*"):
        os.utime(path, (0, 0))
    pack_archive(source, tmp_path / "again", 20_000)
    assert contents(tmp_path / "again") == contents(tmp_path / "parts")


def test_parts_can_be_joined_by_hand(parts: list[Path], tmp_path: Path) -> None:
    joined = b"".join(part.read_bytes() for part in parts)
    subprocess.run(["tar", "x", "-C", tmp_path / "parts"], input=joined, check=True)
    assert contents(tmp_path / "parts" / "lrs3") == FILES


def test_unpacking_needs_no_order_and_no_manifest(parts: list[Path], tmp_path: Path) -> None:
    random.Random(0).shuffle(parts)
    assert contents(unpack_archive(parts, tmp_path / "a").out) == FILES
    next((tmp_path / "parts").glob("*.manifest.json")).unlink()
    assert contents(unpack_archive(parts, tmp_path / "b").out) == FILES


def test_every_part_is_checked_before_anything_is_written(parts: list[Path], tmp_path: Path) -> None:
    data = bytearray(parts[-1].read_bytes())
    data[0] ^= 1
    parts[-1].write_bytes(data)
    with pytest.raises(RunError, match=rf"{parts[-1].name} is damaged"):
        unpack_archive(parts, tmp_path / "out")
    os.truncate(parts[2], 100)
    with pytest.raises(RunError, match=r"part_0002 has 100 bytes, its manifest says 20000"):
        unpack_archive(parts, tmp_path / "out")
    with pytest.raises(RunError, match=rf"missing of {len(parts)} parts: lrs3\.tar\.part_0001"):
        unpack_archive(parts[:1] + parts[2:], tmp_path / "out")
    parts[1].unlink()
    with pytest.raises(RunError, match=r"part_0001 is missing"):
        unpack_archive(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_unpacking_goes_on(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_tar_blocks", stop_at("train.data"))
        with pytest.raises(KeyboardInterrupt):
            unpack_archive(parts, out)
    assert sorted(contents(out)) == ["stats/sizes.npy"]
    whole = (out / "stats/sizes.npy").stat()
    write_files(out, {"val.data": b"w" * 30_000, "ü.npy": b"12"})  # of the right size with other contents; cut off
    report = unpack_archive(parts, out)
    assert (report.num_written, report.num_there) == (3, 1)
    assert (out / "stats/sizes.npy").stat().st_mtime_ns == whole.st_mtime_ns
    assert contents(out) == FILES
    assert unpack_archive(parts, out).num_written == 0


def stop_at(name: str):  # type: ignore[no-untyped-def]
    """The contents of members, interrupted in the middle of one."""
    original = archive._tar_blocks

    def blocks(reader, member):  # type: ignore[no-untyped-def]
        for block in original(reader, member):
            if member.name.endswith(name):
                yield block[:100]
                raise KeyboardInterrupt
            yield block

    return blocks


def test_packing_refuses_what_it_cannot_bring_back(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="inside"):
        pack_archive(source, source / "parts", 20_000)
    pack_archive(source, tmp_path / "parts", 20_000)
    with pytest.raises(RunError, match="already there"):
        pack_archive(source, tmp_path / "parts", 20_000)
    with pytest.raises(ValueError, match="part_size"):
        pack_archive(source, tmp_path / "parts", 10)
    (source / "link").symlink_to("/")
    with pytest.raises(RunError, match="link is a link"):
        pack_archive(source, tmp_path / "more", 20_000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no files"):
        pack_archive(tmp_path / "empty", tmp_path / "more", 20_000)


def test_a_failed_packing_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file that shrinks after its size was taken.
    monkeypatch.setattr("lrs3_loader.interop.bundle.bundle.os.fstat", lambda handle: os.stat(source / "train.data"))
    with pytest.raises(RunError, match="cannot pack"):
        pack_archive(source, tmp_path / "parts", 20_000)
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("500MB", 500_000_000), ("64 kB", 64_000), ("4096", 4096), ("1TiB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2G", "-1", "0", "0GiB", "1.5GiB", "GiB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="a size reads"):
        parse_size(text)


# Other people's parts.

SCHEMES = {
    "split": lambda n: f"lrs3_0722.zip.part_{chr(97 + n // 26)}{chr(97 + n % 26)}",
    "underscore": lambda n: f"lrs3.zip_part_a{chr(97 + n)}",
    "digits": lambda n: f"lrs3.zip.part_{n:02d}",
    "from one": lambda n: f"lrs3.zip.{n + 1:03d}",
    "unpadded": lambda n: f"lrs3.zip.part{n + 1}",
    "dashed": lambda n: f"lrs3.zip.part-{n}",
    "bare": lambda n: f"lrs3.zip.a{chr(97 + n)}",
}


def make_zip(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def cut(data: bytes, folder: Path, scheme: str = "from one", num_parts: int = 12) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(data) // num_parts)
    paths = [folder / SCHEMES[scheme](number) for number in range(num_parts)]
    for number, path in enumerate(paths):
        path.write_bytes(data[number * size : (number + 1) * size])
    return paths


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("top", ["", "lrs3/", "data/binary/lrs3/"])
def test_zip_parts_found_in_the_wild(scheme: str, top: str, tmp_path: Path) -> None:
    data = make_zip({f"{top}{name}": contents for name, contents in FILES.items()} | {f"{top}stats/": b""})
    paths = cut(data, tmp_path / "parts", scheme)
    random.Random(1).shuffle(paths)
    report = unpack_archive(paths, tmp_path / "data/binary/lrs3")
    assert contents(tmp_path / "data/binary/lrs3") == FILES
    assert report.num_written == len(FILES)
    assert unpack_archive(paths, tmp_path / "data/binary/lrs3").num_there == len(FILES)


def test_a_whole_archive_is_one_part(tmp_path: Path) -> None:
    (tmp_path / "lrs3.zip").write_bytes(make_zip(FILES))
    unpack_archive([tmp_path / "lrs3.zip"], tmp_path / "out")
    assert contents(tmp_path / "out") == FILES


def test_missing_and_short_parts_are_named(tmp_path: Path) -> None:
    paths = cut(make_zip(FILES, zipfile.ZIP_STORED), tmp_path)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"1 part missing between lrs3\.zip\.004 and lrs3\.zip\.006"):
        unpack_archive(paths[:4] + paths[5:], out)
    with pytest.raises(RunError, match=r"3 parts missing between lrs3\.zip\.002 and lrs3\.zip\.006"):
        unpack_archive(paths[:2] + paths[5:], out)
    with pytest.raises(RunError, match=r"first parts are missing: the lowest given is lrs3\.zip\.003"):
        unpack_archive(paths[2:], out)
    with pytest.raises(RunError, match="last part is missing or short"):
        unpack_archive(paths[:-1], out)
    with pytest.raises(RunError, match="the first part is missing"):
        unpack_archive(cut(make_zip(FILES, zipfile.ZIP_STORED)[5000:], tmp_path / "headless"), out)
    (tmp_path / "copy").mkdir()
    with pytest.raises(RunError, match="one part twice"):
        unpack_archive([*paths, Path(shutil.copy(paths[3], tmp_path / "copy"))], out)
    size = paths[6].stat().st_size
    os.truncate(paths[6], size - 1)
    with pytest.raises(RunError, match=rf"lrs3\.zip\.007 is short: {size - 1} bytes, others have {size}"):
        unpack_archive(paths, out)
    os.truncate(paths[-1], 0)
    os.truncate(paths[6], size)
    with pytest.raises(RunError, match=r"lrs3\.zip\.012 is empty"):
        unpack_archive(paths, out)
    assert not out.exists()


def test_a_tar_cut_off_is_noticed(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "parts" / "lrs3.tar.manifest.json").unlink()
    with pytest.raises(RunError, match="last part is missing or short"):
        unpack_archive(parts[:3], tmp_path / "out")
    whole = b"".join(part.read_bytes() for part in parts).rstrip(b"\0")
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(RunError, match="last part is missing or short"):
        unpack_archive([tmp_path / "x.tar"], tmp_path / "out")


def test_a_damaged_member_is_not_written(tmp_path: Path) -> None:
    data = make_zip(FILES, zipfile.ZIP_STORED).replace(b"vvvv", b"vvwv", 1)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(RunError, match=r"val\.data in x\.zip is damaged"):
        unpack_archive([tmp_path / "x.zip"], tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["train.data"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a.zip.001", "b.zip.002"], "different archives"),
        (["a.zip.001", "a.zip.part_002"], "different archives"),
        (["a.zip.001", "notes.txt"], r"notes\.txt is not named like a part"),
        (["a.zip.001", "a.zip.ab"], "different ways"),
        (["a.tar.gz"], "unpack that layer first"),
        (["a.zip.part_aa", "a.zip.part_zzz"], "not known"),
        ([], "no parts"),
    ],
)
def test_names_that_tell_no_order(names: list[str], text: str) -> None:
    with pytest.raises(RunError, match=text):
        order_parts([Path(name) for name in names])


@pytest.mark.parametrize(("options", "num_parts"), [([], 680), (["-d"], 95), (["-a", "3"], 30)])
def test_the_order_is_that_of_split(options: list[str], num_parts: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * 3
    command = ["split", *options, "-b", "1", "-", str(tmp_path / "x.zip.part_")]
    subprocess.run(command, input=data[:num_parts], check=True)
    paths = list(tmp_path.iterdir())
    random.Random(2).shuffle(paths)
    assert b"".join(path.read_bytes() for path in order_parts(paths)) == data[:num_parts]


def test_parts_read_as_one_file(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(5000)
    paths = cut(data, tmp_path, num_parts=17)
    rng = random.Random(4)
    with PartsReader(paths) as reader:
        assert reader.num_bytes == len(data) == reader.seek(0, io.SEEK_END)
        assert reader.read(10) == b""
        for _ in range(500):
            start, size = rng.randrange(5100), rng.randrange(900)
            reader.seek(start)
            assert reader.read(size) == data[start : start + size]
            assert reader.tell() == max(start, min(start + size, len(data)))
        reader.seek(4000)
        assert reader.read() == data[4000:]


# What is refused.


def refused(path: Path, text: str) -> None:
    out = path.parent / "out" / "deep"
    with pytest.raises(RunError, match=text):
        unpack_archive([path], out)
    assert not out.exists()
    assert {found.name for found in path.parent.iterdir()} == {path.name}


BAD_PATHS = [
    "ü" * 130,
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "a//b",
    "..",
    "a\\..\\b",
    "a\nb",
    "x/" * 40 + "y",
    "n" * 1100,
]


@pytest.mark.parametrize("name", BAD_PATHS)
def test_paths_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip({"a": b"1", name: b"2"}))
    refused(tmp_path / "x.zip", "refused: the path")
    (tmp_path / "x.zip").unlink()
    write_tar(tmp_path / "x.tar", tarfile.TarInfo(name))
    refused(tmp_path / "x.tar", "refused: the path")


def write_tar(path: Path, *infos: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_a_tar(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    write_tar(tmp_path / "x.tar", tarfile.TarInfo("a"), info)
    refused(tmp_path / "x.tar", "'link' in x.tar is a link, a device")


def test_links_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    refused(tmp_path / "x.zip", "'link' in x.zip is a link or a device")


def test_absurd_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip({"bomb": bytes(3_000_000)}))
    unpack_archive([tmp_path / "x.zip"], tmp_path / "small enough")
    shutil.rmtree(tmp_path / "small enough")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_MIN_ALLOWED", 1_000_000)
        refused(tmp_path / "x.zip", "would unpack to 3000000")
    usage = namedtuple("usage", "total used free")(0, 0, 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match="3000000 bytes to unpack, 1000000 free"):
        unpack_archive([tmp_path / "x.zip"], tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_sparse_files_and_headers_that_lead_backwards(tmp_path: Path) -> None:
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["tar", "cSf", "x.tar", "hole"], cwd=tmp_path, check=True)
    (tmp_path / "hole").unlink()
    refused(tmp_path / "x.tar", "sparse")
    info = tarfile.TarInfo("a")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # size -1024, as GNU tar spells it
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) * 3 + bytes(1024))
    refused(tmp_path / "x.tar", "backwards|damaged")


def test_a_name_twice_or_both_file_and_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", tarfile.TarInfo("a"), tarfile.TarInfo("a"))
    refused(tmp_path / "x.tar", "one file twice")
    write_tar(tmp_path / "x.tar", tarfile.TarInfo("a"), tarfile.TarInfo("a/b"))
    refused(tmp_path / "x.tar", "both a file and a folder")
    write_tar(tmp_path / "x.tar")
    refused(tmp_path / "x.tar", "not begin|holds no files")


def test_overlapping_and_encrypted_members(tmp_path: Path) -> None:
    data = bytearray(make_zip({"a": bytes(1000), "b": b"2"}, zipfile.ZIP_STORED))
    start = data.index(b"PK\x01\x02")
    encrypted = data.copy()
    encrypted[start + 8] |= 1
    (tmp_path / "x.zip").write_bytes(encrypted)
    refused(tmp_path / "x.zip", "encrypted")
    data[start + 20 : start + 24] = (5000).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(data)
    refused(tmp_path / "x.zip", "overlap|damaged")


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_ends_with_one_clear_error_or_not_at_all(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    if seed % 2:
        data = bytearray(make_zip(FILES))
    else:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, contents_ in FILES.items():
                info = tarfile.TarInfo(name)
                info.size = len(contents_)
                tar.addfile(info, io.BytesIO(contents_))
        data = bytearray(buffer.getvalue())
    for _ in range(rng.choice([1, 5, 50])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    (tmp_path / "x.zip").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    try:
        unpack_archive([tmp_path / "x.zip"], tmp_path / "in" / "out")
    except RunError:
        assert not list(tmp_path.rglob("*.tmp"))
    assert {path.name for path in tmp_path.iterdir()} <= {"x.zip", "in"}
    assert not (tmp_path / "in").exists() or {path.name for path in (tmp_path / "in").iterdir()} == {"out"}


def test_links_already_there_do_not_lead_out(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "stats").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out of"):
        unpack_archive(parts, tmp_path / "out")


def test_damaged_manifests(parts: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "parts" / "lrs3.tar.manifest.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"top": "other"}))
    with pytest.raises(RunError, match="not the archive that its manifest describes"):
        unpack_archive(parts, tmp_path / "out")
    for text in ("", "[]", '{"format": "other"}', json.dumps(plain | {"parts": [1]})):
        path.write_text(text)
        with pytest.raises(RunError, match="not a manifest of parts"):
            unpack_archive(parts, tmp_path / "out")
