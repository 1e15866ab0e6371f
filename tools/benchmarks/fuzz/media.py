"""Decodes damaged clips as an extraction does, and compares what comes out with what went in.

A clip may be a reject. If it is not, a frame that is under 30 dB from the truth must be known to be damaged, and audio
must be the audio of its frames. Neither can always be: some damage decodes without a contradiction. What is passed as
good is counted.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.fuzz.clips import KINDS, write_clip
from benchmarks.fuzz.damage import damage
from benchmarks.fuzz.supervise import Lost, run_cases
from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.types import Clip, DecodedChunk, Reject

BAD_DB = 30.0  # peak signal-to-noise ratio; compression is not counted, as both sides have it
WRONG_AUDIO = 0.1  # error of a window of 10 ms, as a share of the audio's root mean square
_WINDOW = 160  # samples
_MAX_LISTED = 10


class Truth(NamedTuple):
    """An intact clip: its bytes, its frames and its audio."""

    data: bytes
    frames: np.ndarray  # [T, H, W, 3] u8
    waveform: np.ndarray  # [640 T] f32


@dataclass(frozen=True)
class Verdict:
    """What became of one damaged clip."""

    kind: str = ""
    how: str = ""  # it was damaged
    reject: str = ""  # the reason, if it was rejected
    num_frames: int = 0
    num_caught: int = 0  # bad frames that are known to be damaged
    num_missed: int = 0  # bad frames that pass as good
    num_alarms: int = 0  # good frames that count as damaged
    wrong_ms: int = 0  # audio that is not that of its frames
    crash: str = ""  # an error that no caller expects


@dataclass
class Tally:
    """Sums over the damaged clips of one kind."""

    num_files: int = 0
    num_lost: int = 0  # their process hung or died, which costs the clip in an extraction
    rejects: Counter[str] = field(default_factory=Counter)
    num_frames: int = 0
    num_caught: int = 0
    num_missed: int = 0
    num_alarms: int = 0
    num_with_missed: int = 0  # clips
    wrong_ms: int = 0
    num_with_wrong_audio: int = 0  # clips with over 100 ms of it

    def add(self, found: Verdict | Lost) -> None:
        self.num_files += 1
        if isinstance(found, Lost):
            self.num_lost += 1
            return
        if found.reject:
            self.rejects[found.reject] += 1
        self.num_frames += found.num_frames
        self.num_caught += found.num_caught
        self.num_missed += found.num_missed
        self.num_alarms += found.num_alarms
        self.num_with_missed += found.num_missed > 0
        self.wrong_ms += found.wrong_ms
        self.num_with_wrong_audio += found.wrong_ms > 100

    def __str__(self) -> str:
        bad = self.num_caught + self.num_missed
        return (
            f"{self.num_files:>6,} files, {sum(self.rejects.values()):>6,} rejects, {self.num_lost} lost; "
            f"bad frames: {self.num_caught:,} of {bad:,} caught ({self.num_caught / max(bad, 1):.0%}), missed in "
            f"{self.num_with_missed:,} files; {self.num_alarms:,} alarms; audio: {self.wrong_ms / 1000:.1f} s wrong, "
            f"{self.num_with_wrong_audio:,} files over 0.1 s"
        )


class MediaFuzz:
    """A context manager that damages clips and judges what an extraction would get of them.

    Args:
        scratch: folder to work in.
        kinds: names of ``clips.KINDS``.
    """

    def __init__(self, scratch: Path | None, kinds: Sequence[str] = tuple(KINDS)):
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(
            prefix="lrs3-fuzz-", dir=scratch or (memory if memory.is_dir() else None)
        )
        self._kinds = tuple(kinds)
        self._truths: dict[str, Truth] = {}

    def __enter__(self) -> MediaFuzz:
        torch.set_num_threads(1)
        os.environ.setdefault("SVT_LOG", "0")  # the encoder of AV1 is talkative
        for name in self._kinds:
            path = Path(self._folder.name) / f"whole.{KINDS[name].suffix}"
            write_clip(path, KINDS[name])
            chunk = _decode(path)
            assert isinstance(chunk, DecodedChunk), chunk
            assert chunk.head is not None
            assert not chunk.damaged
            self._truths[name] = Truth(path.read_bytes(), chunk.frames.numpy(), chunk.head.waveform.numpy())
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, count: int, seed: int, num_workers: int) -> Iterator[tuple[int, Verdict | Lost]]:
        """Yield (number, verdict) for ``count`` damaged clips, from number ``seed`` on."""
        return run_cases(self.judge, range(seed, seed + count), num_workers)

    def kind_of(self, number: int) -> str:
        return self._kinds[number % len(self._kinds)]

    def damaged(self, number: int) -> tuple[bytes, str]:
        """Return the bytes of a damaged clip, and how it was damaged."""
        return damage(self._truths[self.kind_of(number)].data, random.Random(number))

    def judge(self, number: int) -> Verdict:
        """Decode one damaged clip and compare it with the truth."""
        kind = self.kind_of(number)
        data, how = self.damaged(number)
        path = Path(self._folder.name) / f"{os.getpid()}.{KINDS[kind].suffix}"
        path.write_bytes(data)
        try:
            result = _decode(path)
        except Exception as error:  # the fuzzer is to find these
            return Verdict(kind, how, crash=f"{type(error).__name__}: {error}")
        finally:
            path.unlink()
        if isinstance(result, Reject):
            return Verdict(kind, how, reject=result.reason)
        assert result.head is not None
        frames, waveform = result.frames.numpy(), result.head.waveform.numpy()
        return replace(compare(frames, waveform, result.damaged, self._truths[kind]), kind=kind, how=how)


def _decode(path: Path) -> DecodedChunk | Reject:
    dataset = ClipDataset(path.parent, DecodeConfig(), _no_pitch)
    return dataset[ChunkRequest(Clip("a/b/c", path.name, path.stat().st_size))]


def _no_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_rows, dtype=np.float32), num_rows


def compare(frames: np.ndarray, waveform: np.ndarray, damaged: Sequence[int], truth: Truth) -> Verdict:
    """Compare a decoded clip with the truth, of which it may have lost the beginning.

    Args:
        frames: [T, H, W, 3] u8.
        waveform: [640 T] f32.
        damaged: the frames that are known to be damaged.
    """
    if frames.shape[1:] != truth.frames.shape[1:]:
        is_bad, shift = np.ones(len(frames), dtype=bool), 0
    else:
        shift = _shift(frames, truth.frames)
        error = np.full(len(frames), np.inf)
        known = min(len(frames), len(truth.frames) - shift)
        wanted = truth.frames[shift : shift + known].astype(np.float32)
        error[:known] = np.square(frames[:known].astype(np.float32) - wanted).mean((1, 2, 3))
        is_bad = error > 255**2 / 10 ** (BAD_DB / 10)
    is_damaged = np.zeros(len(frames), dtype=bool)
    is_damaged[list(damaged)] = True
    return Verdict(
        num_frames=len(frames),
        num_caught=int((is_bad & is_damaged).sum()),
        num_missed=int((is_bad & ~is_damaged).sum()),
        num_alarms=int((~is_bad & is_damaged).sum()),
        wrong_ms=_wrong_ms(waveform, truth.waveform, 640 * shift),
    )


def _shift(frames: np.ndarray, truth: np.ndarray) -> int:
    """Return which frame of the truth the first frame is, by the least median distance."""
    small, whole = (each[:, ::6, ::6].reshape(len(each), -1).astype(np.float32) for each in (frames, truth))
    distances = []
    for shift in range(max(1, len(truth) - len(frames) + 1)):
        known = min(len(small), len(whole) - shift)
        distances.append(np.median(np.abs(small[:known] - whole[shift : shift + known]).mean(1)))
    return int(np.argmin(distances))


def _wrong_ms(waveform: np.ndarray, truth: np.ndarray, start: int) -> int:
    wanted = np.zeros_like(waveform)
    part = truth[start : start + len(waveform)]
    wanted[: len(part)] = part
    error = np.sqrt(np.square(waveform - wanted).reshape(-1, _WINDOW).mean(1))
    return 10 * int((error > WRONG_AUDIO * np.sqrt(np.square(truth).mean())).sum())


def run_benchmark(scratch: Path | None, count: int, seed: int, num_workers: int) -> Iterator[tuple[str, int]]:
    """Yield lines to print, each with the number of defects that it stands for."""
    begun, tallies, total, crashes, lost = perf_counter(), {name: Tally() for name in KINDS}, Tally(), [], []
    with MediaFuzz(scratch) as fuzz:
        for number, found in fuzz.run(count, seed, num_workers):
            for tally in (tallies[fuzz.kind_of(number)], total):
                tally.add(found)
            if isinstance(found, Lost):
                lost.append(f"{number} ({fuzz.kind_of(number)}, {fuzz.damaged(number)[1]}): {found.why}")
            elif found.crash:
                crashes.append(f"{number} ({found.kind}, {found.how}): {found.crash}")
    seconds = perf_counter() - begun
    yield from ((f"  {name:<10} {tally}", 0) for name, tally in tallies.items())
    yield f"damaged clips: {str(total).strip()}; {seconds:.0f} s ({60 * count / seconds:,.0f} a minute)", 0
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in total.rejects.most_common())
    yield f"  rejects: {reasons}; {len(crashes)} tracebacks", len(crashes)
    yield from ((f"  case {text}", 0) for text in (crashes + lost)[:_MAX_LISTED])
