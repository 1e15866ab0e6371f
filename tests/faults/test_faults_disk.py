"""Disks that refuse: full, over quota, read-only, forbidden, gone. One clear line, nothing half done, then resumed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrs3_loader import demo
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, output_file, writing
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name
from support.fault_tools import long, remount, small_disk
from support.paths import REPO
from support.run_factory import begin_run, make_run, publish
from support.whole_runs import command, shard_bytes

pytestmark = pytest.mark.faults

LENGTHS = [[40, 40], [40, 40], [40, 40]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing disturbed."""
    return make_run(tmp_path_factory.mktemp("whole") / "run", LENGTHS)


def begin(folder: Path) -> RunFolder:
    """The same run with its first shard done."""
    run = begin_run(folder, LENGTHS)
    publish(run, 0, LENGTHS[0])
    return run


def check_survived(run: RunFolder, whole: RunFolder, has_scratch: bool = False) -> None:
    """After a fault: nothing half-published, no scratch; the rest can be done, to the same bytes."""
    assert RunFolder.open(run.path).pending() == [1, 2]
    assert len(list((run.path / "shards").iterdir())) == len(list((run.path / "ledger").iterdir())) == 1
    assert bool(list((run.path / "tmp").iterdir())) == has_scratch
    run.clear_scratch()
    for index in run.pending():
        publish(run, index, LENGTHS[index])
    assert all(problems == [] for _, problems in run.check())
    assert shard_bytes(run.path) == shard_bytes(whole.path)


def refusal(run: RunFolder, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        publish(run, 1, LENGTHS[1])
    assert len(str(caught.value).splitlines()) == 1
    assert str(run.path) in str(caught.value)
    assert "then run the same command again" in str(caught.value)


def test_a_full_disk(tmp_path: Path, whole: RunFolder) -> None:
    tar_kib = len(next(iter(shard_bytes(whole.path).values()))) // 1024
    with small_disk(tmp_path / "disk", tar_kib + 200) as disk:
        run = begin(disk / "run")
        refusal(run, "pretrain-000001.tar: No space left on device; make room on that disk")
        remount(disk, f"size={4 * tar_kib}k")
        check_survived(run, whole)


def test_a_disk_that_fills_up_at_the_ledger(tmp_path: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run")
    monkeypatch.setattr("lrs3_loader.io.storage.atomic_write", refusing_ledgers)
    with pytest.raises(RunError, match=r"ledger/pretrain-000001\.json: Disk quota exceeded; raise the quota"):
        publish(run, 1, LENGTHS[1])
    monkeypatch.undo()
    assert run.pending() == [1, 2]
    assert not (run.path / ledger_name(run.shards[1].name)).exists()
    assert list((run.path / "tmp").iterdir()) == []
    for index in run.pending():
        publish(run, index, LENGTHS[index])
    assert shard_bytes(run.path) == shard_bytes(whole.path)


@contextmanager
def refusing_ledgers(path: Path, scratch: Path | None = None, *_: object) -> Iterator[object]:
    with atomic_write(path, scratch) as file:
        if path.suffix != ".json":
            yield file
        else:
            yield Quota(path)


def full_device() -> int:
    return os.open("/dev/full", os.O_WRONLY)


class Quota:
    """A file whose disk says EDQUOT."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, data: bytes) -> int:
        with writing(self.path):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_failing_writes_name_the_file_that_was_to_be(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the one: No space left"), output_file(full_device(), tmp_path / "the one") as f:
        f.write(bytes(1 << 20))


def test_what_the_producer_fails_of_is_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_file_sizes(tmp_path: Path, whole: RunFolder) -> None:
    run = begin(tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        refusal(run, "File too large; allow larger files")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_survived(run, whole)


def test_a_disk_that_turns_read_only(tmp_path: Path, whole: RunFolder) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        run = begin(disk / "run")
        (run.path / "tmp" / "left").touch()
        remount(disk, "ro")
        refusal(run, "Read-only file system; make that file system writable")
        with pytest.raises(RunError, match="tmp: Read-only file system"):
            run.clear_scratch()
        remount(disk, "rw")
        check_survived(run, whole, has_scratch=True)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Within, this process has no more rights than the files' modes give it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission(tmp_path: Path, whole: RunFolder) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-1]):  # pytest lets nobody else in
        folder.chmod(folder.stat().st_mode | 0o055)
    run = begin(tmp_path / "run")
    (run.path / "tmp").chmod(0o555)
    with unprivileged():
        refusal(run, "Permission denied; give this user permission")
    (run.path / "tmp").chmod(0o755)
    check_survived(run, whole)


@pytest.mark.parametrize("name", ["tmp", "shards", ""])
def test_a_folder_removed_under_the_run(tmp_path: Path, whole: RunFolder, name: str) -> None:
    run = begin(tmp_path / "run")
    shutil.move(run.path / name, tmp_path / "aside")
    refusal(run, "No such file or directory; a folder that was there is gone: restore it")
    shutil.move(tmp_path / "aside", run.path / name)
    check_survived(run, whole)


def test_a_ledger_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    ledger = run.path / ledger_name(run.shards[0].name)
    ledger.unlink()
    ledger.mkdir()
    with pytest.raises(RunError, match=r"cannot read .*pretrain-000000\.json: Is a directory"):
        run.published()


# The command, whole -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    return demo.make_demo_corpus(
        tmp_path_factory.mktemp("corpus") / "demo", num_speakers=2, clips_per_speaker=2, seconds=(1.0, 1.3)
    )


def start(arguments: list[str]) -> tuple[int, list[str]]:
    """Exit code and errors; torchrun adds a traceback of its own wherever a rank fails."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    told = [line for line in done.stderr.splitlines() if line.startswith(("error:", "Traceback"))]
    if "elastic.multiprocessing.errors.ChildFailedError" in done.stderr:
        told.remove("Traceback (most recent call last):")
    return done.returncode, told


@long
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_on_a_full_disk_says_so_and_goes_on_later(
    corpus: demo.DemoCorpus,
    assets: Path | None,
    tmp_path: Path,
    ranks: int,
) -> None:
    code, told = start(command(corpus.folder, tmp_path / "whole", assets, 1, "--shard-clips", "1"))
    assert (code, told) == (0, [])
    with small_disk(tmp_path / "disk", 300) as disk:
        out = disk / "run"
        arguments = command(corpus.folder, out, assets, ranks, "--shard-clips", "1")
        code, told = start(arguments)
        assert code == 1
        assert told
        for line in told:
            assert f"error: cannot write {out}/" in line
            assert "No space left on device; make room on that disk, then run the same command again" in line
        assert list((out / "tmp").iterdir()) == []
        assert not (out / "run.lock").exists()
        remount(disk, "size=8m")
        assert start(arguments)[0] == 0
        assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


@long
def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    tool = [sys.executable, str(REPO / "tools" / "extract.py"), "--demo", "--device", "cpu", "--out"]
    code, told = start([*tool, str(tmp_path / "out")])
    assert code == 1
    assert len(told) == 1
    assert f"error: disk: {tmp_path}/out is not a writable folder. choose another --out" in told[0]
