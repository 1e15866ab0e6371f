"""What a store promises, on a folder, in fsspec's memory and on S3; and whole runs on each."""

from __future__ import annotations

import itertools
import json
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from lrs3_loader import ShardStream
from lrs3_loader.config import CorpusConfig
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.errors import RunError
from lrs3_loader.io import remote, storage
from lrs3_loader.io.storage import Store, Url, is_url, location, store_at
from lrs3_loader.run.folder import RunFolder
from support.run_factory import begin_run, make_run, publish
from support.s3_server import Bucket, Proxy, make_bucket, s3_service

pytestmark = pytest.mark.smoke

LENGTHS = [[12, 30, 0, 21], [9, 9], [25, 6, 33]]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def service() -> Iterator[Proxy]:
    with s3_service() as proxy:
        yield proxy


@pytest.fixture
def bucket(service: Proxy) -> Iterator[Bucket]:
    yield make_bucket(service)
    service.cut_after = None
    service.busy_until = 0.0
    service.flowing.set()


@pytest.fixture(params=["folder", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket').url}/some/run"
    return str(tmp_path / "run") if request.param == "folder" else f"memory://run{next(NUMBERS)}"


@pytest.fixture
def store(root: str) -> Store:
    store = store_at(root)
    store.create(["shards"])
    return store


def write(store: Store, name: str, data: bytes) -> None:
    with store.write(name) as file:
        file.write(data)


# the promises


def test_what_is_written_is_there(store: Store) -> None:
    assert store.listing("shards") == {}
    write(store, "shards/a.tar", b"first")
    write(store, "shards/b.tar", b"2")
    write(store, "run.json", b"{}")
    sizes = {name: state.num_bytes for name, state in store.listing("shards").items()}
    assert sizes == {"a.tar": 5, "b.tar": 1}
    assert store.size("shards/a.tar") == 5
    assert store.read("shards/a.tar") == b"first"
    assert list(store.read_many(["run.json", "shards/none.tar", "shards/b.tar"])) == [
        ("run.json", b"{}"),
        ("shards/b.tar", b"2"),
    ]
    store.delete("shards/a.tar")
    store.delete("shards/a.tar")
    assert list(store.listing("shards")) == ["b.tar"]
    for read in (store.size, store.read):
        with pytest.raises(FileNotFoundError):
            read("shards/a.tar")


def test_a_stamp_changes_with_the_file(store: Store) -> None:
    write(store, "shards/a.tar", b"one")
    before = store.listing("shards")
    assert store.listing("shards") == before
    write(store, "shards/a.tar", b"two")
    assert store.listing("shards") != before


def test_a_broken_off_block_changes_nothing(store: Store) -> None:
    write(store, "shards/a.tar", b"old")
    for name in ("shards/a.tar", "shards/b.tar"):
        with pytest.raises(ZeroDivisionError), store.write(name) as file:
            file.write(b"half" * (1 // 0))
    assert list(store.listing("shards")) == ["a.tar"]
    assert store.read("shards/a.tar") == b"old"


def test_files_are_at_hand_under_their_names_and_leave_no_trace(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, "shards/a.tar", b"data")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with store.local_copy("shards/a.tar", "shards/none.tar") as folder:
        assert (folder / "shards/a.tar").read_bytes() == b"data"
        assert not (folder / "shards/none.tar").exists()
    assert list(scratch.iterdir()) == []


def test_a_store_goes_to_other_processes(store: Store) -> None:
    write(store, "run.json", b"{}")
    assert pickle.loads(pickle.dumps(store)).read("run.json") == b"{}"


def test_names_that_lead_out_are_refused(bucket: Bucket) -> None:
    store = store_at(bucket.url)
    for name in ("../../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(RunError, match="leads out of"), store.local_copy(name):
            pass


@pytest.mark.parametrize("text", ["s3://bucket/run/", "gs://b/r", "memory://x", "simplecache::s3://b/r"])
def test_urls_are_told_from_paths(text: str) -> None:
    assert isinstance(location(text), Url)
    assert location(text) == text.rstrip("/")


def test_paths_are_paths() -> None:
    assert location("runs/a") == Path("runs/a")
    assert location("file:///runs/a") == Path("/runs/a")
    assert not is_url(Path("s3://bucket/run"))


def test_what_cannot_be_reached_is_one_line(bucket: Bucket) -> None:
    with pytest.raises(RunError, match=r"nosuch://bucket/run cannot be (opened|reached): [^\n]*$"):
        store_at("nosuch://bucket/run")
    with pytest.raises(RunError, match=r"s3://never-made/run/run\.json could not be uploaded[^\n]*$"):
        write(store_at("s3://never-made/run"), "run.json", b"{}")
    bucket.proxy.cut_after = 0
    with pytest.raises(RunError, match=r"run\.json cannot be reached: [^\n]*$"):
        store_at(bucket.url).read("run.json")


# runs


def test_a_run_is_begun_resumed_and_verified_anywhere(root: str) -> None:
    run = begin_run(root, LENGTHS)
    assert run.pending() == [0, 1, 2]
    publish(run, 1, LENGTHS[1])
    run.clear_scratch()
    again = RunFolder.open(root)
    assert tuple(again.shards) == tuple(run.shards)
    assert again.pending() == [0, 2]
    for index in again.pending():
        publish(again, index, LENGTHS[index])
    assert RunFolder.open(root).pending() == []
    assert [problems for _, problems in again.check()] == [[], [], []]
    assert again.with_rejects(["no_face"]) == [0]
    totals = again.totals()
    assert (totals.num_samples, len(totals.rejects), totals.num_frames) == (8, 1, 145)
    assert [sample["json"]["num_frames"] for sample in again.samples(again.shards[0])] == [12, 30, 21]


def test_the_same_bytes_everywhere(root: str, tmp_path: Path) -> None:
    there, here = make_run(root, LENGTHS), make_run(tmp_path / "here", LENGTHS)
    assert [ledger.sha256 for ledger in there.ledgers()] == [ledger.sha256 for ledger in here.ledgers()]
    for shard in here.shards:
        assert there.store.read(f"shards/{shard.name}.tar") == here.tar_path(shard).read_bytes()


def test_a_shard_is_published_again_only_where_it_differs(root: str) -> None:
    run = make_run(root, LENGTHS)
    before = run.store.listing("shards"), run.store.listing("ledger")
    publish(run, 0, LENGTHS[0])
    assert (run.store.listing("shards"), run.store.listing("ledger")) == before
    publish(run, 0, [12, 30, 15, 21])
    assert run.with_rejects() == []
    assert run.pending() == []


def test_damage_is_found_anywhere(root: str) -> None:
    run = make_run(root, LENGTHS)
    name = f"shards/{run.shards[1].name}.tar"
    data = bytearray(run.store.read(name))
    data[1000] ^= 1
    write(run.store, name, bytes(data))
    run.store.delete(f"shards/{run.shards[2].name}.tar")
    found = [problems for _, problems in run.check()]
    assert found[0] == []
    assert f"{run.store.where(name)} has sha256" in found[1][0]
    assert "is missing although its ledger is there" in found[2][0]
    assert run.pending() == [2]


def test_requests_of_a_run(bucket: Bucket) -> None:
    """Nothing is listed for a shard, whatever is published; a resumed run lists two folders and reads ledgers once."""
    run = begin_run(f"{bucket.url}/run", LENGTHS)
    bucket.proxy.requests.clear()
    for index, row in enumerate(LENGTHS):
        publish(run, index, row)
    assert bucket.proxy.count("GET", "list-type") == 0
    assert bucket.proxy.count("PUT", "") == 6
    assert len(bucket.proxy.requests) <= 4 * 3

    run = RunFolder.open(f"{bucket.url}/run")
    bucket.proxy.requests.clear()
    for _ in range(3):
        assert run.pending() == []
    assert bucket.proxy.count("GET", "list-type") == 3 * 2
    assert bucket.proxy.count("GET", r"/ledger/pretrain-\d+\.json") == 3


def test_a_run_is_followed_while_it_is_written(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"

    def write_run() -> None:
        run = begin_run(url, LENGTHS)
        for index, row in enumerate(LENGTHS):
            time.sleep(0.3)
            publish(run, index, row)

    writer = threading.Thread(target=write_run)
    writer.start()
    followed = list(ShardStream(url, batch_size=2, follow=True, poll_seconds=0.1))
    writer.join()
    found = sorted(key for batch in followed for key in batch["keys"])
    finished = ShardStream(url, batch_size=2, shuffle=False)
    assert found == sorted(key for batch in finished for key in batch["keys"])
    assert len(found) == 8


# connections that break


@pytest.mark.parametrize("parts", [1, 3])
def test_a_connection_cut_in_the_middle_of_an_upload(
    bucket: Bucket, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts > 1:
        # Older releases have no such function, and upload this much in one part.
        monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *args, **kwargs: 5 << 20, raising=False)
    store = store_at(f"{bucket.url}/run")
    data = bytes(range(256)) * (parts * (5 << 12))
    bucket.proxy.cut_after = len(data) // (2 * parts)
    with pytest.raises(RunError, match="could not be uploaded, and nothing of it is there: "):
        write(store, "shards/a.tar", data)
    assert store.listing("shards") == {}
    bucket.proxy.cut_after = None
    write(store, "shards/a.tar", data)
    assert store.read("shards/a.tar") == data


def test_a_run_whose_upload_broke_is_resumed(bucket: Bucket) -> None:
    run = begin_run(f"{bucket.url}/run", LENGTHS)
    publish(run, 0, LENGTHS[0])
    bucket.proxy.cut_after = 20_000
    with pytest.raises(RunError, match=r"pretrain-000001\.tar could not be uploaded"):
        publish(run, 1, LENGTHS[1])
    bucket.proxy.cut_after = None
    again = RunFolder.open(f"{bucket.url}/run")
    assert again.pending() == [1, 2]
    for index in again.pending():
        publish(again, index, LENGTHS[index])
    assert [problems for _, problems in again.check()] == [[], [], []]


# services that do not answer


WAITING = "cannot be reached ("  # part of the line for each new attempt


@pytest.mark.slow
def test_a_busy_service_is_waited_for(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(remote.RETRY_VARIABLE, "60")
    store = store_at(f"{bucket.url}/run")
    bucket.proxy.busy_until = time.monotonic() + 4
    write(store, "shards/a.tar", b"some bytes")
    assert WAITING in caplog.text
    assert "run/shards/a.tar" in caplog.text
    for read in (
        lambda: store.read("shards/a.tar"),
        lambda: dict(store.read_many(["shards/a.tar"]))["shards/a.tar"],
        lambda: str(store.listing("shards")["a.tar"].num_bytes).encode(),
    ):
        caplog.clear()
        bucket.proxy.busy_until = time.monotonic() + 4
        assert read() in (b"some bytes", b"10")
        assert WAITING in caplog.text


def test_a_service_that_stays_busy_ends_in_one_line_in_time(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.RETRY_VARIABLE, "3")
    store = store_at(f"{bucket.url}/run")
    bucket.proxy.busy_until = time.monotonic() + 1000
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"a\.tar could not be uploaded, and nothing of it is there: [^\n]*$"):
        write(store, "shards/a.tar", b"some bytes")
    assert 3 <= time.monotonic() - begun < 20


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [10, 20 << 20])
def test_a_stalled_link_is_noticed_and_waited_for(
    num_bytes: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(remote._S3_CONFIG, "read_timeout", 1)
    monkeypatch.setattr(storage, "UPLOAD_SECONDS", 2.0)
    monkeypatch.setattr(storage, "SLOWEST_UPLOAD", 20 << 20)
    monkeypatch.setenv(remote.RETRY_VARIABLE, "5")
    store = store_at(f"{bucket.url}/run")
    bucket.proxy.flowing.clear()
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"a\.tar could not be uploaded"):
        write(store, "shards/a.tar", bytes(num_bytes))
    assert time.monotonic() - begun < 30
    assert WAITING in caplog.text
    assert "still uploading" in caplog.text
    with pytest.raises(RunError, match=r"a\.tar cannot be reached"):
        store.read("shards/a.tar")
    monkeypatch.setenv(remote.RETRY_VARIABLE, "60")
    threading.Timer(3.0, bucket.proxy.flowing.set).start()
    write(store, "shards/a.tar", bytes(num_bytes))
    assert store.size("shards/a.tar") == num_bytes


def test_what_will_not_pass_is_not_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(remote.RETRY_VARIABLE, "60")
    with pytest.raises(RunError, match="could not be uploaded"):
        write(store_at("s3://never-made/run"), "run.json", b"{}")
    with pytest.raises(FileNotFoundError):
        store_at(bucket.url).read("gone")
    assert WAITING not in caplog.text


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_the_time_for_trying_again_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.RETRY_VARIABLE, text)
    with pytest.raises(RunError, match=r"LRS3_LOADER_STORAGE_RETRY_SECONDS must be a number of seconds, got"):
        store_at("memory://run")


# corpora


def put_all(root: str, files: dict[str, bytes]) -> None:
    if is_url(root):
        fs, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        fs.pipe({f"{path}/{name}": data for name, data in files.items()})
        return
    for name, data in files.items():
        (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(root) / name).write_bytes(data)


def test_a_corpus_is_scanned_as_one_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    files = {f"pretrain/spk{n % 3}/{n:05d}.mp4": b"x" * (n + 1) for n in range(9)}
    files |= {name.replace(".mp4", ".txt"): b"Text:  A\n" for name in files}
    files |= {"pretrain/spk0/.hidden.mp4": b"x", "readme.md": b"x"}
    put_all(f"{bucket.url}/lrs3", files)
    put_all(str(tmp_path), files)
    there = scan_corpus(CorpusConfig(Url(f"{bucket.url}/lrs3")))
    assert there == scan_corpus(CorpusConfig(tmp_path))
    assert len(there) == 9
    with pytest.raises(RunError, match=r"no clips found in s3://\w+/nothing"):
        scan_corpus(CorpusConfig(Url(f"{bucket.url}/nothing")))


def test_a_table_of_clips(bucket: Bucket, tmp_path: Path) -> None:
    table = b"path,speaker,start,end\n./anna/a.mp4,anna,0,1\nb/c.mp4,,,\nb/gone.mp4,,,\n"
    files = {"anna/a.mp4": b"xxx", "b/c.mp4": b"xx", "clips.csv": table}
    put_all(f"{bucket.url}/set", files)
    put_all(str(tmp_path), files)
    there = scan_corpus(CorpusConfig(Url(f"{bucket.url}/set/clips.csv")))
    here = scan_corpus(CorpusConfig(tmp_path / "clips.csv"))
    assert [(clip.key, clip.num_bytes) for clip in there] == [(clip.key, clip.num_bytes) for clip in here]
    assert there[0].video_path == "anna/a.mp4"
    put_all(f"{bucket.url}/set", {"out.csv": b"path\n../x.mp4\n"})
    with pytest.raises(RunError, match=r"out\.csv, line 2: \.\./x\.mp4 does not lie below"):
        scan_corpus(CorpusConfig(Url(f"{bucket.url}/set/out.csv")))
    with pytest.raises(RunError, match=r"cannot read s3://\w+/set/none\.csv"):
        scan_corpus(CorpusConfig(Url(f"{bucket.url}/set/none.csv")))


def test_a_record_names_the_url(bucket: Bucket) -> None:
    make_run(f"{bucket.url}/run", LENGTHS)
    assert json.loads(store_at(bucket.url).read("run/run.json"))["device_type"] == "cpu"
