"""Defects that are known and not mended yet. A mark that covers nothing any more fails the long tests."""

from __future__ import annotations

from benchmarks.faults.power import CUT
from benchmarks.faults.sweep import Known

KNOWN = (
    Known("retry-rejects", "*", "*", "run/*.json is missing after resuming", "the old ledger goes before the new tar"),
    Known("retry-rejects", "*", "*", "run/*.tar has other contents after resuming", "as above"),
    Known("retry-rejects", CUT, "*", "run/*.json has other contents after resuming", "its removal is not synced"),
    Known("retry-rejects", CUT, "*", "*.tar has * bytes, its ledger says *", "its removal is not synced"),
)
