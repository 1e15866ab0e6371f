"""Checks before a run that it can work; reports each problem with its remedy.

check_result  result of one check, and how results are printed
software      versions, and whether torch, torchvision and torchaudio match and load
machine       shared memory, limits, free disk; uses only the standard library
disk_space    estimated size of the shards, compared with the free disk space
trial         a real decode in a decode process, the GPU, the model files

``lrs3-loader extract`` runs ``stop_if_unfit`` first: the checks that need no torch, then whether torch loads.
"""

from __future__ import annotations

import logging
import os

from lrs3_loader.doctor.check_result import CheckResult, checks_json, format_checks, is_fit
from lrs3_loader.doctor.machine import check_machine
from lrs3_loader.doctor.software import check_software, check_torch_loads, list_versions
from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import Location

__all__ = [
    "CheckResult",
    "check_machine",
    "check_software",
    "check_torch_loads",
    "checks_json",
    "format_checks",
    "is_fit",
    "list_versions",
    "stop_if_unfit",
]

logger = logging.getLogger(__name__)


def stop_if_unfit(out: Location, num_workers: int) -> None:
    """Check versions, the machine and that the torch packages load, on every rank; only rank 0 reports.

    Raises:
        RunError: a run cannot work on this machine (``SystemExit`` on the other ranks of the launch).
    """
    rank, ranks_here = (
        int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    checks = [*check_software(), *check_machine(out, num_workers * ranks_here)]
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
