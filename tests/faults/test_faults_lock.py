"""Two launches on one run folder: who may write, and what becomes of a lock whose holder died."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrs3_loader.errors import RunError
from lrs3_loader.run import lock as runlock
from lrs3_loader.run.lock import FILE_NAME, Holder, RunLock, TakenOverError, check_holder
from support.fault_tools import as_json, small_fuzz

pytestmark = pytest.mark.faults

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from lrs3_loader.run.lock import RunLock\n"
    "from lrs3_loader.errors import RunError\n"
    "try:\n"
    "    with RunLock(Path(sys.argv[1])):\n"
    "        print('held', flush=True)\n"
    "        sys.stdin.read()\n"
    "except RunError as error:\n"
    "    print(error, flush=True)\n"
)


FIELDS = [field.name for field in fields(Holder)]


def no_kernel_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def start_holder(folder: Path, script: str = HOLD) -> subprocess.Popen[str]:
    """A process that holds the lock until its input ends, or says why not."""
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed_holder(folder: Path) -> subprocess.Popen[str]:
    process = start_holder(folder)
    assert first_line(process) == "held"
    process.kill()
    process.wait()
    assert (folder / FILE_NAME).exists()
    return process


def quick(folder: Path, on_lost: Callable[[], None] | None = None) -> RunLock:
    return RunLock(folder, heartbeat_seconds=0.05, stale_seconds=0.6, on_lost=on_lost)


def left_by(folder: Path, **changes: object) -> Holder:
    """A lock file of some other launch."""
    folder.mkdir(exist_ok=True)
    holder = replace(Holder.me(), boot="another machine", host="node7", **changes)  # type: ignore[arg-type]
    (folder / FILE_NAME).write_bytes(holder.encode())
    return holder


def test_a_second_launch_is_refused_naming_the_first(tmp_path: Path) -> None:
    first = start_holder(tmp_path)
    assert first_line(first) == "held"
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(RunError, match=rf"being written by another launch \(process {first.pid} on .*--out"):
        RunLock(tmp_path).__enter__()
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.wait()
    with RunLock(tmp_path):
        pass


def test_the_file_keeps_the_names_that_older_versions_read_and_write(tmp_path: Path) -> None:
    written = json.loads(left_by(tmp_path, pid=7, start_ticks=70, pid_namespace="pid:[1]").encode())
    old = "token host boot space pid born launch attempt since count"
    assert list(written) == old.split()
    assert (written["space"], written["born"]) == ("pid:[1]", 70)
    holder = Holder.parse(json.dumps(written).encode())
    assert holder is not None
    assert (holder.pid_namespace, holder.start_ticks) == ("pid:[1]", 70)


def test_what_is_left_behind(tmp_path: Path) -> None:
    with RunLock(tmp_path / "new"):
        assert (tmp_path / "new" / FILE_NAME).exists()
    assert not (tmp_path / "new").exists()
    with RunLock(tmp_path / "new"):
        (tmp_path / "new" / "run.json").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.json"]


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_killed_holder_is_followed_at_once(tmp_path: Path, has_locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_holder(tmp_path)
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_kernel_locks)
    begun = time.monotonic()
    with RunLock(tmp_path):
        assert Holder.parse((tmp_path / FILE_NAME).read_bytes()).pid == os.getpid()  # type: ignore[union-attr]
    assert time.monotonic() - begun < 5


def test_without_kernel_locks_a_living_process_is_seen_and_a_reused_id_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_kernel_locks)
    monkeypatch.setattr(runlock, "SETTLE_SECONDS", 0.1)
    with quick(tmp_path):
        with pytest.raises(RunError, match=f"process {os.getpid()} on"):
            quick(tmp_path).__enter__()
        holder = Holder.parse((tmp_path / FILE_NAME).read_bytes())
    assert holder is not None
    (tmp_path / FILE_NAME).write_bytes(replace(holder, start_ticks=holder.start_ticks - 1).encode())
    with quick(tmp_path):
        pass


def test_a_silent_holder_elsewhere_is_followed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "SETTLE_SECONDS", 0.1)
    left_by(tmp_path)
    begun = time.monotonic()
    with quick(tmp_path):
        assert 0.6 <= time.monotonic() - begun < 5


def test_a_holder_elsewhere_that_counts_on_is_left_alone(tmp_path: Path) -> None:
    holder = left_by(tmp_path, since="2099-01-01 00:00:00")
    done = threading.Event()

    def count() -> None:
        number = 0
        while not done.wait(0.05):
            number += 1
            (tmp_path / FILE_NAME).write_bytes(replace(holder, count=number).encode())

    thread = threading.Thread(target=count)
    thread.start()
    with pytest.raises(RunError, match="on node7, begun 2099"):
        quick(tmp_path).__enter__()
    done.set()
    thread.join()


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_no_clock_of_the_day_counts(tmp_path: Path, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock file from the past or the future, and a clock that jumps meanwhile: neither kills nor saves a holder."""
    monkeypatch.setattr(runlock, "SETTLE_SECONDS", 0.1)
    now = time.time()
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now + jump * next(jumps))
    left_by(tmp_path)
    os.utime(tmp_path / FILE_NAME, (now + jump, now + jump))
    begun = time.monotonic()
    with quick(tmp_path) as lock:
        assert 0.6 <= time.monotonic() - begun < 5
        os.utime(lock.path, (now - jump, now - jump))
        with pytest.raises(RunError, match="another launch"):
            quick(tmp_path).__enter__()


@pytest.mark.parametrize(("attempt", "seconds"), [("1", 0.0), ("0", 0.6)])
def test_an_elastic_restart_on_another_machine(
    tmp_path: Path, attempt: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlock, "SETTLE_SECONDS", 0.1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    left_by(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
    begun = time.monotonic()
    with quick(tmp_path):
        assert seconds <= time.monotonic() - begun < seconds + 0.5


def test_an_elastic_restart_waits_for_its_predecessor_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    predecessor = start_holder(tmp_path)
    assert first_line(predecessor) == "held"
    assert predecessor.stdin is not None
    timer = threading.Timer(0.3, predecessor.stdin.close)
    timer.start()
    with RunLock(tmp_path, stale_seconds=20):
        assert predecessor.wait(5) == 0
    timer.join()


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_holder_learns_that_it_was_taken_for_dead(tmp_path: Path, has_ended: bool) -> None:
    lost = threading.Event()
    with quick(tmp_path, lost.set) as lock:
        time.sleep(0.2)
        assert not lost.is_set()
        check_holder(tmp_path, lock.token)
        until = time.monotonic() + 5
        while not lost.wait(0.1):  # a heartbeat may just be under way: a launch that takes over writes again, too
            assert time.monotonic() < until
            left_by(tmp_path)
            if has_ended:
                lock.path.unlink()
        with pytest.raises(TakenOverError, match="which has ended: this launch" if has_ended else "on node7, begun"):
            check_holder(tmp_path, lock.token)
    assert lock.path.exists() is not has_ended  # it is the other's now


def test_a_suspended_holder_ends_in_one_line_when_it_wakes(tmp_path: Path) -> None:
    """By the heartbeat, while the main thread is at work."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lrs3_loader.launch import cli\n"
        "from lrs3_loader.run.lock import RunLock\n"
        "def body():\n"
        "    with RunLock(Path(sys.argv[1]), heartbeat_seconds=0.1):\n"
        "        print('held', flush=True)\n"
        "        time.sleep(60)\n"
        "cli.main(body)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert first_line(process) == "held"
        process.send_signal(signal.SIGSTOP)
        left_by(tmp_path / "run")
        (tmp_path / "run" / FILE_NAME).unlink()
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"error: {tmp_path}/run was taken over by another launch, which has ended")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="file calls cannot be replaced before Python 3.11")
@pytest.mark.parametrize("name", ["shards/pretrain-000001.tar", "ledger/pretrain-000001.json"])
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_launch_that_was_taken_over_publishes_nothing_more(name: str, has_ended: bool) -> None:
    """It is suspended when a file is complete under its temporary name, and goes on after another launch has ended."""
    from benchmarks.faults.calls import Call, FileCalls, watched
    from benchmarks.faults.scenarios import SCENARIOS, Laboratory

    with Laboratory() as laboratory:
        scenario = SCENARIOS["fresh"]
        laboratory.restore(laboratory.start(scenario))
        run = laboratory.world / "run"
        taken: list[str] = []

        def suspend(call: Call) -> None:
            if not taken and call.kind == "fsync" and Path(name).name in call.name:
                taken.append(call.name)
                (run / FILE_NAME).unlink()
                if not has_ended:
                    left_by(run)

        with watched(FileCalls(laboratory.world, before=suspend)):
            ending = laboratory.run(scenario)
        assert len(taken) == 1
        assert (ending.code, ending.crash) == (1, "")
        *_, line = ending.errors.splitlines()
        assert line.startswith(f"error: {run} was taken over by ")
        assert ending.errors.count("error") == 1
        assert not (run / name).exists()
        published = {path.stem for folder in ("shards", "ledger") for path in (run / folder).iterdir()}
        assert published <= {"pretrain-000000", "pretrain-000001"}
        assert list((run / "tmp").iterdir()) == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_of_many_at_once_one_gets_it(tmp_path: Path, has_locks: bool) -> None:
    killed_holder(tmp_path)
    script = HOLD if has_locks else f"import fcntl, errno\n{NO_LOCKS}{HOLD}"
    together = [start_holder(tmp_path, script) for _ in range(4)]
    told = [first_line(process) for process in together]
    for process in together:
        process.communicate(timeout=20)
    assert told.count("held") == 1, told
    assert sum("another launch" in line for line in told) == 3


NO_LOCKS = "def flock(*_):\n    raise OSError(errno.ENOLCK, 'No locks available')\nfcntl.flock = flock\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file/run\.lock: .*choose another --out"):
        RunLock(tmp_path / "file").__enter__()


@small_fuzz
@given(st.binary(max_size=300) | st.dictionaries(st.sampled_from(FIELDS), st.integers() | st.text()).map(as_json))
def test_any_contents_are_a_holder_or_nothing(data: bytes) -> None:
    holder = Holder.parse(data)
    assert holder is None or Holder.parse(holder.encode()) == holder


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, bytes(1024), json.dumps({"pid": 1}).encode()])
def test_a_damaged_lock_file_is_nobodys(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    with RunLock(tmp_path):
        pass
