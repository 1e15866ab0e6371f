"""Checks that need no torch: versions, limits, free memory and disk; and whether the torch packages load together.

Versions are read from the metadata of packages, the rest with the standard library.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from packaging.version import InvalidVersion, Version

from lrs3_loader import __version__
from lrs3_loader.errors import RunError, count_of
from lrs3_loader.io.files import first_existing
from lrs3_loader.io.storage import Location
from lrs3_loader.runtime.free_memory import available_bytes

OLDEST_PYTHON, NEWEST_PYTHON = Version("3.10"), Version("3.13")
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
OLDEST_TORCH, NEWEST_TORCH = Version("2.6"), Version("2.11")
TORCHAUDIO_TOO_NEW = Version("2.11.1")  # requires torch 2.11, but was built for a later one and does not load with it
TORCHVISION_LAG = 15  # since torch 2.0, torchvision 0.(n + 15) belongs to torch 2.n
PACKAGES = ("transformers", "huggingface_hub", "numpy", "scipy", "av", "praat-parselmouth", "webdataset")


#: What a rank takes, with HuBERT-large on a CPU, and a decode worker, both without frames.
RANK_BYTES, WORKER_BYTES = 3 << 30, 400 << 20
RANK_FRAMES, WORKER_FRAMES = 64, 4  # in memory at least: two batches on a CPU, and what a worker is asked for
MANY_RANKS = 4  # for each core: more is a mistake
MIN_OPEN_FILES = 1024
MIN_PROCESSES = 512
MIN_FREE_BYTES = 1 << 30
_RAISE_FILES = "raise it: ulimit -Hn 65536, or LimitNOFILE= of the service"
_RAISE_PROCESSES = "raise it: ulimit -u unlimited, or docker run --pids-limit -1"
_WHY_SPACE = "CUDA and mapped files reserve far more than they use"

Find = Callable[[str], str]  # the version of a package; raises PackageNotFoundError
Load = Callable[[str], ModuleType]  # imports a package
Level = Literal["ok", "warn", "fail"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """Result of one check: its name, what was found, and what to do about it."""

    name: str
    level: Level  # warn: a run works, but may be slow or stop early; fail: it does not work
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.level == "ok") == bool(self.remedy):
            raise ValueError(f"{self.name}: a problem needs a remedy, and nothing else does; got {self.remedy!r}")


def is_fit(checks: Sequence[CheckResult]) -> bool:
    """True if a run can work: no check failed."""
    return all(check.level != "fail" for check in checks)


def checks_json(checks: Sequence[CheckResult]) -> str:
    """Format results as a JSON object: ``fit`` (see ``is_fit``), ``versions``, and ``checks`` in their order."""
    record = {"fit": is_fit(checks), "versions": list_versions(), "checks": [asdict(check) for check in checks]}
    return json.dumps(record, indent=1)


def format_checks(checks: Sequence[CheckResult]) -> str:
    """Format results as one line per check, each remedy below its problem, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.level:<4}  {check.name:<{width}}  {check.text}")
        if check.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.remedy}")
    failed, warned = (sum(check.level == level for check in checks) for level in ("fail", "warn"))
    verdict = f"{failed} to fix" if failed else "fit to run"
    return "\n".join([*lines, verdict + (f", {warned} worth a look" if warned else "")])


def stop_if_unfit(out: Location, num_workers: int) -> None:
    """Check versions, the machine and that the torch packages load, on every rank; only rank 0 reports.

    Raises:
        RunError: a run cannot work on this machine (``SystemExit`` on the other ranks of the launch).
    """
    rank, ranks_here = (
        int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    checks = [*check_software(), *check_machine(out), check_memory(ranks_here, num_workers)]
    if is_fit(checks):
        checks.append(check_torch_loads())
    failed = [check for check in checks if check.level == "fail"]
    if rank != 0:
        if failed:
            raise SystemExit(1)
        return
    for check in checks:
        if check.level == "warn":
            logger.warning("%s: %s; %s", check.name, check.text, check.remedy)
    if failed:
        raise RunError("; ".join(f"{check.name}: {check.text}. {check.remedy}" for check in failed))


def check_software(find: Find = metadata.version) -> list[CheckResult]:
    """Check the versions of Python, of the three torch packages, and of the other packages."""
    versions = list_versions(find)
    return [
        _check_python(platform.python_version()),
        _check_torch({package: versions[package] for package in TORCH_PACKAGES}),
        _check_packages({package: versions[package] for package in PACKAGES}),
    ]


def list_versions(find: Find = metadata.version) -> dict[str, str | None]:
    """Return the versions of this package, Python, the system and all packages that a run needs (None: missing)."""
    versions: dict[str, str | None] = {
        "lrs3_loader": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for package in (*TORCH_PACKAGES, *PACKAGES):
        try:
            versions[package] = find(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _check_python(version: str) -> CheckResult:
    wanted = f"{OLDEST_PYTHON} to {NEWEST_PYTHON}"
    if OLDEST_PYTHON <= _minor(version) <= NEWEST_PYTHON:
        return CheckResult("python", "ok", version)
    level: Level = "fail" if _minor(version) < OLDEST_PYTHON else "warn"
    remedy = f"make a virtual environment with Python {wanted}"
    return CheckResult("python", level, f"{version}, {wanted} is tested", remedy)


def _check_torch(versions: dict[str, str | None]) -> CheckResult:
    found: dict[str, str] = {}
    for package, version in versions.items():
        if version is None:
            return CheckResult("torch packages", "fail", f"{package} is not installed", _install(NEWEST_TORCH))
        found[package] = version
    text = ", ".join(f"{package} {version}" for package, version in found.items())
    wanted, problem = NEWEST_TORCH, ""
    try:
        torch, torchvision, torchaudio = map(_minor, found.values())
        if not OLDEST_TORCH <= torch <= NEWEST_TORCH:
            problem = f"; torch must be {OLDEST_TORCH} to {NEWEST_TORCH}"
        else:
            wanted = torch
            if torchvision != Version(f"0.{torch.minor + TORCHVISION_LAG}") or torchaudio != torch:
                problem = " are not of one release"
            elif Version(found["torchaudio"]) >= TORCHAUDIO_TOO_NEW:
                problem = "; this torchaudio is built for a later torch"
            elif len({Version(version).local for version in found.values()}) > 1:
                problem = " are built for different CUDA versions, or for none"
    except InvalidVersion as error:
        problem = f": {error}"
    if problem:
        return CheckResult("torch packages", "fail", text + problem, _install(wanted))
    return CheckResult("torch packages", "ok", text)


def _minor(version: str) -> Version:
    """Return 2.11 for ``2.11.0+cu130``."""
    parsed = Version(version)
    return Version(f"{parsed.major}.{parsed.minor}")


def _install(torch: Version) -> str:
    wanted = f'"torch=={torch}.*" "torchvision==0.{torch.minor + TORCHVISION_LAG}.*"'
    return f'pip install --force-reinstall {wanted} "torchaudio=={torch}.*,<{TORCHAUDIO_TOO_NEW}"'


def check_torch_loads(load: Load = importlib.import_module) -> CheckResult:
    """Import torch, torchvision and torchaudio, which takes some seconds.

    Packages whose versions match may still be built for different CUDA versions, or for another Python.
    """
    name = "torch import"
    for package in TORCH_PACKAGES:
        try:
            load(package)
        except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library is missing or too old
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return CheckResult(name, "fail", f"{package} does not load ({reason})", _install(NEWEST_TORCH))
    return CheckResult(name, "ok", f"{', '.join(TORCH_PACKAGES)} load together")


def _check_packages(versions: dict[str, str | None]) -> CheckResult:
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        text = f"not installed: {', '.join(missing)}"
        return CheckResult("packages", "fail", text, f"pip install {' '.join(missing)}")
    return CheckResult("packages", "ok", ", ".join(f"{package} {version}" for package, version in versions.items()))


def check_machine(out: Location) -> list[CheckResult]:
    """Check the limits of this process and the disk for a run in ``out``."""
    return [*check_limits(), check_disk(out)] if isinstance(out, Path) else check_limits()


def check_memory(num_ranks: int, num_workers: int, height: int = 224, width: int = 224) -> CheckResult:
    """Check the memory for so many ranks with so many decode workers each, and frames of this size.

    Frames under way take a quarter of what is free, as far as there is more than the least that is counted here.
    """
    frame_bytes = 3 * height * width
    worker_bytes = WORKER_BYTES + WORKER_FRAMES * frame_bytes
    needed = num_ranks * (RANK_BYTES + RANK_FRAMES * frame_bytes + num_workers * worker_bytes)
    free = available_bytes()
    ranks, workers = count_of(num_ranks, "rank"), count_of(num_workers, "decode worker")
    text = (
        f"{_gib(free)} free, about {_gib(needed)} needed by {ranks} with {workers} each, for frames of {width}x{height}"
    )
    if free >= needed:
        return CheckResult("memory", "ok", text)
    remedy = "fewer ranks or --workers, or more memory (docker run --memory, sbatch --mem)"
    return CheckResult("memory", "warn", text, remedy)


def check_cores(num_ranks: int) -> CheckResult:
    """Check that so many ranks have a core each; their decode processes share what is left."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{count_of(num_ranks, 'rank')} on {count_of(cores, 'core')}"
    if num_ranks <= cores:
        return CheckResult("cores", "ok", text)
    remedy = f"at most {count_of(cores, 'rank')} (torchrun --nproc_per_node): more only wait for one another"
    return CheckResult("cores", "fail" if num_ranks > MANY_RANKS * cores else "warn", text, remedy)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"


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
