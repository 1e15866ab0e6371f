"""Looks for what would spoil a run before it starts: each problem with its remedy.

check         one finding, and how findings are printed
software      versions, and whether torch, torchvision and torchaudio belong together and load
machine       shared memory, limits, free disk; standard library alone
room          how large a corpus's shards will be, against the free disk
trial         a real decode in a decode process, the GPU, the model files

``extract.py`` runs ``stop_if_unfit`` first: what can be known without torch, and then whether torch loads.
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
    """CheckResult versions and the machine, and that the torch packages load, on every rank; rank 0 reports for all.

    Raises:
        RunError: the run cannot work here (``SystemExit`` on the other ranks of the launch).
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
