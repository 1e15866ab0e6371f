"""The figures of ``bench.py roofline``: an extraction on the stand-in device, priced for a card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.extrapolate import lrs3_remark
from benchmarks.inputs import RANDOM_WEIGHTS
from benchmarks.options import BenchOptions
from benchmarks.results import Figure, Remark
from benchmarks.roofline.cards import TRANSFER_EFFICIENCY, Card, Price, price
from benchmarks.roofline.rehearsal import Rehearsal, rehearse
from benchmarks.stand_in import most_common

GOAL_FRAMES_PER_SECOND = 17_000  # modelled: a real GPU reaches about 10,000, then


def measure(options: BenchOptions, card: Card, scratch: Path) -> Iterator[Figure | Remark]:
    """Run one shard on the stand-in device and yield what it would cost on the card."""
    yield Remark(
        f"A MODEL of a {card.name}, not a measurement: every kernel takes the longest of bytes / (0.75 of the memory's "
        "bandwidth), FLOPs / (0.6 of the data sheet's) and 2 microseconds, one after another. A real GPU is slower."
    )
    yield Remark(RANDOM_WEIGHTS)
    yield from describe(rehearse(options, scratch, card.memory_gib), card)


def describe(found: Rehearsal, card: Card) -> Iterator[Figure | Remark]:
    """The figures of one shard."""
    padding = 1 - found.num_frames / max(found.num_slots, found.num_frames)
    yield Remark(
        f"{found.num_frames} frames in {found.num_clips} clips; {100 * padding:.1f} % of the batches is padding"
    )
    total = price(found.record.kernels, card)
    for stage, kernels in found.kernels_by_stage().items():
        if kernels:
            yield _stage_figure(stage, price(kernels, card), total, found.num_frames)
    yield _stage_figure("all", total, total, found.num_frames)
    rate = found.num_frames / total.total_seconds
    yield Figure(
        "modelled", "device", rate, "frames/s", note=f"{GOAL_FRAMES_PER_SECOND / rate:.1f} times short of 17,000"
    )
    yield from _host(found, total, rate)
    yield from _feeding(found, card, rate)
    yield lrs3_remark(rate, 1, card.name, "the model holds and everything else keeps up")


def _stage_figure(stage: str, cost: Price, total: Price, num_frames: int) -> Figure:
    note = (
        f"{cost.num_kernels} kernels, {cost.num_bytes / num_frames / 1e6:.2f} MB and "
        f"{cost.num_flops / num_frames / 1e9:.2f} GFLOP a frame; bound by {cost.bound_by}"
    )
    share = cost.total_seconds / total.total_seconds
    return Figure("roofline", stage, 1e6 * cost.total_seconds / num_frames, "ms/1000", share=share, note=note)


def _host(found: Rehearsal, total: Price, rate: float) -> Iterator[Figure | Remark]:
    """What the host's side costs: dispatch and waits."""
    seconds = found.dispatch_seconds * total.num_kernels
    note = f"{1e6 * found.dispatch_seconds:.1f} us a kernel measured here, without the driver's launch"
    yield Figure(
        "host",
        "dispatch",
        1e6 * seconds / found.num_frames,
        "ms/1000",
        share=seconds * rate / found.num_frames,
        note=note,
    )
    waits = len(found.record.waits)
    yield Figure("host", "waits", waits / found.num_clips, "a clip", note=f"{waits} in this shard")
    for line in most_common((wait.place for wait in found.record.waits), 5).splitlines():
        yield Remark(f"waits {line.strip()}")


def _feeding(found: Rehearsal, card: Card, rate: float) -> Iterator[Figure | Remark]:
    """What it takes to keep the device busy at the modelled rate."""
    decoded = f"{1 / found.decode_seconds:,.0f} frames/s of one core of this machine, pitch included"
    yield Figure("feeding", "decode", rate * found.decode_seconds, "cores", note=decoded)
    yield Figure(
        "feeding", "shared memory", rate * found.frame_bytes / 1e9, "GB/s", note=f"{found.frame_bytes} bytes a frame"
    )
    for name, to_device in (("to the device", True), ("to the host", False)):
        num_bytes = found.record.bytes_copied(to_device) / found.num_frames
        share = num_bytes * rate / (card.transfer_bytes_per_second * TRANSFER_EFFICIENCY)
        yield Figure(
            "feeding", name, num_bytes * rate / 1e9, "GB/s", share=share, note=f"{num_bytes:,.0f} bytes a frame"
        )
