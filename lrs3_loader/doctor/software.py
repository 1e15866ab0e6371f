"""Checks of Python and package versions, read from their metadata, and of whether the torch packages load together."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from packaging.version import InvalidVersion, Version

from lrs3_loader import __version__
from lrs3_loader.doctor.check_result import CheckResult, Level

OLDEST_PYTHON, NEWEST_PYTHON = Version("3.10"), Version("3.13")
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
OLDEST_TORCH, NEWEST_TORCH = Version("2.6"), Version("2.11")
TORCHAUDIO_TOO_NEW = Version("2.11.1")  # requires torch 2.11, but was built for a later one and does not load with it
TORCHVISION_LAG = 15  # since torch 2.0, torchvision 0.(n + 15) belongs to torch 2.n
PACKAGES = ("transformers", "huggingface_hub", "numpy", "scipy", "decord", "av", "praat-parselmouth", "webdataset")

Find = Callable[[str], str]  # the version of a package; raises PackageNotFoundError
Load = Callable[[str], ModuleType]  # imports a package


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
