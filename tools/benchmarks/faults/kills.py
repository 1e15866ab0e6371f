"""Kills real ranks of real launches at random instants, and has the same command go on with another number of ranks.

Each rank is a process of its own, forked from this one, which has everything imported: a kill costs a fraction of a
second. Ranks find each other through torch.distributed's store on rank 0, lock and write a real folder, and are killed
by SIGKILL, one or all of them; the others are then asked to end, as torchrun does. Decoding and the models are
stand-ins (see ``scenarios``).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from unittest import mock

import torch.distributed as dist
from tqdm import tqdm

from benchmarks.faults import scenarios
from benchmarks.faults.scenarios import SCENARIOS, Ending, Laboratory, Scenario, digest, run_command
from benchmarks.faults.sweep import differences, is_hidden
from lrs3_loader.launch import leases

RANKS = (1, 2, 3, 4)
STAGES = ("fresh", "retry-rejects")  # of one run, which is then begun again
PATIENCE_SECONDS = 60.0  # for ranks that were asked to end
_MAX_LISTED = 20


@dataclass
class KillResult:
    """What was done and found."""

    num_kills: int = 0  # launches of which something was killed before they had ended
    num_processes: int = 0  # that were killed
    by_ranks: Counter[int] = field(default_factory=Counter)  # kills by the number of ranks of the launch
    num_runs: int = 0  # that were completed and compared
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Killer:
    """Launches, kills and compares.

    Args:
        laboratory: where the commands run; already entered.
        seed: of all that is drawn.
    """

    def __init__(self, laboratory: Laboratory, seed: int):
        self._laboratory = laboratory
        self._draw = random.Random(seed)
        self._seconds: dict[int, float] = {}  # that an undisturbed launch takes, by its number of ranks
        self._number = 0
        self._port = 0  # of the store

    def run(self, count: int) -> KillResult:
        """Kill ``count`` launches, and complete the run that was under way."""
        result, begun = KillResult(), perf_counter()
        with self._patched(), store_of_another_process() as self._port:
            for stage in STAGES:
                self._laboratory.result(SCENARIOS[stage])
            self._measure()
            while result.num_kills < count:
                self._laboratory.restore({})
                for stage in STAGES:
                    self._complete(SCENARIOS[stage], result, count)
                result.num_runs += 1
        result.seconds = perf_counter() - begun
        return result

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        draw = random.Random()

        class Extractor(scenarios._Extractor):
            def process_frames(self, *arguments: object) -> object:  # type: ignore[override]
                time.sleep(draw.uniform(0.0, 0.03))
                return super().process_frames(*arguments)  # type: ignore[arg-type]

        with (
            mock.patch.object(scenarios, "_Extractor", Extractor),
            mock.patch.object(leases, "_POLL_SECONDS", 0.01),
            mock.patch.object(tqdm, "monitor_interval", 0),
        ):
            yield

    def _measure(self) -> None:
        for num_ranks in RANKS:
            self._laboratory.restore({})
            begun = perf_counter()
            launch = self._launch(SCENARIOS["fresh"], num_ranks)
            endings = launch.wait(PATIENCE_SECONDS)
            assert all(ending is not None and ending.code == 0 for ending in endings), endings
            self._seconds[num_ranks] = perf_counter() - begun

    def _launch(self, scenario: Scenario, num_ranks: int) -> _Launch:
        self._number += 1
        self._laboratory.is_second = scenario.is_second
        words = [
            word.format(world=self._laboratory.world, corpus=self._laboratory.corpus)
            for word in scenario.command.split()
        ]
        endings = self._laboratory.corpus.with_name(f"endings{self._number}")
        return _Launch(words, num_ranks, self._number, self._port, endings)

    def _complete(self, scenario: Scenario, result: KillResult, count: int) -> None:
        """Launch a command until it has ended, killing it each time if that is still to be done."""
        wanted = digest(self._laboratory.result(scenario))
        before = digest(self._laboratory.start(scenario))
        for _ in range(1000):
            num_ranks = RANKS[self._number % len(RANKS)]
            launch = self._launch(scenario, num_ranks)
            if result.num_kills < count:
                time.sleep(self._draw.uniform(0.0, 0.8 * self._seconds[num_ranks]))
                victims = launch.kill(self._draw)
                result.num_processes += victims
                result.num_kills += victims > 0
                result.by_ranks[num_ranks] += victims > 0
            endings = launch.wait(PATIENCE_SECONDS)
            where = f"launch {self._number} ({scenario.name}, {num_ranks} ranks)"
            result.problems += [f"{where}: {problem}" for problem in self._problems(scenario, endings, before, wanted)]
            if all(ending is not None and ending.code == 0 for ending in endings):
                break
        else:
            result.problems.append(f"{scenario.name} is not completed by 1000 launches")
        found = digest(self._laboratory.tree())
        result.problems += [f"{scenario.name}: {text}" for text in differences(found, wanted, "in the end")]

    def _problems(
        self, scenario: Scenario, endings: list[Ending | None], before: dict[str, str], wanted: dict[str, str]
    ) -> Iterator[str]:
        for rank, ending in enumerate(endings):
            if ending is None:
                continue  # killed
            if ending.crash or "Traceback" in ending.errors:
                yield f"rank {rank} ends in a traceback: {ending.crash or ending.errors[-300:]}"
            if ending.code is None:
                yield f"rank {rank} has not ended {PATIENCE_SECONDS:.0f} s after it was asked to"
        tree = self._laboratory.tree()
        yield from self._laboratory.half_published(scenario, tree)
        for path, contents in digest(tree).items():
            if not is_hidden(path) and contents not in (before.get(path), wanted.get(path)):
                yield f"{path} is neither what it was nor what it is to be"


@contextlib.contextmanager
def store_of_another_process() -> Iterator[int]:
    """Keep a store for the ranks of all launches, whose threads would get in the way of forking; yields its port."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, b"%d\n" % store.port)
        while True:
            signal.pause()
    os.close(writing)
    with open(reading, "rb") as ports:
        port = int(ports.readline())
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class _Launch:
    """The ranks of one launch."""

    def __init__(self, words: list[str], num_ranks: int, number: int, port: int, endings: Path):
        self._endings = endings
        own = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num_ranks),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(number),  # each launch has its own part of the store
        }
        self._pids = [self._fork(words, {**own, "RANK": str(rank)}) for rank in range(num_ranks)]
        self._alive = set(self._pids)

    def _fork(self, words: list[str], variables: dict[str, str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.environ.update(variables)
            tqdm.set_lock(threading.RLock())  # the usual one is shared with processes that may have been killed with it
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch's store writes stack traces there
            ending = run_command(words)
            with open(f"{self._endings}.{variables['RANK']}", "wb") as file:
                pickle.dump(ending, file)
            code = ending.code or 0
        finally:
            os._exit(code)

    def kill(self, draw: random.Random) -> int:
        """Kill one rank, and ask the others to end a little later; or kill all. Return how many were still at work."""
        self._reap()
        if not self._alive:
            return 0
        victims = sorted(self._alive) if draw.random() < 0.3 else [draw.choice(sorted(self._alive))]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            os.waitpid(pid, 0)
            self._alive.discard(pid)
        time.sleep(draw.choice((0.0, 0.05)))
        self._reap()
        for pid in self._alive:
            os.kill(pid, signal.SIGTERM)
        return len(victims)

    def _reap(self) -> None:
        for pid in list(self._alive):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._alive.discard(pid)

    def wait(self, patience_seconds: float) -> list[Ending | None]:
        """Wait until every rank has ended; returns how each did: None if it was killed, without a code if it hung."""
        until = time.monotonic() + patience_seconds
        while self._alive and time.monotonic() < until:
            self._reap()
            time.sleep(0.002)
        hung = set(self._alive)
        for pid in hung:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return [Ending(None, "hung") if pid in hung else self._ending(rank) for rank, pid in enumerate(self._pids)]

    def _ending(self, rank: int) -> Ending | None:
        path = Path(f"{self._endings}.{rank}")
        if not path.exists():
            return None
        with contextlib.suppress(EOFError, pickle.UnpicklingError):  # killed while it wrote that
            ending: Ending = pickle.loads(path.read_bytes())
            path.unlink()
            return ending
        return None


def run_benchmark(laboratory: Laboratory, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yield lines to print, each with the number of defects that it stands for."""
    found = Killer(laboratory, seed).run(count)
    ranks = ", ".join(f"{number:,} on {ranks}" for ranks, number in sorted(found.by_ranks.items()))
    yield f"killed launches: {found.num_kills:,} of {found.num_runs:,} runs ({ranks} ranks), all completed", 0
    pace = 60 * found.num_kills / found.seconds
    yield f"  {len(found.problems)} problems; {found.seconds:.0f} s ({pace:,.0f} a minute)", len(found.problems)
    yield from ((f"  {problem}", 0) for problem in found.problems[:_MAX_LISTED])
