"""What a program and all its children take of the machine, sampled from /proc while it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Process:
    """One process, as far as it has been seen."""

    role: str
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0  # resident
    read_mb: float = 0.0  # from disk
    written_mb: float = 0.0  # to disk


@dataclass
class Usage:
    """What all processes of one run took."""

    seconds: float = 0.0  # from start to end
    output: str = ""
    processes: list[Process] = field(default_factory=list)
    gpu_seconds: float | None = None  # with at least one kernel running; None where it is not known
    gpu_peak_mib: float | None = None

    def cpu_seconds(self, role: str) -> float:
        return sum(process.cpu_seconds for process in self.processes if process.role == role)

    def peak_mib(self, role: str) -> float:
        """Of the largest single process of that role."""
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
    gpu = GpuSampler() if on_gpu and GpuSampler.is_available() else None
    started = time.perf_counter()
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        sampler = TreeSampler(child.pid, role_of)
        sampler.start()
        output, _ = child.communicate()
    finally:
        child.kill()
        child.wait()
        sampler.stop()
        if gpu is not None:
            gpu.stop()
    seconds = time.perf_counter() - started
    if child.returncode != 0:
        raise CommandFailedError(f"{' '.join(command)} ended with {child.returncode}:\n{output[-3000:]}")
    usage = Usage(seconds, output, list(sampler.processes.values()))
    if gpu is not None:
        usage.gpu_seconds, usage.gpu_peak_mib = gpu.busy_share() * seconds, gpu.peak_mib()
    return usage


class TreeSampler(threading.Thread):
    """Follows a process and its descendants, also those whose parent has ended."""

    def __init__(self, root: int, role_of: Callable[[str], str]) -> None:
        super().__init__(name="process-sampler", daemon=True)
        self.processes: dict[tuple[int, int], Process] = {}  # by pid and start time
        self._known = {root}
        self._role_of = role_of
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _sample(self) -> None:
        parents = {}
        stats = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                values = _stat(int(entry))
                if values is not None:
                    stats[int(entry)] = values
                    parents[int(entry)] = int(values[1])
        grown = True
        while grown:
            new = {pid for pid, parent in parents.items() if parent in self._known} - self._known
            self._known |= new
            grown = bool(new)
        for pid in self._known & stats.keys():
            self._update(pid, stats[pid])

    def _update(self, pid: int, values: list[str]) -> None:
        key = (pid, int(values[19]))
        process = self.processes.get(key)
        line = _command_line(pid)
        if process is None:
            process = self.processes[key] = Process(self._role_of(line))
        elif line:
            process.role = self._role_of(line)  # a process may become another program after its start
        process.cpu_seconds = (int(values[11]) + int(values[12])) / _TICKS
        process.peak_mib = max(process.peak_mib, int(values[21]) * _PAGE / 2**20)
        counts = _io_counts(pid)
        process.read_mb = counts.get("read_bytes", 0) / 1e6 or process.read_mb
        process.written_mb = counts.get("write_bytes", 0) / 1e6 or process.written_mb


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; None where the process has ended."""
    text = _read(pid, "stat")
    return text.rpartition(")")[2].split() if text else None


def _command_line(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ").strip()


def _io_counts(pid: int) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", _read(pid, "io"))}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # ended, or not ours to look at
        return ""


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
