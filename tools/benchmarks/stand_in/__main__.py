"""Runs a program on the stand-in device: ``python -m benchmarks.stand_in SCRIPT ARGS``, with ``tools`` on the path."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from benchmarks.stand_in.cuda import stand_in_device

if __name__ == "__main__":
    script, *sys.argv = sys.argv[1:2] + sys.argv[1:]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with stand_in_device(free_gib=1):
        runpy.run_path(script, run_name="__main__")
