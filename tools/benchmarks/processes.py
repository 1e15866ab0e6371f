"""Samples what a program and all its children take of the machine while it runs."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from lrs3_loader.errors import RunError

try:
    import psutil
except ImportError as error:
    raise RunError("following processes needs psutil: pip install 'lrs3_loader[bench]'") from error

SAMPLE_SECONDS = 0.05
MIN_SECONDS = 60.0  # of life, for a process's memory to have a direction
WARM_UP_SHARE = 0.4  # of a life, in which caches still fill

#: Processes of a launch by their depth in the tree; helpers start decoders and count them.
Kind = Literal["torchrun", "rank", "helper", "decoder"]
KINDS: tuple[Kind, ...] = ("torchrun", "rank", "helper", "decoder")

FindProcesses = Callable[[int], Iterable[tuple[psutil.Process, str]]]  # id of the first one -> (process, role)


@dataclass
class ProcessHistory:
    """One process, as far as it has been seen."""

    role: str
    pid: int = 0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0  # resident
    read_mb: float = 0.0  # from disk
    written_mb: float = 0.0  # to disk
    seconds: list[float] = field(default_factory=list)  # of each sample, since the sampling began
    private_mib: list[float] = field(default_factory=list)  # at each sample; what is shared in transit is left out

    @property
    def growth(self) -> float | None:
        """Growth of private memory after warm-up, as a share of it; None for a life too short to tell."""
        if not self.seconds or self.seconds[-1] - self.seconds[0] < MIN_SECONDS:
            return None
        settled = self.private_mib[round(WARM_UP_SHARE * len(self.private_mib)) :]
        third = max(1, len(settled) // 3)
        return median(settled[-third:]) / max(median(settled[:third]), 1.0) - 1


@dataclass
class Usage:
    """What all processes of one run took."""

    seconds: float = 0.0  # from start to end
    output: str = ""
    processes: list[ProcessHistory] = field(default_factory=list)
    gpu_seconds: float | None = None  # with at least one kernel running; None where it is not known
    gpu_peak_mib: float | None = None

    def cpu_seconds(self, role: str) -> float:
        return sum(process.cpu_seconds for process in self.processes if process.role == role)

    def peak_mib(self, role: str) -> float:
        """The largest single process of that role."""
        return max((process.peak_mib for process in self.processes if process.role == role), default=0.0)

    @property
    def read_mb(self) -> float:
        return sum(process.read_mb for process in self.processes)

    @property
    def written_mb(self) -> float:
        return sum(process.written_mb for process in self.processes)


class CommandFailedError(RuntimeError):
    """A command that is being measured ended with an error."""


def run_measured(command: Sequence[str], env: dict[str, str], role_of: Callable[[str], str], on_gpu: bool) -> Usage:
    """Run a command to its end.

    Args:
        role_of: names the part a process plays, given its command line (arguments joined by blanks).

    Raises:
        CommandFailedError: it ended with an error; the message ends with its last lines.
    """

    def find(root: int) -> Iterator[tuple[psutil.Process, str]]:
        first = psutil.Process(root)
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if words := process.cmdline():  # a process that is ending has none, and keeps the role that it had
                    yield process, role_of(" ".join(words))

    gpu = GpuSampler() if on_gpu and GpuSampler.is_available() else None
    started = time.perf_counter()
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with TreeSampler(find, SAMPLE_SECONDS, child.pid) as sampler:
            output, _ = child.communicate()
    finally:
        child.kill()
        child.wait()
        if gpu is not None:
            gpu.stop()
    seconds = time.perf_counter() - started
    if child.returncode != 0:
        raise CommandFailedError(f"{' '.join(command)} ended with {child.returncode}:\n{output[-3000:]}")
    usage = Usage(seconds, output, list(sampler.histories.values()))
    if gpu is not None:
        usage.gpu_seconds, usage.gpu_peak_mib = gpu.busy_share() * seconds, gpu.peak_mib()
    return usage


class TreeSampler:
    """Follows a process and its descendants in a thread, also those whose parent has ended. A context manager."""

    def __init__(self, find: FindProcesses, interval_seconds: float, root: int | None = None) -> None:
        """``root``: id of the first process, or None while there is none; may be set to another later."""
        self.histories: dict[psutil.Process, ProcessHistory] = {}  # psutil tells a reused id from its first owner
        self.root = root
        self._find, self._interval = find, interval_seconds
        self._begun = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process-sampler", daemon=True)

    def __enter__(self) -> TreeSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            root = self.root
            if root is None:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                for process, role in self._find(root):
                    # A process may become another program after its start.
                    self.histories.setdefault(process, ProcessHistory(role, process.pid)).role = role
            for process, history in self.histories.items():
                with contextlib.suppress(psutil.Error):  # it has ended, or is not ours to look at
                    self._update(process, history)

    def _update(self, process: psutil.Process, history: ProcessHistory) -> None:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            if not memory.rss:  # it has ended, and its parent does not know yet
                return
            history.cpu_seconds = times.user + times.system
            history.peak_mib = max(history.peak_mib, memory.rss / 2**20)
            history.seconds.append(round(time.monotonic() - self._begun, 1))
            history.private_mib.append(round((memory.rss - memory.shared) / 2**20, 1))
            counts = process.io_counters()
            history.read_mb, history.written_mb = counts.read_bytes / 1e6, counts.write_bytes / 1e6


def launch_processes(root: int) -> Iterator[tuple[psutil.Process, Kind]]:
    """A launch's first process and all below it: torchrun, its ranks, their helpers, and the decoders."""
    level = [psutil.Process(root)] if psutil.pid_exists(root) else []
    for kind in KINDS:
        yield from ((process, kind) for process in level)
        level = [child for process in level for child in _children(process)]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []


class GpuSampler:
    """How busy the GPUs are, as ``nvidia-smi`` tells five times a second."""

    def __init__(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        self._child = subprocess.Popen(
            [*command, "--loop-ms=200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._text = ""

    @staticmethod
    def is_available() -> bool:
        return shutil.which("nvidia-smi") is not None

    def stop(self) -> None:
        self._child.terminate()
        self._text = self._child.communicate()[0]

    def busy_share(self) -> float:
        """0..1, mean over samples and GPUs."""
        busy = [share for share, _ in parse_gpu_samples(self._text)]
        return sum(busy) / len(busy) / 100 if busy else 0.0

    def peak_mib(self) -> float:
        return max((used for _, used in parse_gpu_samples(self._text)), default=0.0)


def parse_gpu_samples(text: str) -> list[tuple[float, float]]:
    """Lines ``utilisation %, memory MiB``; those cut short or without a number are left out."""
    return [(float(a), float(b)) for a, b in re.findall(r"^\s*(\d+),\s*(\d+)\s*$", text, re.MULTILINE)]
