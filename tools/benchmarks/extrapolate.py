"""What a measured speed would mean for all of LRS3."""

from __future__ import annotations

from benchmarks.results import Remark
from lrs3_loader.types import FRAMES_PER_SECOND

LRS3_FRAMES = 39_000_000


def lrs3_remark(frames_per_second: float, ranks: int, unit: str, assumption: str) -> Remark:
    """A line with its assumptions; ``frames_per_second`` is that of ``ranks`` together."""
    each = LRS3_FRAMES / frames_per_second / 86_400 * ranks
    hours = LRS3_FRAMES / FRAMES_PER_SECOND / 3600
    return Remark(
        f"all of LRS3 ({LRS3_FRAMES / 1e6:.0f} M frames, {hours:.0f} h) at {frames_per_second:.1f} frames/s on {ranks} "
        f"{unit}: {_duration(each / ranks)}; on 64 of them {_duration(each / 64)}. Assumes clips like these, storage "
        f"that keeps up, and that {assumption}"
    )


def _duration(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"
