"""Clips of large frames stay within their budget of shared memory, and the watch sees what is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import large_frames
from lrs3_loader.decode.shared_memory import create_shared, map_shared


def test_large_frames_stay_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_frames, "SIZES", {"720p": (720, 1280)})
    first, second = large_frames.run_benchmark(tmp_path, ["720p"], seconds=4.0, clips=2, mebibytes=40, num_workers=2)
    assert first == ("2 clips of 4 s in 720p: 200 of 200 frames", True)
    assert second[1]
    assert "shared memory 0 of" not in second[0]


def test_the_watch_counts_each_memory_once() -> None:
    before = large_frames.shared_bytes()
    descriptor = create_shared(3 << 20)
    maps = [map_shared(descriptor, 3 << 20) for _ in range(2)]
    os.close(descriptor)
    assert large_frames.shared_bytes() - before == 3 << 20
    del maps
    assert large_frames.shared_bytes() == before
