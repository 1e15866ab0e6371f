"""What ``tools/bench.py faults`` is asked for; imports nothing that takes time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FaultOptions:
    """How much of each part of the fault benchmark is run."""

    points: int = 1_000_000
    """File calls that fail, at most, of each scenario; 0: none."""
    states: int = 1_000_000
    """States of the disk after a power cut, at most, of each scenario; 0: none."""
    requests: int = 5
    """Requests to object storage that fail in each of six ways, at most, of each scenario; 0: none. Needs moto and
    s3fs (the extra "test")."""
    schedules: int = 2_000
    """Schedules; 0: none. Of a single one, what happens is printed."""
    kills: int = 200
    """Launches on 1 to 4 ranks that are killed at random instants; 0: none."""
    republish_seconds: float = 60.0
    """How long shards are published again while readers stream them; 0: not at all."""
    clips: int = 20_000
    """Damaged clips in a dozen formats, which are decoded and compared with the truth; 0: none."""
    files: int = 50_000
    """Damaged files of every other kind: tars, ledgers, arrays, transcripts...; 0: none."""
    workers: int = os.cpu_count() or 1
    """Processes that read damaged clips and files."""
    seed: int = 0
    """Of the first schedule, and of all that is chosen or drawn."""
    scenario: tuple[str, ...] = ()
    """Only these scenarios: fresh, resumed, export..."""
    scratch: Path | None = None
    """Folder to work in (memory when not given)."""
