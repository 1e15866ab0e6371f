"""Defects that are known and not mended yet. A mark that covers nothing any more fails the long tests."""

from __future__ import annotations

from benchmarks.faults.power import CUT
from benchmarks.faults.sweep import KILL, Known

KNOWN = (
    Known("retry-rejects", "*", "*", "run/*.json is missing after resuming", "the old ledger goes before the new tar"),
    Known("retry-rejects", "*", "*", "run/*.tar has other contents after resuming", "as above"),
    Known("retry-rejects", "*", "*", "run/*.json has other contents after resuming", "its removal is not synced"),
    Known("retry-rejects", CUT, "*", "*.tar has * bytes, its ledger says *", "its removal is not synced"),
    *(
        Known("*", fault, "*", f"{name} is left over after resuming", "temporary files of killed commands stay")
        for name in ("set/.*.tmp", "parts/.*.tmp", "unpacked/*.tmp", "run/.stats.json.*.tmp")
        for fault in (KILL, CUT)
    ),
    *(
        Known("*", CUT, "*", f"{folder}/* was announced and is missing", "a new folder's own name is not synced")
        for folder in ("run", "imported", "set", "parts", "unpacked")
    ),
)
