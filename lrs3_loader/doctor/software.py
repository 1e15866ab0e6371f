"""Python and package versions, read from their metadata, and whether the torch packages load beside one another."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from lrs3_loader import __version__
from lrs3_loader.doctor.check_result import CheckResult, Level

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
TRIO = ("torch", "torchvision", "torchaudio")
OLDEST_TORCH, NEWEST_TORCH = (2, 6), (2, 11)
TORCHAUDIO_TOO_NEW = (2, 11, 1)  # asks for torch 2.11, but is built for a later one and does not load beside it
TORCHVISION_LAG = 15  # torchvision 0.26 belongs to torch 2.11, and so on since 2.0
PACKAGES = ("transformers", "huggingface_hub", "numpy", "scipy", "decord", "av", "praat-parselmouth", "webdataset")

Find = Callable[[str], str]  # the version of a package; raises PackageNotFoundError
Load = Callable[[str], ModuleType]  # imports a package


def check_software(find: Find = metadata.version) -> list[CheckResult]:
    """Python, the trio of torch packages, and the others."""
    return [_check_python(sys.version_info[:3]), _check_trio(find), _check_packages(find)]


def list_versions(find: Find = metadata.version) -> dict[str, str | None]:
    """Versions of this package, of Python, of the system and of every package that a run needs; None: not installed."""
    versions: dict[str, str | None] = {
        "lrs3_loader": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for package in (*TRIO, *PACKAGES):
        try:
            versions[package] = find(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _check_python(version: tuple[int, ...]) -> CheckResult:
    text = ".".join(map(str, version))
    if OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON:
        return CheckResult("python", "ok", text)
    wanted = " to ".join(".".join(map(str, bound)) for bound in (OLDEST_PYTHON, NEWEST_PYTHON))
    level: Level = "fail" if version[:2] < OLDEST_PYTHON else "warn"
    return CheckResult(
        "python", level, f"{text}, {wanted} is tested", f"make a virtual environment with Python {wanted}"
    )


def _check_trio(find: Find) -> CheckResult:
    name = "torch packages"
    found = {}
    for package in TRIO:
        try:
            found[package] = find(package)
        except metadata.PackageNotFoundError:
            return CheckResult(name, "fail", f"{package} is not installed", _install(NEWEST_TORCH))
    text = ", ".join(f"{package} {version}" for package, version in found.items())
    numbers = {package: _numbers(version)[:2] for package, version in found.items()}
    torch = numbers["torch"]
    if not OLDEST_TORCH <= torch <= NEWEST_TORCH:
        bounds = " to ".join(".".join(map(str, bound)) for bound in (OLDEST_TORCH, NEWEST_TORCH))
        return CheckResult(name, "fail", f"{text}; torch must be {bounds}", _install(NEWEST_TORCH))
    if numbers["torchvision"] != (0, torch[1] + TORCHVISION_LAG) or numbers["torchaudio"] != torch:
        return CheckResult(name, "fail", f"{text} are not of one release", _install(torch))
    if _numbers(found["torchaudio"]) >= TORCHAUDIO_TOO_NEW:
        return CheckResult(name, "fail", f"{text}; this torchaudio is built for a later torch", _install(torch))
    builds = {version.partition("+")[2] for version in found.values()}
    if len(builds) > 1:
        return CheckResult(name, "fail", f"{text} are built for different CUDA versions, or for none", _install(torch))
    return CheckResult(name, "ok", text)


def check_torch_loads(load: Load = importlib.import_module) -> CheckResult:
    """Import torch, torchvision and torchaudio: versions that look right may still be built for different CUDA
    versions, or for another Python. Takes the seconds that importing torch takes."""
    name = "torch import"
    for package in TRIO:
        try:
            load(package)
        except (ImportError, OSError, RuntimeError) as error:  # OSError: a shared library is missing or too old
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return CheckResult(name, "fail", f"{package} does not load ({reason})", _install(NEWEST_TORCH))
    return CheckResult(name, "ok", f"{', '.join(TRIO)} load beside one another")


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 11, 0) of ``2.11.0+cu130``; (0, 0, 0) of what is no version."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)


def _install(torch: tuple[int, ...]) -> str:
    major, minor = torch
    too_new = ".".join(map(str, TORCHAUDIO_TOO_NEW))
    wanted = f'"torch=={major}.{minor}.*" "torchvision==0.{minor + TORCHVISION_LAG}.*"'
    return f'pip install --force-reinstall {wanted} "torchaudio=={major}.{minor}.*,<{too_new}"'


def _check_packages(find: Find) -> CheckResult:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {find(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return CheckResult(
            "packages", "fail", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return CheckResult("packages", "ok", ", ".join(found))
