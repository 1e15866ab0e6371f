"""A long run that is killed all the time, against the same run left in peace.

The corpus is a few generated clips under many names (hard links), one in fifty of them cut short. It is extracted twice
by the real command under torchrun: undisturbed, then with random kills of the whole job, of one rank (torchrun starts
all again) and of decode processes, until it is done. Then the two runs are compared byte by byte.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import ProcessHistory, TreeSampler, launch_processes
from lrs3_loader.demo import make_demo_corpus
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder

EXTRACT = Path(__file__).parents[1] / "extract.py"
DAMAGED_EVERY = 50
CLIP_SECONDS = (0.8, 0.85)
PREEMPTED_SECONDS = 30.0  # from SIGTERM to SIGKILL
LIMIT_SECONDS = 6 * 3600.0
FLAT = 0.05  # share of its memory that a process may still grow by in the second half of its life

Say = Callable[[str], None]


@dataclass(frozen=True)
class Soak:
    """Settings of a soak."""

    folder: Path
    clips: int = 2000
    ranks: int = 2
    workers: int = 1
    shard_clips: int = 20
    seed: int = 0
    quiet_seconds: tuple[float, float] = (8.0, 40.0)  # between two kills, counted from when decoders are at work
    max_kills: int = 100  # then it is left in peace
    assets: Path | None = None


@dataclass
class Launches:
    """Launches of one extraction and what they took."""

    seconds: float = 0.0
    num_launches: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    processes: list[ProcessHistory] = field(default_factory=list)


def run_soak(soak: Soak, say: Say) -> dict[str, Any]:
    """Both runs and their comparison, as plain JSON values.

    Raises:
        RunError: an extraction failed by itself, or the folder is not empty.
    """
    if soak.folder.exists() and any(soak.folder.iterdir()):
        raise RunError(f"{soak.folder} is not empty; choose another folder")
    corpus = make_corpus(soak)
    say(f"corpus: {soak.clips} clips")
    peaceful = extract(soak, corpus, "undisturbed", None, say)
    say(f"undisturbed: {peaceful.seconds:.0f} s")
    disturbed = extract(soak, corpus, "disturbed", random.Random(soak.seed), say)
    say(f"disturbed: {disturbed.seconds:.0f} s, {disturbed.num_launches} launches, kills: {dict(disturbed.kills)}")
    folders = [soak.folder / name for name in ("undisturbed", "disturbed")]
    runs = [RunFolder.open(folder) for folder in folders]
    totals = [run.totals() for run in runs]
    growths = growth_by_kind(peaceful.processes + disturbed.processes)
    return {
        "clips": soak.clips,
        "written": totals[1].num_samples,
        "rejected": len(totals[1].rejects),
        "reasons": dict(totals[1].reasons),
        "adds_up": totals[1].num_samples + len(totals[1].rejects) == soak.clips,
        "same_bytes": same_bytes(*folders),
        "same_rejects": totals[0].rejects == totals[1].rejects,
        "scratch_left": len(list((folders[1] / "tmp").iterdir())),
        "problems": sum(len(problems) for _, problems in runs[1].check()),
        "launches": disturbed.num_launches,
        "kills": dict(disturbed.kills),
        "seconds": {"undisturbed": round(peaceful.seconds, 1), "disturbed": round(disturbed.seconds, 1)},
        "growth": growths,
        "is_flat": all(growth <= FLAT for growth in growths.values()),
        "lives": {
            name: [memory_over_time(process) for process in launches.processes]
            for name, launches in (("undisturbed", peaceful), ("disturbed", disturbed))
        },
    }


def make_corpus(soak: Soak) -> Path:
    """Sixteen generated clips under ``soak.clips`` names."""
    base = make_demo_corpus(soak.folder / "base", num_speakers=4, clips_per_speaker=4, seconds=CLIP_SECONDS)
    corpus = soak.folder / "corpus"
    for number in range(soak.clips):
        key = base.keys[number % len(base.keys)]
        split, speaker, utterance = key.split("/")
        target = corpus / split / f"{speaker}_{number // len(base.keys):05d}" / utterance
        target.parent.mkdir(parents=True, exist_ok=True)
        source = base.folder / key
        if number % DAMAGED_EVERY == DAMAGED_EVERY - 1:
            whole = source.with_suffix(".mp4").read_bytes()
            target.with_suffix(".mp4").write_bytes(whole[: len(whole) // 2])
        else:
            os.link(source.with_suffix(".mp4"), target.with_suffix(".mp4"))
        if source.with_suffix(".txt").exists():
            os.link(source.with_suffix(".txt"), target.with_suffix(".txt"))
    return corpus


def command(soak: Soak, corpus: Path, out: Path) -> list[str]:
    """The extraction, restarted by torchrun as often as it takes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1000"]
    models = ["--face-model", "demo", "--hubert", "demo"]
    if soak.assets is not None:
        models += ["--assets", str(soak.assets)]
    where = ["--corpus", str(corpus), "--out", str(out), "--device", "cpu", "--workers", str(soak.workers)]
    tool = [str(EXTRACT), *where, *models, "--shard-clips", str(soak.shard_clips)]
    return [*torchrun, "--nproc_per_node", str(soak.ranks), *tool]


def extract(soak: Soak, corpus: Path, name: str, chance: random.Random | None, say: Say) -> Launches:
    """Launch until the run is done; with ``chance``, kill something now and then."""
    done = Launches()
    begun = time.monotonic()
    with TreeSampler(launch_processes, interval_seconds=0.5) as sampler, open(soak.folder / f"{name}.log", "ab") as log:
        while True:
            if time.monotonic() - begun > LIMIT_SECONDS:
                raise RunError(f"{name}: not done after {LIMIT_SECONDS:.0f} s")
            process = subprocess.Popen(
                command(soak, corpus, soak.folder / name), stdout=log, stderr=log, start_new_session=True
            )
            done.num_launches += 1
            sampler.root = process.pid
            try:
                code = process.wait() if chance is None else disturb(process, chance, soak, done.kills, say)
            finally:
                sampler.root = None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            if code == 0:
                break
            if code is not None:
                raise RunError(f"{name}: the extraction ended with exit code {code}; see {log.name}")
    done.seconds = time.monotonic() - begun
    done.processes = list(sampler.histories.values())
    return done


def disturb(
    process: subprocess.Popen[bytes], chance: random.Random, soak: Soak, kills: Counter[str], say: Say
) -> int | None:
    """Kill at random until the job ends by itself (its exit code) or was killed as a whole (None)."""
    while True:
        if (code := wait_for_work(process, soak.ranks)) is not None:
            return code
        is_enough = sum(kills.values()) >= soak.max_kills
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(None if is_enough else chance.uniform(*soak.quiet_seconds))
        what = chance.choices(("decoder", "rank", "job", "preempted"), (6, 3, 1, 1))[0]
        victims = [victim for victim, kind in launch_processes(process.pid) if kind == what]
        if what == "job":
            os.killpg(process.pid, signal.SIGKILL)
        elif what == "preempted":
            process.terminate()
        elif victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims).pid, signal.SIGKILL)
        else:
            continue
        kills[what] += 1
        say(f"killed: {what} ({sum(kills.values())})")
        if what in ("job", "preempted"):
            return end_of(process)


def end_of(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a job that was told to end. Its exit code if it was done before that; None otherwise."""
    try:
        return 0 if process.wait(PREEMPTED_SECONDS) == 0 else None
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the job still runs {PREEMPTED_SECONDS:.0f} s after SIGTERM") from error


def wait_for_work(process: subprocess.Popen[bytes], ranks: int) -> int | None:
    """Until every rank has a decoder, or the exit code if the job ends first."""
    while process.poll() is None:
        if sum(kind == "decoder" for _, kind in launch_processes(process.pid)) >= ranks:
            return None
        time.sleep(0.2)
    return process.returncode


def same_bytes(first: Path, second: Path) -> bool:
    """Whether two runs hold the same shards."""
    names = [sorted(path.name for path in (run / "shards").iterdir()) for run in (first, second)]
    return names[0] == names[1] and all(
        (first / "shards" / name).read_bytes() == (second / "shards" / name).read_bytes() for name in names[0]
    )


def memory_over_time(process: ProcessHistory) -> dict[str, Any]:
    """A process's private memory, as the report of a soak holds it."""
    return {"pid": process.pid, "kind": process.role, "seconds": process.seconds, "mebibytes": process.private_mib}


def growth_by_kind(processes: list[ProcessHistory]) -> dict[str, float]:
    """The largest growth of any process of each kind that lived long enough to tell, as a share of its memory."""
    growths: dict[str, float] = {}
    for process in processes:
        if process.growth is not None:
            growths[process.role] = max(growths.get(process.role, 0.0), round(process.growth, 3))
    return growths
