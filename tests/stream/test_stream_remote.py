"""Streaming from elsewhere: fsspec, http, commands; with a run's ledgers and without any."""

from __future__ import annotations

import functools
import http.server
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from torch.utils.data import DataLoader

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from support.run_factory import begin_run, make_run, publish

LENGTHS = [[12, 30, 7, 21], [9, 9, 40], [25, 6, 33, 14, 11]]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Store(LocalFileSystem):
    """Local files under a protocol of their own, as a bucket would be; counts what is opened."""

    protocol = "teststore"
    opened: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("teststore://"))

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        type(self).opened.append(path)
        return super()._open(path, *args, **kwargs)


fsspec.register_implementation("teststore", Store, clobber=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", LENGTHS)


@pytest.fixture(scope="module")
def all_keys(run: RunFolder) -> list[str]:
    return [key for shard in run.shards for key, _ in run.ledger(shard).samples]


@pytest.fixture(scope="module")
def pipes(run: RunFolder) -> list[str]:
    """The run's tars as commands, without ledgers."""
    return [f"pipe:cat {run.tar_path(shard)}" for shard in run.shards]


def as_is(item: Any) -> Any:
    return item


def keys_in(batches: Any) -> list[str]:
    return [key for batch in batches for key in ([batch["__key__"]] if "__key__" in batch else batch["keys"])]


def load(stream: ShardStream, num_workers: int) -> Any:
    return DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=as_is)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 3), (3, 1)])
def test_a_remote_run_is_a_run(run: RunFolder, all_keys: list[str], world_size: int, num_workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 2, "world_size": world_size}
    streams = [ShardStream(f"teststore://{run.path}", rank=rank, **options) for rank in range(world_size)]
    passes = [list(load(stream, num_workers)) for stream in streams]
    assert sorted(keys_in(batch for batches in passes for batch in batches)) == all_keys
    assert {len(batches) for batches in passes} == {len(stream) for stream in streams}


def test_going_on_in_a_remote_run(run: RunFolder) -> None:
    def stream() -> ShardStream:
        return ShardStream(f"teststore://{run.path}", batch_size=2, num_parallel_shards=2)

    whole = keys_in(stream())
    for stop in range(len(stream())):
        first, second = stream(), stream()
        batches = iter(load(first, 2))
        seen = [next(batches) for _ in range(stop + 1)]
        second.load_state_dict(first.state_dict(seen[-1]))
        assert keys_in(seen) + keys_in(second) == whole


def test_a_partition_reads_its_shards_once_and_front_to_back(run: RunFolder, all_keys: list[str]) -> None:
    stream = ShardStream(f"teststore://{run.path}", batch_size=3, num_parallel_shards=1, shuffle_buffer=4)
    Store.opened.clear()
    assert sorted(keys_in(stream)) == all_keys
    read = sorted(Path(path).name for path in Store.opened)
    assert read == sorted(f"{shard.name}.{ending}" for shard in run.shards for ending in ("json", "tar"))


def test_an_unfinished_remote_run(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", LENGTHS)
    publish(run, 1, LENGTHS[1])
    with pytest.raises(RunError, match="2 shards are missing, the first is pretrain-000000"):
        ShardStream(f"teststore://{run.path}", "raw")
    assert len(list(ShardStream(f"teststore://{run.path}", "raw", partial=True))) == 3
    with pytest.raises(RunError, match=r"holds no run \(no run.json there\)"):
        ShardStream(f"teststore://{tmp_path}/elsewhere", "raw")
    with pytest.raises(ValueError, match="folder or URL of one run"):
        ShardStream("pipe:cat a.tar", "raw", follow=True)


@pytest.fixture
def web(run: RunFolder) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(run.path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http through curl, which is not installed")
def test_a_run_on_a_web_server(web: str, all_keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert sorted(keys_in(ShardStream(web, batch_size=2))) == all_keys
    with pytest.raises(RunError, match=r"holds no run \(no run.json there\)"):
        ShardStream(f"{web}/ledger", "raw")


def test_tars_and_runs_may_be_mixed_and_braced(run: RunFolder, all_keys: list[str], tmp_path: Path) -> None:
    braced = ShardStream(f"{run.path}/shards/pretrain-{{000000..000001}}.tar", "raw")
    assert sorted(keys_in(braced)) == all_keys[:7]
    other = make_run(tmp_path / "other", [[8, 8]], split="test")
    both = ShardStream([run.path, f"file://{other.tar_path(other.shards[0])}"], "raw")
    assert len(both) == len(list(both)) == 14


def test_a_local_tar_without_a_ledger_is_looked_through(run: RunFolder, all_keys: list[str], tmp_path: Path) -> None:
    shutil.copy(run.tar_path(run.shards[0]), tmp_path / "alone.tar")
    stream = ShardStream(tmp_path / "alone.tar", batch_size=2, min_frames=10)
    assert sorted(keys_in(stream)) == [all_keys[0], all_keys[1], all_keys[3]]
    assert len(stream) == 2


def test_tars_of_other_makers(run: RunFolder, all_keys: list[str], tmp_path: Path) -> None:
    """Pax headers, folders and long names go through tarfile."""
    long = "pretrain/" + "x" * 120
    with (
        tarfile.open(run.tar_path(run.shards[0])) as ours,
        tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as pax,
    ):
        folder = tarfile.TarInfo("pretrain")
        folder.type = tarfile.DIRTYPE
        pax.addfile(folder)
        for member in ours.getmembers():
            data = ours.extractfile(member)
            member.name = member.name.replace(all_keys[0], long)
            pax.addfile(member, data)
    assert sorted(keys_in(ShardStream(tmp_path / "pax.tar", "raw"))) == sorted([long, *all_keys[1:4]])


# without ledgers


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_unlisted_tars_are_shared_by_more_readers_than_tars(
    pipes: list[str], all_keys: list[str], world_size: int, num_workers: int
) -> None:
    streams = [
        ShardStream(pipes, batch_size=2, equal_batches=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(key for stream in streams for key in keys_in(load(stream, num_workers))) == all_keys


def test_what_is_not_possible_without_ledgers(pipes: list[str]) -> None:
    with pytest.raises(ValueError, match="without a ledger cannot be shared evenly"):
        ShardStream(pipes, "raw", rank=0, world_size=2)
    with pytest.raises(TypeError, match="no ledger"):
        len(ShardStream(pipes, "raw"))
    stream = ShardStream(pipes, "raw")
    batches = iter(load(stream, 2))
    state = stream.state_dict(next(batches))
    resumed = ShardStream(pipes, "raw")
    resumed.load_state_dict(state)
    with pytest.raises(RunError, match="saved with 2 workers, now there are 1"):
        list(load(resumed, 0))
    with pytest.raises(RunError, match="rank 0 of 1, loaded by rank 1 of 2"):
        ShardStream(pipes, "raw", equal_batches=False, rank=1, world_size=2).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_without_ledgers(pipes: list[str], all_keys: list[str], num_workers: int) -> None:
    def stream() -> ShardStream:
        return ShardStream(pipes, batch_size=2, shuffle_buffer=4)

    for stop in (1, 2, 4, 5):
        streams, seen = [stream(), stream(), stream()], []
        for number, current in enumerate(streams[:2]):  # interrupted twice
            batches = iter(load(current, num_workers))
            part = [next(batches) for _ in range(stop if number == 0 else 1)]
            seen += keys_in(part)
            streams[number + 1].load_state_dict(current.state_dict(part[-1]))
        assert sorted(seen + keys_in(load(streams[2], num_workers))) == all_keys


def test_a_command_that_fails(run: RunFolder, pipes: list[str], all_keys: list[str]) -> None:
    for bad in ("pipe:cat /nowhere.tar", f"pipe:head -c 9000 {run.tar_path(run.shards[1])}"):
        urls = [pipes[0], bad, pipes[2]]
        with pytest.raises(RunError, match="is damaged"):
            list(ShardStream(urls, "raw"))
        stream = ShardStream(urls, "raw", on_error="skip")
        found = keys_in(stream)
        assert set(all_keys[:4] + all_keys[7:]) <= set(found) < set(all_keys)
        assert stream.errors() == {bad: "1 times given up half-way"}


def test_a_remote_tar_that_is_cut_short(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    tar = run.tar_path(run.shards[0])
    keys = [key for shard in run.shards for key, _ in run.ledger(shard).samples]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(RunError, match=r"pretrain-000000.tar is damaged"):
        list(ShardStream(f"teststore://{run.path}", batch_size=2))
    stream = ShardStream(f"teststore://{run.path}", batch_size=2, on_error="skip", num_parallel_shards=1)
    found = keys_in(stream)
    assert set(keys[4:]) < set(found) < set(keys)
    assert stream.errors() == {"pretrain-000000": f"{len(keys) - len(found)} samples lost"}


def test_protocols_that_nothing_here_opens() -> None:
    with pytest.raises(RunError, match="fsspec package"):
        list(ShardStream("nosuch://bucket/a.tar", "raw"))
