"""Checks of shared memory, process limits and free disk; needs only the standard library."""

from __future__ import annotations

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


def check_machine(out: Location, num_workers: int) -> list[CheckResult]:
    """Check this machine for a run in ``out`` with ``num_workers`` decode workers over all its ranks."""
    checks = [check_shared_memory(num_workers), check_open_files(), check_processes(), check_address_space()]
    return [*checks, check_disk(out)] if isinstance(out, Path) else checks


def check_shared_memory(num_workers: int, place: Path = SHARED_MEMORY) -> CheckResult:
    """Check the shared memory, through which decode workers pass their frames; a container often has 64 MB."""
    name = str(place)
    try:
        found = os.statvfs(place)
    except OSError as error:
        return CheckResult(
            name, "fail", f"cannot be used: {error.strerror}", f"mount a tmpfs there: {_shm_remedy(1 << 30)}"
        )
    free, needed = found.f_bavail * found.f_frsize, num_workers * SHARED_BYTES_PER_WORKER
    text = f"{_mib(free)} free, about {_mib(needed)} wanted by {num_workers} decode workers"
    if free >= needed:
        return CheckResult(name, "ok", text)
    return CheckResult(name, "warn", text, f"{_shm_remedy(needed)}; or fewer --workers, or a smaller --chunk-mebibytes")


def _shm_remedy(num_bytes: int) -> str:
    gib = -(-num_bytes // (1 << 30))
    return f"docker run --shm-size {gib}g, or mount -o remount,size={gib}g /dev/shm"


def check_open_files() -> CheckResult:
    """Check the hard limit of open files; a run raises the soft limit to it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _limit("open files", hard, MIN_OPEN_FILES, "raise it: ulimit -Hn 65536, or LimitNOFILE= of the service")


def check_processes() -> CheckResult:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    return _limit("processes", soft, MIN_PROCESSES, "raise it: ulimit -u unlimited, or docker run --pids-limit -1")


def check_address_space() -> CheckResult:
    """Check that the address space is unlimited: CUDA and memory-mapped files reserve far more than they use."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return CheckResult("address space", "ok", "unlimited")
    text = f"limited to {_mib(soft)}; CUDA and mapped files reserve far more than they use"
    return CheckResult("address space", "warn", text, "lift it: ulimit -v unlimited")


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


def _limit(name: str, value: int, least: int, remedy: str) -> CheckResult:
    if value == resource.RLIM_INFINITY:
        return CheckResult(name, "ok", "unlimited")
    text = f"at most {value}"
    return (
        CheckResult(name, "ok", text)
        if value >= least
        else CheckResult(name, "warn", f"{text}, {least} wanted", remedy)
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes < 10 << 30 else f"{num_bytes / (1 << 30):.0f} GiB"
