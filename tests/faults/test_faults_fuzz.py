"""Readers of files from strangers, fed with damage: each ends soon, in a value or in its own typed error.

Examples are the same in every run (``LRS3_LOADER_FAULTS=1``: four times as many). What was found stands as a case of
its own beside each.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrs3_loader.corpus.transcript import MAX_BYTES, read_transcript
from lrs3_loader.decode.mp4 import check_mp4
from lrs3_loader.errors import BadTranscriptError, RunError, UnreadableError
from lrs3_loader.face.landmarks.tflite import TFLiteModule
from lrs3_loader.interop.geneface.indexed import INDEX_BYTES, IndexedReader
from lrs3_loader.io.safe_load import decode_npy
from lrs3_loader.io.unpickle import UnpickleError, loads
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import Ledger, ledger_name
from lrs3_loader.run.shards import read_shard
from lrs3_loader.run.tar import DamagedError, TarIndex
from support.fault_tools import damaged, small_fuzz
from support.geneface_sets import stranger, write_old_set, write_set
from support.media_files import noise, write_media
from support.run_factory import make_run
from support.tflite_writer import runs_or_is_refused, small_network

pytestmark = pytest.mark.faults

MAX_MEBIBYTES = 128


@contextmanager
def bounded(seconds: float = 30.0) -> Iterator[None]:
    """What runs within takes little time and memory."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.monotonic() - begun < seconds
    assert peak < MAX_MEBIBYTES << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("run"), [[2, 0, 1]])


# Transcripts ----------------------------------------------------------------------------------------------------------

TRANSCRIPT = b"""Text:  THE QUICK BROWN FOX
Conf:  5
Ref:   MayAddr0001

FRAME \tX \tY \tW \tH
001000 \t0.312 \t0.105 \t0.251 \t0.446
001001 \t0.312 \t0.105 \t0.251 \t0.446

WORD START END ASDSCORE
THE 0.00 0.68 4.2
QUICK 0.68 0.9 1.1
"""
TOKENS = st.sampled_from(
    [b"Text:", b"Conf:", b"Ref:", b"FRAME X Y W H", b"WORD START END ASDSCORE", b"\n", b"\r", b"\n\n", b" ", b"1",
     b"-0", b"1e999", b"nan", b"0x1p3", b"1_000", b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\0", b"\xd9\xa3", b":"]
)  # fmt: skip


@small_fuzz
@given(damaged(TRANSCRIPT) | st.lists(TOKENS, max_size=30).map(b" ".join) | st.binary(max_size=200))
@example("Text: x\nConf: \u00b2".encode())
def test_transcripts(folder: Path, data: bytes) -> None:
    path = folder / "a.txt"
    path.write_bytes(data)
    try:
        transcript = read_transcript(path)
    except BadTranscriptError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(transcript.boxes).all()
        assert all(np.isfinite(word[1:]).all() for word in transcript.words)


@pytest.mark.parametrize(
    ("piece", "times", "message"),
    [
        (b"Text: x\n", 100_000_000 // 8, "larger than"),
        (bytes(1 << 20), 100, "larger than"),
        (b"\xff", 1000, "not UTF-8"),
        (b"Text: x\n\nWORD START END ASDSCORE\n" + b"a 0 1 2\n" * (MAX_BYTES // 8 - 9), 1, "words, not the transcript"),
    ],
    ids=["100 MB of text", "100 MB of zeros", "invalid UTF-8", "a million words"],
)
def test_huge_and_foreign_transcripts(tmp_path: Path, piece: bytes, times: int, message: str) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        for _ in range(times // 1000):
            file.write(piece * 1000)
        file.write(piece * (times % 1000))
    with bounded(), pytest.raises(BadTranscriptError, match=message):
        read_transcript(path)


# Tars and ledgers -----------------------------------------------------------------------------------------------------


def read_both_ways(path: Path) -> int:
    """How many of the two readers take it."""
    num_read = 0
    try:
        num_read += bool(list(read_shard(path)))
    except RunError as error:
        assert path.name in str(error)
    try:
        index = TarIndex(path)
        try:
            num_read += bool([index.read(number, None) for number in range(len(index.samples))])
        finally:
            index.close()
    except DamagedError as error:
        assert path.name in str(error)
    return num_read


def make_tar(members: dict[str, bytes], **header: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=header.pop("format", tarfile.USTAR_FORMAT)) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in header.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


SMALL_TAR = make_tar({"a/b/c.json": b'{"num_frames": 1}', "a/b/c.f0.npy": npy(np.float32([1, 2]))})


@small_fuzz
@given(damaged(SMALL_TAR, (0, 3 * 512)))
def test_tars(folder: Path, data: bytes) -> None:
    path = folder / "a.tar"
    path.write_bytes(data)
    read_both_ways(path)


def fake_npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@small_fuzz
@given(st.sampled_from([b"\x01\x00", b"\x02\x00"]), damaged(HEADER), st.binary(max_size=16))
def test_arrays(version: bytes, header: bytes, data: bytes) -> None:
    try:
        array = decode_npy(fake_npy(header, data, version))
    except ValueError:
        return
    assert array.nbytes <= len(data)


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize(
    "shape", ["(1 << 40,)", "(1099511627776,)", "(-1,)", "(4294967296, 4294967296, 0)", "2", "(True,)", "[2]", "(2.0,)"]
)
def test_arrays_that_are_not_there(version: bytes, fortran: bool, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    with bounded(), suppress(ValueError):
        assert decode_npy(fake_npy(header, bytes(8), version)).size == 0


@pytest.mark.parametrize(
    "header",
    [b"(" * 9000, b"-" * 9000 + b"1", OBJECTS, b"1", b"\0", b"{}", b"{"],
    ids=["parentheses", "minus", "objects", "number", "zero", "empty", "open"],
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
def test_headers_that_are_none(header: bytes, version: bytes, tmp_path: Path) -> None:
    data = fake_npy(header, pickle.dumps(1), version)
    with bounded(), pytest.raises(ValueError, match="not a sound"):
        decode_npy(data)
    if header != OBJECTS:
        (tmp_path / "train.data").write_bytes(b"")
        (tmp_path / "train.idx").write_bytes(data)
        with pytest.raises(RunError, match="not a saved array"):
            IndexedReader(tmp_path / "train")


def patched(tar: bytes, size_field: bytes) -> bytes:
    """Another size in the first header, and its check sum put right."""
    block = bytearray(tar[:512])
    block[124:136] = size_field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + tar[512:]


@pytest.mark.parametrize(
    "data",
    [
        patched(SMALL_TAR, b"-0000001000\0"),  # a header that leads back to itself
        patched(SMALL_TAR, b"\xff" * 11 + b"\0"),  # the same in base 256
        patched(SMALL_TAR, b"\x80" + b"\x7f" * 11),
        patched(SMALL_TAR, b"77777777777\0"),
        make_tar({"a/b/c.json": b"[" * 100_000}),
        make_tar({"a/b/c.f0.npy": fake_npy(b"{'descr': '<f4', 'fortran_order': True, 'shape': (1099511627776,), }")}),
        make_tar(
            {"a/b/c.f0.npy": fake_npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (), }", pickle.dumps(1))}
        ),
        make_tar({"a/b/c.json": b"{}"}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        make_tar({"a/b/c.json": b""}, type=tarfile.GNUTYPE_SPARSE),
    ],
    ids=["backwards", "negative", "huge", "8 GiB", "deep", "terabyte", "pickle", "link", "sparse"],
)
def test_hostile_tars(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with bounded():
        assert read_both_ways(path) == 0


@pytest.mark.parametrize("name", ["/etc/passwd.json", "../../a.json", "a/../../b.json"])
def test_reading_writes_nothing_whatever_members_are_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(make_tar({name: b'{"num_frames": 1}'}))
    read_both_ways(path)
    assert [found.name for found in tmp_path.rglob("*")] == ["in", "a.tar"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@small_fuzz
@given(data=st.data())
def test_ledgers(folder: Path, run: RunFolder, data: st.DataObject) -> None:
    whole = (run.path / ledger_name(run.shards[0].name)).read_bytes()
    plain = json.loads(whole)
    changed = st.tuples(st.sampled_from(sorted(plain)), JSON).map(
        lambda pair: json.dumps(plain | dict([pair])).encode()
    )
    path = folder / "ledger.json"
    path.write_bytes(data.draw(damaged(whole) | changed))
    try:
        ledger = Ledger.parse(path.read_bytes(), str(path))
    except RunError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(ledger.num_frames, int)
        assert sum(ledger.reasons.values()) == len(ledger.rejects)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"num_bytes": 1e999}',
        "null",
        '{"samples": 1}',
        "\ufeff{}",
        '{"num_bytes": 9e30}',
        '{"num_bytes": ' + "9" * 5000 + "}",
        '{"num_bytes": -1}',
        '{"num_bytes": true}',
        '{"timings": {"fit": NaN}}',
        '{"timings": {"fit": -1}}',
        '{"provenance": []}',
        '{"provenance": {"software": {"torch": []}}}',
        '{"samples": [["no slashes", 3]]}',
        '{"samples": [["a/b/c", 3, 4]]}',
        '{"rejects": [["a/b/c", "\\ud800", ""]]}',
        '{"extra": ' + "[" * 40 + "]" * 40 + "}",
    ],
)
def test_files_that_are_no_ledgers(tmp_path: Path, run: RunFolder, text: str) -> None:
    plain = json.loads((run.path / ledger_name(run.shards[0].name)).read_bytes())
    path = tmp_path / "ledger.json"
    if text.startswith('{"'):
        name = text.split('"')[1]
        plain.pop(name, None)
        text = json.dumps(plain)[:-1] + ", " + text[1:]
    path.write_text(text)
    with pytest.raises(RunError, match="is not a ledger"):
        Ledger.parse(path.read_bytes(), str(path))


def test_a_name_twice_in_one_object_is_refused(tmp_path: Path, run: RunFolder) -> None:
    text = (run.path / ledger_name(run.shards[0].name)).read_text()
    path = tmp_path / "ledger.json"
    path.write_text(text.rstrip()[:-1] + ', "num_bytes": 1}')
    with pytest.raises(RunError, match="a name twice"):
        Ledger.parse(path.read_bytes(), str(path))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", [], "config must be an object"),
        ("config", {"corpus": []}, r"config\.corpus must be an object"),
        ("config", {"face": {"face_model": 3}}, r"config\.face\.face_model must be a string, got 3"),
        ("models", {"speech": "x"}, r"models\.speech must be an object"),
        ("models", {"speech": {"sha256": 5}}, r"models\.speech\.sha256 must be a string"),
        ("software", {"torch": [1]}, r"software\.torch must be a string"),
        ("plan_sha256", None, "plan_sha256 must be a string, got None"),
        ("device_type", 1e308, "device_type must be a string"),
    ],
)
def test_records_with_other_types(tmp_path: Path, run: RunFolder, name: str, value: object, message: str) -> None:
    plain = json.loads((run.path / "run.json").read_bytes())
    (tmp_path / "manifest.jsonl").write_bytes((run.path / "manifest.jsonl").read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(plain | {name: value}))
    with pytest.raises(RunError, match=rf"run\.json is damaged \({message}"):
        RunFolder.open(tmp_path)
    plain.pop("software", None)
    (tmp_path / "run.json").write_text(json.dumps(plain))
    assert RunFolder.open(tmp_path).run_hash == run.run_hash


@small_fuzz
@given(data=st.data())
def test_run_files(folder: Path, run: RunFolder, data: st.DataObject) -> None:
    copy = folder / "copied"
    copy.mkdir(exist_ok=True)
    for name in ("run.json", "manifest.jsonl"):
        whole = (run.path / name).read_bytes()
        (copy / name).write_bytes(data.draw(damaged(whole) | st.just(whole)))
    try:
        opened = RunFolder.open(copy)
    except RunError as error:
        assert str(copy) in str(error)
    else:
        assert list(opened.shards) == list(run.shards)
        assert opened.run_hash


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard", "../../../outside-000000"), ("shard", "/outside-000000"), ("end_seconds", 1e999), ("shard", "")],
)
def test_manifests_that_lead_elsewhere(tmp_path: Path, run: RunFolder, field: str, value: object) -> None:
    lines = [json.loads(line) for line in (run.path / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        line[field] = value
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.json").write_bytes((run.path / "run.json").read_bytes())
    with pytest.raises(RunError, match="line 1: not a manifest line"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("place", "damage"),
    [
        (1, b'{"key":"a/b/c","shard":"pretrain-000000","video_path":"v","num_bytes":1}\n'),
        (0, b'{"shard":"../outside-000000","key":"a/b/c","video_path":"v","num_bytes":1}\n'),
        (0, b'{"shard":"pretrain-000000","key":"a/b/c","video_path":"\xff","num_bytes":1}\n'),
        (1, b'{"shard":"pretrain-000000","key":"no slashes","video_path":"v","num_bytes":1}\n'),
        (2, b'{"shard":"pretrain-000000","key":"a/b/c","video_path":"v","num_bytes":1e400}\n'),
        (2, b'{"shard":"pretrain-000000","key":"a/b/c"'),
    ],
    ids=["order", "outside", "bytes", "key", "number", "cut off"],
)
def test_manifests_with_the_hash_of_their_run(tmp_path: Path, run: RunFolder, place: int, damage: bytes) -> None:
    """Whoever changes the manifest can change its hash in ``run.json`` as well."""
    lines = (run.path / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    lines[place] = damage
    (tmp_path / "manifest.jsonl").write_bytes(b"".join(lines))
    plain = json.loads((run.path / "run.json").read_bytes())
    plain["plan_sha256"] = hashlib.sha256(b"".join(lines)).hexdigest()
    (tmp_path / "run.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match=r"manifest\.jsonl"):
        list(RunFolder.open(tmp_path).shards)


@pytest.mark.parametrize(
    ("meta", "arrays", "message"),
    [
        ([], {}, "json must be an object"),
        ({}, {}, r"json\.num_frames is missing"),
        ({"num_frames": 0}, {}, "cannot be"),
        ({"num_frames": 9, "quality": []}, {}, r"json\.quality must be an object"),
        ({"num_frames": 9, "quality": {"relative_error": "x"}}, {}, r"relative_error must be a number"),
        ({"num_frames": 9, "source": {"height": 1 << 40, "width": 1}}, {}, "cannot be"),
        ({"num_frames": 9}, {"lm68": np.zeros((8, 68, 2), np.float32)}, "lm68 must be"),
        ({"num_frames": 9}, {"valid": np.zeros(9, np.float32)}, "valid must be bool"),
        ({"num_frames": 9}, {"mel": np.full((18, 80), np.nan, np.float32)}, "not finite"),
        ({"num_frames": 9}, {"other": np.zeros(3)}, "unknown field"),
    ],
)
def test_samples_that_break_the_contract(
    tmp_path: Path, meta: object, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "a.tar"
    members = {f"a/b/c.{name}.npy": npy(array) for name, array in arrays.items()}
    path.write_bytes(make_tar({"a/b/c.json": json.dumps(meta).encode()} | members))
    with pytest.raises(RunError, match=rf"a\.tar: a/b/c: .*{message}"):
        list(read_shard(path))


@pytest.mark.parametrize("name", ["run.json", "ledger/pretrain-000000.json", "index.jsonl", "sync.jsonl"])
def test_huge_files_are_not_read(tmp_path: Path, run: RunFolder, name: str) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    with open(tmp_path / "run" / name, "ab") as file:
        file.truncate(1 << 40)
    with bounded(), pytest.raises(RunError, match="has 1099511627776 bytes"):
        RunFolder.open(tmp_path / "run").store.read(name)
    if name.startswith("ledger"):
        assert RunFolder.open(tmp_path / "run").pending() == [0]


def test_fields_of_a_task_have_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    members = {
        "f0": np.zeros(6, np.float32),
        "mel": np.zeros((6, 80), np.float32),
        "lm68": np.zeros((4, 68, 2), np.float32),
    }
    path.write_bytes(make_tar({f"a/b/c.{name}.npy": npy(array) for name, array in members.items()}))
    with TarIndex(path) as index:
        assert len(index.read(0, ("f0", "mel"))["mel"]) == 6
        with pytest.raises(DamagedError, match="no single length"):
            index.read(0, ("f0", "lm68"))
        assert len(index.read(0, None)["lm68"]) == 4
    path.write_bytes(make_tar({"a/b/c.f0.npy": npy(np.zeros((6, 2), np.float32))}))
    with TarIndex(path) as index, pytest.raises(DamagedError, match="f0 must be float32"):
        index.read(0, ("f0",))


# Binarised sets -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def binarised(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The head of a set and its one item."""
    folder = tmp_path_factory.mktemp("set")
    item = pickle.dumps(stranger(num_frames=1))
    write_set(folder, [item])
    data = (folder / "train.data").read_bytes()
    return data[: 32 + int.from_bytes(data[:32], "little")], item


@small_fuzz
@given(data=st.data())
def test_binarised_sets(folder: Path, binarised: tuple[bytes, bytes], data: st.DataObject) -> None:
    head = data.draw(damaged(binarised[0]))
    item = data.draw(damaged(binarised[1]))
    with open(folder / "train.data", "wb") as file:
        file.write(head)
        file.seek(INDEX_BYTES)
        file.write(item)
    try:
        with IndexedReader(folder / "train") as reader:
            for index in range(len(reader)):
                assert isinstance(reader.item(index), dict)
    except RunError as error:
        assert "train" in str(error)


@small_fuzz
@given(data=st.data())
def test_old_binarised_sets(tmp_path_factory: pytest.TempPathFactory, folder: Path, data: st.DataObject) -> None:
    old = folder / "old"
    write_old_set(old, [pickle.dumps({"a": 1})])
    index = (old / "train.idx").read_bytes()
    (old / "train.idx").write_bytes(data.draw(damaged(index)))
    try:
        with IndexedReader(old / "train") as reader:
            for number in range(len(reader)):
                reader.item(number)
    except RunError as error:
        assert "train" in str(error)


@small_fuzz
@given(data=st.data())
def test_pickles(binarised: tuple[bytes, bytes], data: st.DataObject) -> None:
    with suppress(UnpickleError):
        loads(data.draw(damaged(binarised[1]) | st.binary(max_size=60).map(lambda tail: b"\x80\x04" + tail + b".")))


# Networks and video ---------------------------------------------------------------------------------------------------

NETWORK = small_network()


@small_fuzz
@given(damaged(NETWORK))
def test_networks(data: bytes) -> None:
    runs_or_is_refused(data)


@small_fuzz
@given(st.integers(0, len(NETWORK) // 4 - 1), st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 99))
def test_any_word_of_a_network(place: int, value: int) -> None:
    data = bytearray(NETWORK)
    struct.pack_into("<I", data, 4 * place, value)
    with bounded():
        runs_or_is_refused(bytes(data))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return write_media(path, num_frames=5, sound=noise(0.2, 16_000)).read_bytes()


@small_fuzz
@given(data=st.data())
def test_boxes_of_videos(folder: Path, video: bytes, data: st.DataObject) -> None:
    path = folder / "a.mp4"
    path.write_bytes(data.draw(damaged(video, (video.index(b"moov"), len(video) - 1))))
    try:
        check_mp4(path, "a.mp4")
    except UnreadableError as error:
        assert "a.mp4" in str(error)


def test_the_whole_network_runs() -> None:
    assert TFLiteModule(NETWORK).output_shapes == ((2, 2),)
