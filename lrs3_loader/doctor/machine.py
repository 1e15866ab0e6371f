"""Checks of shared memory, process limits and free disk; needs only the standard library."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

from lrs3_loader.doctor.check_result import CheckResult
from lrs3_loader.io.files import first_existing
from lrs3_loader.io.storage import Location

SHARED_MEMORY = Path("/dev/shm")
#: Three decoded chunks per worker wait there: 24 MB for five seconds of 224x224 frames, up to 256 MiB for long clips.
SHARED_BYTES_PER_WORKER = 128 << 20
MIN_OPEN_FILES = 1024
MIN_PROCESSES = 512
MIN_FREE_BYTES = 1 << 30
_RAISE_FILES = "raise it: ulimit -Hn 65536, or LimitNOFILE= of the service"
_RAISE_PROCESSES = "raise it: ulimit -u unlimited, or docker run --pids-limit -1"
_WHY_SPACE = "CUDA and mapped files reserve far more than they use"


def check_machine(out: Location, num_workers: int) -> list[CheckResult]:
    """Check this machine for a run in ``out`` with ``num_workers`` decode workers over all its ranks."""
    checks = [check_shared_memory(num_workers), *check_limits()]
    return [*checks, check_disk(out)] if isinstance(out, Path) else checks


def check_shared_memory(num_workers: int, place: Path = SHARED_MEMORY) -> CheckResult:
    """Check the shared memory, through which decode workers pass their frames; a container often has 64 MB."""
    name = str(place)
    try:
        found = os.statvfs(place)
    except OSError as error:
        remedy = f"mount a tmpfs there: {_shm_remedy(1 << 30)}"
        return CheckResult(name, "fail", f"cannot be used: {error.strerror}", remedy)
    free, needed = found.f_bavail * found.f_frsize, num_workers * SHARED_BYTES_PER_WORKER
    text = f"{_mib(free)} free, about {_mib(needed)} wanted by {num_workers} decode workers"
    if free >= needed:
        return CheckResult(name, "ok", text)
    return CheckResult(name, "warn", text, f"{_shm_remedy(needed)}; or fewer --workers, or a smaller --chunk-mebibytes")


def _shm_remedy(num_bytes: int) -> str:
    gib = -(-num_bytes // (1 << 30))
    return f"docker run --shm-size {gib}g, or mount -o remount,size={gib}g /dev/shm"


def check_limits() -> list[CheckResult]:
    """Check the limits of this process: open files (a run raises the soft limit to the hard one), processes, memory."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    too_few = "at most {}, {} wanted".format
    limits = (
        ("open files", files, MIN_OPEN_FILES, too_few(files, MIN_OPEN_FILES), _RAISE_FILES),
        ("processes", processes, MIN_PROCESSES, too_few(processes, MIN_PROCESSES), _RAISE_PROCESSES),
        ("address space", space, math.inf, f"limited to {_mib(space)}; {_WHY_SPACE}", "lift it: ulimit -v unlimited"),
    )
    checks = []
    for name, value, least, problem, remedy in limits:
        if value == resource.RLIM_INFINITY:
            checks.append(CheckResult(name, "ok", "unlimited"))
        elif value >= least:
            checks.append(CheckResult(name, "ok", f"at most {value}"))
        else:
            checks.append(CheckResult(name, "warn", problem, remedy))
    return checks


def check_disk(out: Path) -> CheckResult:
    """Check that the folder of the run, or its first existing parent, is writable and not full."""
    place = first_existing(out)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return CheckResult("disk", "fail", f"{place} is not a writable folder", "choose another --out")
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    text = f"{free / 1e9:.1f} GB free in {place}"
    if found.f_files and not found.f_favail:
        return CheckResult("disk", "fail", f"no inodes left in {place}", "remove files, or choose another --out")
    if free < MIN_FREE_BYTES:
        return CheckResult("disk", "warn", text, "free some space, or choose another --out")
    return CheckResult("disk", "ok", text)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes < 10 << 30 else f"{num_bytes / (1 << 30):.0f} GiB"
