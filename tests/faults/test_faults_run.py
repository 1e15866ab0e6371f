"""Whole runs under fire: killed ranks, preemption, hung and killed decoders, two launches at once, jumping clocks."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks.processes import launch_processes
from benchmarks.soak import Soak, run_soak
from lrs3_loader import demo
from lrs3_loader.config import DecodeConfig, LaunchConfig, WorkerConfig
from lrs3_loader.decode.dataset import ChunkRequest, ClipDataset
from lrs3_loader.decode.loader import ClipLoader
from lrs3_loader.errors import RunError
from lrs3_loader.launch import runner
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.lock import FILE_NAME
from lrs3_loader.types import Clip, Reject
from support.fault_tools import long
from support.media_files import noise, promising, truncated, write_media
from support.pitch_stubs import CRASHES, HANGS, flat_pitch, no_memory, tricky_pitch
from support.whole_runs import command, config_for, extract, processes_naming, shard_bytes

pytestmark = pytest.mark.faults

OPTIONS = ("--shard-clips", "1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoCorpus:
    return demo.make_demo_corpus(
        tmp_path_factory.mktemp("corpus") / "demo", num_speakers=2, clips_per_speaker=4, seconds=(0.8, 1.1)
    )


@pytest.fixture(scope="module")
def good(
    corpus: demo.DemoCorpus,
    assets: Path | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The shards of an undisturbed run."""
    out = tmp_path_factory.mktemp("good") / "out"
    extract(config_for(corpus.folder), out, assets)
    return shard_bytes(out)


@contextmanager
def launched(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process: subprocess.Popen[str], out: Path, num_shards: int, kind: str = "rank") -> list[int]:
    """Until some shards are published; the ids of the launch's processes of a kind."""
    until = time.monotonic() + 240
    while len(list(out.glob("ledger/*.json"))) < num_shards:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.05)
    return [found.pid for found, its_kind in launch_processes(process.pid) if its_kind == kind]


def torchrun(corpus: demo.DemoCorpus, out: Path, assets: Path | None, *more: str) -> list[str]:
    arguments = command(corpus.folder, out, assets, 2, *OPTIONS)
    place = arguments.index("--standalone")
    return [*arguments[:place], *more, *arguments[place:]]


@long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_started_again_by_torchrun(
    corpus: demo.DemoCorpus,
    good: dict[str, bytes],
    assets: Path | None,
    tmp_path: Path,
    victim: int,
) -> None:
    out = tmp_path / "out"
    with launched(torchrun(corpus, out, assets, "--max-restarts", "3")) as process:
        ranks = wait_for(process, out, 1)
        assert len(ranks) == 2
        os.kill(sorted(ranks)[victim], signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "another launch" not in errors
    assert shard_bytes(out) == good
    assert not (out / FILE_NAME).exists()
    assert list((out / "tmp").iterdir()) == []


@long
@pytest.mark.parametrize("everyone", [False, True], ids=["torchrun told", "all told"])
def test_a_preempted_job_ends_in_time_and_resumes(
    corpus: demo.DemoCorpus,
    good: dict[str, bytes],
    assets: Path | None,
    tmp_path: Path,
    everyone: bool,
) -> None:
    out = tmp_path / "out"
    with launched(torchrun(corpus, out, assets)) as process:
        wait_for(process, out, 1)
        if everyone:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
        begun = time.monotonic()
        process.communicate(timeout=30)
        assert time.monotonic() - begun < 30
        assert process.returncode != 0
        until = time.monotonic() + 5
        while processes_naming(str(out)):
            assert time.monotonic() < until
            time.sleep(0.1)
    assert list((out / "tmp").iterdir()) == []
    assert not (out / FILE_NAME).exists()
    assert len(list(out.glob("ledger/*.json"))) == len(list(out.glob("shards/*.tar"))) < len(good)
    extract(config_for(corpus.folder), out, assets)
    assert shard_bytes(out) == good


@long
def test_a_second_launch_is_refused_and_the_first_goes_on(
    corpus: demo.DemoCorpus,
    good: dict[str, bytes],
    assets: Path | None,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with launched(torchrun(corpus, out, assets)) as first:
        holder = sorted(wait_for(first, out, 1))
        second = subprocess.run(
            command(corpus.folder, out, assets, 1, *OPTIONS), capture_output=True, text=True, timeout=240
        )
        if first.poll() is None:
            assert second.returncode == 1
            [line] = [line for line in second.stderr.splitlines() if line.startswith("error:")]
            assert f"{out} is being written by another launch (process " in line
            assert any(f"process {pid} on" in line for pid in holder)
            assert "Traceback" not in second.stderr
        _, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert shard_bytes(out) == good


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) {
    static int (*real)(clockid_t, struct timespec *);
    struct timespec t;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    real(CLOCK_MONOTONIC, &t);
    return (t.tv_sec % 3 - 1) * 86400L * 400;
}
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, t);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) t->tv_sec += jump();
    return code;
}
time_t time(time_t *where) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (where) *where = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *tv, void *tz) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    tv->tv_sec = t.tv_sec;
    tv->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture
def jumping_clock(tmp_path: Path) -> dict[str, str]:
    """Environment in which the time of day jumps by 400 days every second, in every process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to make a clock that jumps")
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


@long
def test_a_clock_that_jumps(
    corpus: demo.DemoCorpus,
    good: dict[str, bytes],
    assets: Path | None,
    tmp_path: Path,
    jumping_clock: dict[str, str],
) -> None:
    dates = subprocess.run(
        ["sh", "-c", "for i in 1 2 3 4; do date +%Y; sleep 1; done"], env=jumping_clock, capture_output=True, text=True
    )
    assert len(set(dates.stdout.split())) > 1  # it does jump
    out = tmp_path / "out"
    done = subprocess.run(torchrun(corpus, out, assets), env=jumping_clock, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert shard_bytes(out) == good


@long
def test_hung_and_killed_decoders_cost_their_clips_only(
    corpus: demo.DemoCorpus,
    assets: Path | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process of one clip hangs for ever; another's is killed, as the kernel does it when memory runs out.

    ``tricky_pitch`` tells them by their length.
    """
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    for name, length in (("hangs", HANGS), ("killed", CRASHES)):
        sound = noise(length / 25, 16_000)
        write_media((folder / corpus.keys[0]).with_name(f"{name}.mp4"), num_frames=length, sound=sound)
    monkeypatch.setattr(runner, "f0_praat", tricky_pitch)
    workers = WorkerConfig(num_workers=1, deadline_seconds=8.0)
    launch = LaunchConfig(out=tmp_path / "out", assets=assets, device="cpu", workers=workers)
    config = replace(config_for(folder), plan=replace(config_for(folder).plan, shard_clips=3))
    outcome = runner.run(config, launch, WorkQueue(dist.HashStore(), 0, 1))
    assert outcome is not None
    assert {key.split("/")[-1]: reason for key, reason, _ in outcome.totals.rejects} == {
        "hangs": "decoder_hung",
        "killed": "decoder_crashed",
    }
    assert outcome.totals.num_samples == len(corpus.keys)


@long
def test_a_short_soak(assets: Path | None, tmp_path: Path) -> None:
    """``tools/soak.py`` is the long one."""
    clips = int(os.environ.get("LRS3_LOADER_SOAK", "60"))
    soak = Soak(tmp_path / "soak", clips=clips, shard_clips=5, quiet_seconds=(1.0, 8.0), max_kills=5, assets=assets)
    found = run_soak(soak, print)
    assert sum(found["kills"].values()) > 0
    assert found["adds_up"]
    assert found["same_bytes"]
    assert found["same_rejects"]
    assert found["reasons"] == {"unreadable": clips // 50}
    assert (found["scratch_left"], found["problems"]) == (0, 0)


def write_hostile(folder: Path, good_clip: Path) -> dict[str, str]:
    """Clips that nobody would wish for, and what is to become of each: a reason, or nothing."""
    folder.mkdir(parents=True)
    whole = good_clip.read_bytes()
    ends = {}
    for name in ("new\nline", os.fsdecode(b"no utf-8 \xff"), "\x1b[31mred", "quote'\"$(reboot)"):
        (folder / f"{name}.mp4").write_bytes(whole)
        ends[name] = ""
        truncated(good_clip, folder / f"cut {name}.mp4", 0.5)
        ends[f"cut {name}"] = "unreadable"
    os.symlink("loop.mp4", folder / "loop.mp4")
    os.symlink("nowhere.mp4", folder / "dangling.mp4")
    os.symlink(".", folder / "again")
    promising(good_clip, folder / "many.mp4", 10**9)
    png = write_media(folder / "wide.mov", num_frames=10, video_codec="png", sound=noise(0.4, 16_000)).read_bytes()
    size = struct.pack(">II", 64, 64)
    (folder / "wide.mov").write_bytes(png.replace(b"IHDR" + size, b"IHDR" + struct.pack(">II", 100_000, 100_000)))
    ends |= dict.fromkeys(("loop", "dangling", "many", "wide"), "unreadable")
    for name, text in (("long", b"Text: x\n"), ("latin1", b"Text: caf\xe9\n")):
        (folder / f"{name}.mp4").write_bytes(whole)
        (folder / f"{name}.txt").write_bytes(text)
        ends[name] = "bad_transcript"
    os.truncate(folder / "long.txt", 100_000_000)
    return ends


def test_files_of_every_kind_and_name(assets: Path | None, tmp_path: Path) -> None:
    """Odd names are extracted, odd files rejected; whatever a file is called, its reject is one printable line."""
    one = demo.make_demo_corpus(tmp_path / "demo", num_speakers=1, clips_per_speaker=1, seconds=(0.8, 0.8))
    ends = write_hostile(tmp_path / "clips" / "test" / "someone", one.folder / f"{one.keys[0]}.mp4")
    config = config_for(tmp_path / "clips")
    outcome = extract(replace(config, plan=replace(config.plan, shard_clips=100)), tmp_path / "out", assets)
    assert outcome.totals.num_samples == sum(not reason for reason in ends.values())
    assert Counter(reason for _, reason, _ in outcome.totals.rejects) == Counter(filter(None, ends.values()))
    assert all(message.isprintable() for _, _, message in outcome.totals.rejects)
    reopened = RunFolder.open(tmp_path / "out")
    assert all(problems == [] for _, problems in reopened.check())


def test_a_clip_that_memory_does_not_suffice_for_costs_itself(tmp_path: Path) -> None:
    write_media(tmp_path / "a.mp4", num_frames=10, sound=noise(0.4, 16_000))
    clip = Clip("a/b/c", "a.mp4", (tmp_path / "a.mp4").stat().st_size)
    with ClipLoader([(0, clip)], tmp_path, DecodeConfig(), WorkerConfig(num_workers=1), pitch=no_memory) as loader:
        [(_, result)] = loader
    assert isinstance(result, Reject)
    assert (result.reason, result.message) == ("too_large", "a.mp4: not enough memory to decode it")


@pytest.mark.parametrize("is_left", [False, True], ids=["no folder", "an empty folder"])
def test_a_corpus_that_goes_away_is_no_clips_fault(tmp_path: Path, is_left: bool) -> None:
    """As when its disk is unmounted: without this, every clip left would be rejected and the run be done."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    dataset = ClipDataset(corpus, DecodeConfig(), flat_pitch)
    request = ChunkRequest(Clip("a/b/c", "a.mp4", 1))
    missing = dataset[request]
    assert isinstance(missing, Reject)
    assert missing.reason == "unreadable"
    corpus.rename(tmp_path / "elsewhere")
    if is_left:
        corpus.mkdir()
    with pytest.raises(RunError, match=r"not what it was .* a\.mp4 is not in it: mount or restore it"):
        dataset[request]
