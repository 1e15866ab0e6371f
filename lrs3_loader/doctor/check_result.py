"""Result of one check, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


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


def checks_json(checks: Sequence[CheckResult], versions: Mapping[str, str | None]) -> str:
    """Format results as a JSON object: ``fit`` (see ``is_fit``), ``versions``, and ``checks`` in their order."""
    record = {"fit": is_fit(checks), "versions": dict(versions), "checks": [asdict(check) for check in checks]}
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
