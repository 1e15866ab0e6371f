"""What a measured speed would mean for all of LRS3."""

from __future__ import annotations

from lrs3_loader.bench.results import Remark
from lrs3_loader.types import FRAMES_PER_SECOND

LRS3_FRAMES = 39_000_000
LRS3_CLIPS = 152_000


def lrs3_remark(frames_per_second: float, ranks: int, unit: str, assumption: str) -> Remark:
    """A line with its assumptions; ``frames_per_second`` is that of ``ranks`` together."""
    days = LRS3_FRAMES / frames_per_second / 86_400
    length = f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"
    hours = LRS3_FRAMES / FRAMES_PER_SECOND / 3600
    return Remark(
        f"LRS3 whole ({LRS3_FRAMES / 1e6:.0f} M frames, {hours:.0f} h, {LRS3_CLIPS // 1000}k clips) at "
        f"{frames_per_second:.0f} frames/s on {ranks} {unit}: {length}, or {days * ranks:.1f} days divided by the "
        f"number of them; assuming clips like these, storage that keeps up, and that {assumption}"
    )
