"""Defects that are known and not mended yet. A mark that covers nothing any more fails the long tests."""

from __future__ import annotations

from benchmarks.faults.sweep import Known

KNOWN: tuple[Known, ...] = ()

#: Problems of schedules, by pattern (``*``), and why they are there.
KNOWN_SCHEDULES: dict[str, str] = {}
