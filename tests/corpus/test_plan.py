"""Shards cut from synthetic manifests; lengths estimated from real headers of files made here."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lrs3_loader.config import CorpusConfig, PlanConfig
from lrs3_loader.corpus.plan import (
    DEFAULT_BYTES_PER_FRAME,
    NUM_PROBES,
    calibrate,
    estimate_frames,
    make_plan,
    probe_frames,
)
from lrs3_loader.corpus.scan import scan_corpus
from lrs3_loader.errors import UnreadableError
from lrs3_loader.types import Clip

pytestmark = pytest.mark.smoke


def make_clips(count: int, split: str = "train", frames: int = 100) -> list[Clip]:
    size = frames * DEFAULT_BYTES_PER_FRAME
    return [Clip(f"{split}/s/{n:06d}", f"{split}/s/{n:06d}.mp4", size) for n in range(count)]


def write_video(path: Path, num_frames: int, rate: int = 25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_shards_keep_order_bounds_and_every_clip(tmp_path: Path) -> None:
    clips = make_clips(10, "test", 300) + make_clips(25, "train", 100)
    shards = make_plan(clips, PlanConfig(shard_frames=1000, shard_clips=8), tmp_path)
    assert [clip for shard in shards for clip in shard.clips] == clips
    assert [(shard.name, len(shard.clips)) for shard in shards] == [
        ("test-000000", 3),
        ("test-000001", 3),
        ("test-000002", 3),
        ("test-000003", 1),
        ("train-000000", 8),
        ("train-000001", 8),
        ("train-000002", 8),
        ("train-000003", 1),
    ]


def test_a_clip_longer_than_a_shard_stands_alone(tmp_path: Path) -> None:
    clips = make_clips(3, frames=400)
    clips[1] = replace(clips[1], num_bytes=10**9)
    shards = make_plan(clips, PlanConfig(shard_frames=1000), tmp_path)
    assert [len(shard.clips) for shard in shards] == [1, 1, 1]


def test_splits_whose_names_begin_alike_stay_apart(tmp_path: Path) -> None:
    clips = sorted(make_clips(2, "a") + make_clips(2, "a-b") + make_clips(2, "ab"), key=lambda clip: clip.key)
    names = [shard.name for shard in make_plan(clips, PlanConfig(), tmp_path)]
    assert sorted(names) == ["a-000000", "a-b-000000", "ab-000000"]


def test_no_clips_no_shards(tmp_path: Path) -> None:
    assert make_plan((), PlanConfig(), tmp_path) == ()


def test_unsorted_or_repeated_clips_are_refused(tmp_path: Path) -> None:
    clips = make_clips(2)
    for wrong in (clips[::-1], [clips[0], clips[0]]):
        with pytest.raises(ValueError, match="sorted by key"):
            make_plan(wrong, PlanConfig(), tmp_path)


def test_plan_does_not_depend_on_where_the_corpus_is_mounted(tmp_path: Path) -> None:
    plans = []
    for root in (tmp_path / "here", tmp_path / "there"):
        for n in range(5):
            write_video(root / f"test/a/{n}.mp4", 20 + n)
        clips = scan_corpus(CorpusConfig(corpus=root))
        plans.append(make_plan(clips, PlanConfig(shard_frames=50), root))
    assert plans[0] == plans[1]
    assert len(plans[0]) > 1


@pytest.mark.parametrize("rate", [25, 50])
def test_headers_give_lengths_at_25_fps(tmp_path: Path, rate: int) -> None:
    write_video(tmp_path / "v.mp4", 50, rate)
    assert probe_frames(tmp_path / "v.mp4") == pytest.approx(50 * 25 / rate, abs=1e-6)


def test_lengths_of_damaged_files_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 50)
    whole = (tmp_path / "v.mp4").read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a video\n" * 50}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableError, match=name):
            probe_frames(tmp_path / name)
    with pytest.raises(UnreadableError, match="gone"):
        probe_frames(tmp_path / "gone.mp4")


def test_calibration_passes_over_damaged_files(tmp_path: Path) -> None:
    for n in range(3):
        write_video(tmp_path / f"test/a/{n}.mp4", 40)
    (tmp_path / "test/a/3.mp4").write_bytes(b"x" * 10**6)
    clips = scan_corpus(CorpusConfig(corpus=tmp_path))
    size = clips[0].num_bytes / 40
    assert calibrate(clips, tmp_path) == pytest.approx(size, abs=1)
    assert calibrate(clips[3:], tmp_path) == DEFAULT_BYTES_PER_FRAME
    assert calibrate((), tmp_path) == DEFAULT_BYTES_PER_FRAME


@pytest.mark.timeout(30)
def test_a_pipe_does_not_stop_the_plan(tmp_path: Path) -> None:
    """It is opened by the main process, which would wait for a writer for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "anna").mkdir()
    os.mkfifo(tmp_path / "anna" / "own.mp4")
    (tmp_path / "anna" / "linked.mp4").symlink_to(tmp_path / "pipe")
    clips = scan_corpus(CorpusConfig(corpus=tmp_path))
    assert [(clip.key, clip.num_bytes) for clip in clips] == [("all/anna/linked", 0), ("all/anna/own", 0)]
    assert calibrate(clips, tmp_path) == DEFAULT_BYTES_PER_FRAME


def test_calibration_opens_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def probe(path: Path) -> float:
        opened.append(path)
        return 10.0

    monkeypatch.setattr("lrs3_loader.corpus.plan.probe_frames", probe)
    for count in (1, NUM_PROBES, NUM_PROBES + 1, 1000, 9999):
        opened.clear()
        assert calibrate(make_clips(count), tmp_path) == 10 * DEFAULT_BYTES_PER_FRAME
        assert min(count, NUM_PROBES // 2) <= len(opened) <= NUM_PROBES
        assert opened[0].name == "000000.mp4"


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [(None, None, 100.0), (1.0, None, 75.0), (1.0, 3.0, 50.0), (None, 2.0, 50.0), (9, None, 0)],
)
def test_parts_of_videos_count_by_their_times(start: float | None, end: float | None, frames: float) -> None:
    clip = replace(make_clips(1)[0], start_seconds=start, end_seconds=end)
    assert estimate_frames(clip, DEFAULT_BYTES_PER_FRAME) == frames


def test_real_corpus_is_estimated_within_a_third(shared_data: Path) -> None:
    root = shared_data / "lrs3_mini"
    clips = scan_corpus(CorpusConfig(corpus=root))
    per_frame = calibrate(clips, root)
    for clip in clips:
        assert estimate_frames(clip, per_frame) == pytest.approx(probe_frames(root / clip.video_path), rel=1 / 3)
