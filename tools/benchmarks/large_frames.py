"""Decodes long clips of large frames within a budget of shared memory, and watches how much is really taken."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from lrs3_loader.config import DecodeConfig, WorkerConfig
from lrs3_loader.decode.loader import ClipLoader
from lrs3_loader.types import FRAMES_PER_SECOND, Clip, DecodedChunk

SIZES = {"1080p": (1080, 1920), "4K": (2160, 3840)}  # height, width
SOURCE_RATE = 1  # frames per second: what counts is the size of the 25 per second that they become
_PERIOD = 0.05  # seconds between two looks at the memory


def write_clip(path: Path, size: tuple[int, int], seconds: float) -> None:
    """Encode a picture in which a square moves, with a tone."""
    height, width = size
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=SOURCE_RATE, options={"preset": "ultrafast", "threads": "1"})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        picture = np.full((height, width, 3), 90, np.uint8)
        for number in range(round(seconds * SOURCE_RATE)):
            picture[:64, :] = 90
            picture[:64, number * 8 % (width - 64) :][:, :64] = 200
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, SOURCE_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = (0.2 * np.sin(np.arange(round(seconds * 16_000)) / 8)).astype(np.float32)
        for start in range(0, len(samples), 1024):
            block = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16_000, start, Fraction(1, 16_000)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))


class SharedMemoryWatch:
    """A context manager: the most shared memory that this process and its descendants had at one moment, in bytes."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SharedMemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD):
            self.most_bytes = max(self.most_bytes, shared_bytes())


def shared_bytes() -> int:
    """Return the bytes of anonymous shared memory that this process and its descendants have mapped, each once."""
    found: dict[str, int] = {}
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        except OSError:
            continue  # it has ended
        for line in lines:
            if "/memfd:lrs3-loader" in line:
                start, stop = (int(end, 16) for end in line.split()[0].split("-"))
                inode = line.split()[4]
                found[inode] = max(found.get(inode, 0), stop - start)
    return sum(found.values())


def flat_pitch(waveform: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Stand in for Praat."""
    return np.zeros(num_rows, np.float32), num_rows


def run_benchmark(
    scratch: Path, sizes: Sequence[str], seconds: float, clips: int, mebibytes: int, num_workers: int
) -> Iterator[tuple[str, bool]]:
    """Yield lines to print, each with whether the budget was kept and all frames came."""
    for name in sizes:
        path = scratch / f"{name}.mp4"
        write_clip(path, SIZES[name], seconds)
        again = [path, *(scratch / f"{name}-{number}.mp4" for number in range(1, clips))]
        for link in again[1:]:
            os.link(path, link)
        listed = [(0, Clip(f"a/b/{each.stem}", each.name, path.stat().st_size)) for each in again]
        config = DecodeConfig(max_frames=round(seconds * FRAMES_PER_SECOND) + 1)
        workers = WorkerConfig(num_workers=num_workers, frames_mebibytes=mebibytes)
        begun, num_frames, num_chunks, problems = time.perf_counter(), 0, 0, []
        with SharedMemoryWatch() as watch, ClipLoader(listed, scratch, config, workers, pitch=flat_pitch) as loader:
            for _, chunk in loader:
                if isinstance(chunk, DecodedChunk):
                    num_frames += len(chunk.frames)
                    num_chunks += 1
                else:
                    problems.append(chunk.message)
        wanted = clips * round(seconds * FRAMES_PER_SECOND)
        is_good = num_frames == wanted and not problems and watch.most_bytes <= mebibytes << 20
        took, most = time.perf_counter() - begun, watch.most_bytes >> 20
        yield f"{clips} clips of {seconds:.0f} s in {name}: {num_frames:,} of {wanted:,} frames", is_good
        yield f"  {num_chunks:,} chunks, {took:.0f} s; shared memory {most:,} of {mebibytes:,} MiB", is_good
        yield from ((f"  {problem}", False) for problem in problems)
