"""The dataset, and the loader around it: order, chunks, hung and crashed workers, memory, leftovers."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from lrs3_loader.config import DecodeConfig, WorkerConfig
from lrs3_loader.decode.dataset import ChunkRequest, ClipDataset
from lrs3_loader.decode.loader import ClipLoader
from lrs3_loader.errors import REASONS
from lrs3_loader.types import Clip, DecodedChunk, Reject
from support import media_files as files
from support.paths import TESTS
from support.pitch_stubs import (
    CRASHES,
    HANGS,
    HANGS_WITH_LOCK,
    RAISES,
    SLOW,
    crash_once,
    flat_pitch,
    scarce_pitch,
    tricky_pitch,
)

Result = DecodedChunk | Reject


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short clips of 10..35 frames, some long ones, and damaged ones."""
    folder = tmp_path_factory.mktemp("corpus")
    for length in (10, 11, 12, 13, HANGS, HANGS_WITH_LOCK, CRASHES, RAISES, SLOW, 300, 301):
        sound = files.noise(length / 25, 16_000, seed=length)
        files.write_media(folder / f"{length}.mp4", num_frames=length, sound=sound)
    (folder / "text.mp4").write_text("no film")
    files.write_media(folder / "silent.mp4", num_frames=10)
    return folder


def clip_of(root: Path, name: object, copy: int = 0, **options: object) -> Clip:
    path = root / f"{name}.mp4"
    size = path.stat().st_size if path.exists() else 0
    return Clip(f"test/{name}/{copy}", path.name, size, **options)  # type: ignore[arg-type]


CONFIG = DecodeConfig()
PATIENT = WorkerConfig(num_workers=2, deadline_seconds=20.0)
SMALL_CHUNKS = dataclasses.replace(CONFIG, chunk_mebibytes=1)  # 85 frames of 64 x 64, in parts of 128


def load(
    root: Path, names: list[object], config: DecodeConfig = CONFIG, workers: WorkerConfig = PATIENT
) -> list[tuple[int, Result]]:
    clips = [(index, clip_of(root, name, index)) for index, name in enumerate(names)]
    with ClipLoader(clips, root, config, workers, pitch=tricky_pitch) as loader:
        return list(loader)


def worker_config(num_workers: int) -> WorkerConfig:
    return dataclasses.replace(PATIENT, num_workers=num_workers)


def numbers_in(chunk: DecodedChunk) -> list[int]:
    return [files.frame_number(frame) for frame in chunk.frames.numpy()]


def decode(root: Path, clip: Clip, config: DecodeConfig = CONFIG, start: int = 0) -> Result:
    return ClipDataset(root, config, flat_pitch)[ChunkRequest(clip, start)]


# The dataset --------------------------------------------------------------------------------------------------------


def test_one_clip(root: Path) -> None:
    chunk = decode(root, clip_of(root, 13))
    assert isinstance(chunk, DecodedChunk)
    assert numbers_in(chunk) == list(range(13))
    assert chunk.is_last
    assert chunk.head is not None
    source = chunk.head.source
    assert (source.num_frames, source.height, source.width) == (13, 64, 64)
    assert (source.sample_rate, source.num_channels, source.num_missing_samples) == (16_000, 1, 0)
    assert source.frames_per_second == pytest.approx(25)
    assert chunk.head.num_f0_rows == 25
    assert chunk.head.transcript is None


def test_real_clips_with_transcripts(shared_data: Path) -> None:
    root = shared_data / "lrs3_mini"
    paths = sorted(root.rglob("*.mp4"))
    assert paths
    for path in paths:
        name = path.relative_to(root)
        clip = Clip(
            name.with_suffix("").as_posix(), name.as_posix(), 0, transcript_path=name.with_suffix(".txt").as_posix()
        )
        chunk = decode(root, clip)
        assert isinstance(chunk, DecodedChunk), chunk
        assert chunk.frames.shape[1:] == (224, 224, 3)
        assert chunk.head is not None
        assert chunk.head.transcript is not None
        assert len(chunk.head.transcript.boxes) == chunk.num_frames
        assert chunk.head.waveform.abs().max() > 0.01


def test_real_clips_of_other_shapes(shared_data: Path) -> None:
    root = shared_data / "clips"
    shapes = {}
    for path in sorted(root.glob("*.mp4")):
        chunk = decode(root, Clip(f"a/b/{path.stem}", path.name, 0), SMALL_CHUNKS)
        assert isinstance(chunk, DecodedChunk), chunk
        shapes[path.name.split("_")[0]] = (chunk.num_frames, *chunk.frames.shape[1:3])
    assert shapes == {
        "glasses": (489, 480, 480),  # 512 pixels wide in the file, with an aspect ratio of 15:16
        "may": (125, 512, 512),
        "silent": (208, 480, 480),
        "smallface": (150, 720, 1280),
    }


def test_expected_failures_become_rejects(root: Path) -> None:
    wanted = {"gone": "unreadable", "text": "unreadable", "silent": "no_sound"}
    for name, reason in wanted.items():
        result = decode(root, clip_of(root, name))
        assert isinstance(result, Reject)
        assert result.reason == reason
        assert f"{name}.mp4" in result.message
    bounds = [(DecodeConfig(min_frames=11), "too_short"), (DecodeConfig(max_frames=9), "too_large")]
    for config, reason in bounds:
        result = decode(root, clip_of(root, 10), config)
        assert isinstance(result, Reject)
        assert result.reason == reason
    (root / "bad.txt").write_text("nothing of a transcript")
    result = decode(root, clip_of(root, 10, transcript_path="bad.txt"))
    assert isinstance(result, Reject)
    assert result.reason == "bad_transcript"
    assert "bad.txt" in result.message
    assert str(root) not in result.message
    assert {*wanted.values(), "too_short", "too_large", "bad_transcript"} <= set(REASONS)


def test_unexpected_failures_are_let_through(root: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        ClipDataset(root, CONFIG, tricky_pitch)[ChunkRequest(clip_of(root, RAISES))]


def test_a_part_of_a_video(root: Path) -> None:
    whole, part = decode(root, clip_of(root, 300)), decode(root, clip_of(root, 300, start_seconds=2.0, end_seconds=5.0))
    assert isinstance(whole, DecodedChunk)
    assert isinstance(part, DecodedChunk)
    assert numbers_in(part) == list(range(50, 125))
    assert whole.head is not None
    assert part.head is not None
    assert part.head.source.num_excess_samples == 0
    assert torch.equal(part.head.waveform, whole.head.waveform[50 * 640 : 125 * 640])
    late = decode(root, clip_of(root, 300, start_seconds=8.0, end_seconds=12.2))
    assert isinstance(late, DecodedChunk)
    assert late.num_frames == 100
    beyond = decode(root, clip_of(root, 300, start_seconds=8.0, end_seconds=13.0))
    assert isinstance(beyond, Reject)
    assert beyond.reason == "length_mismatch"


def test_an_audio_file_next_to_the_video(root: Path) -> None:
    sound = files.clicks(0.4, 16_000, [0.2])
    files.write_media(root / "other.m4a", num_frames=0, sound=sound)
    chunk = decode(root, dataclasses.replace(clip_of(root, "silent"), sound_path="other.m4a"))
    assert isinstance(chunk, DecodedChunk)
    assert chunk.head is not None
    assert files.click_times(chunk.head.waveform.numpy()) == pytest.approx([0.2], abs=0.001)
    gone = decode(root, dataclasses.replace(clip_of(root, "silent"), sound_path="gone.m4a"))
    assert isinstance(gone, Reject)
    assert "gone.m4a" in gone.message


# The loader ---------------------------------------------------------------------------------------------------------


def same(left: Result, right: Result) -> bool:
    if isinstance(left, Reject) or isinstance(right, Reject):
        return left == right
    heads = left.head, right.head
    if heads[0] is not None and heads[1] is not None and not torch.equal(heads[0].waveform, heads[1].waveform):
        return False
    where = (left.clip, left.start, left.num_frames) == (right.clip, right.start, right.num_frames)
    return where and torch.equal(left.frames, right.frames)


def test_order_and_results_do_not_depend_on_the_workers(root: Path) -> None:
    names = [SLOW, 10, 300, 11, "text", 301, 12, 10, "silent", SLOW, 13, 300]
    first = load(root, names, SMALL_CHUNKS, worker_config(1))
    assert [tag for tag, _ in first] == [0, 1, *[2] * 5, 3, 4, *[5] * 5, 6, 7, 8, 9, 10, *[11] * 5]
    for workers in (2, 3):
        again = load(root, names, SMALL_CHUNKS, worker_config(workers))
        assert [tag for tag, _ in again] == [tag for tag, _ in first]
        assert all(same(a, b) for (_, a), (_, b) in zip(first, again, strict=True))


def test_chunks_of_a_long_clip_make_up_the_whole(root: Path) -> None:
    whole = decode(root, clip_of(root, 301))
    assert isinstance(whole, DecodedChunk)
    chunks = [chunk for _, chunk in load(root, [301], SMALL_CHUNKS)]
    assert [(c.start, len(c.frames)) for c in chunks if isinstance(c, DecodedChunk)] == [
        (0, 85),
        (85, 43),
        (128, 85),
        (213, 43),
        (256, 45),
    ]
    assert torch.equal(torch.cat([c.frames for c in chunks if isinstance(c, DecodedChunk)]), whole.frames)


def test_frames_cross_in_shared_memory(root: Path) -> None:
    [(_, chunk)] = load(root, [10])
    assert isinstance(chunk, DecodedChunk)
    mapped = next(
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if int(line.split("-")[0], 16) <= chunk.frames.data_ptr() < int(line.split("-")[1].split()[0], 16)
    )
    assert "rw-s" in mapped
    assert "memfd:lrs3-loader" in mapped


def shared_mebibytes() -> float:
    """Frames that this process and its workers have in memory; pages that several map are counted once."""
    pids = [os.getpid(), *(child.pid for child in active_children())]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Pss_Shmem")) / 1024


@pytest.fixture(scope="module")
def hd(root: Path) -> Path:
    """Three clips of 24 frames of 1920 x 1080: 149 MB each."""
    for name in ("hd0", "hd1", "hd2"):
        files.write_media(root / f"{name}.mp4", num_frames=24, size=(1080, 1920), sound=files.noise(0.96, 16_000))
    return root


def test_large_frames_stay_within_the_memory_that_is_given(hd: Path) -> None:
    small = dataclasses.replace(PATIENT, frames_mebibytes=48)
    clips = [(index, clip_of(hd, f"hd{index}")) for index in range(3)]
    most, numbers = 0.0, []
    with ClipLoader(clips, hd, CONFIG, small, pitch=flat_pitch) as loader:
        for _, chunk in loader:
            assert isinstance(chunk, DecodedChunk)
            numbers += numbers_in(chunk)
            most = max(most, shared_mebibytes())
    assert numbers == 3 * list(range(24))
    assert most < 48 + 6 * 2  # and the chunk at hand, of a frame or two


@pytest.mark.parametrize(("free_bytes", "reason"), [(20 << 20, None), (3 << 20, "too_large")])
def test_memory_that_runs_out_costs_speed_or_the_clip(hd: Path, free_bytes: int, reason: str | None) -> None:
    """``scarce_pitch`` leaves a worker so much memory once it has begun a clip. A frame has 6 MB."""
    clips = [(0, clip_of(hd, 10)), (1, clip_of(hd, "hd0")), (2, clip_of(hd, 11))]
    pitch = functools.partial(scarce_pitch, free_bytes)
    pitch.__module__ = scarce_pitch.__module__
    with ClipLoader(clips, hd, CONFIG, worker_config(1), pitch=pitch) as loader:
        results = list(loader)
    large = [result for tag, result in results if tag == 1]
    if reason is None:
        assert [number for chunk in large if isinstance(chunk, DecodedChunk) for number in numbers_in(chunk)] == [
            *range(24)
        ]
        assert len(large) > 4
    else:
        (reject,) = large
        assert isinstance(reject, Reject)
        assert reject.reason == reason
        assert "hd0.mp4: not enough memory" in reject.message
    assert [tag for tag, result in results if tag != 1 and isinstance(result, DecodedChunk)] == [0, 2]


def test_no_clips(root: Path) -> None:
    assert load(root, []) == []


def test_clips_are_drawn_only_as_they_are_needed(root: Path) -> None:
    drawn = 0

    def clips() -> Iterator[tuple[int, Clip]]:
        nonlocal drawn
        for drawn in range(1, 41):
            yield drawn, clip_of(root, 10, drawn)

    with ClipLoader(clips(), root, CONFIG, PATIENT, pitch=flat_pitch) as loader:
        for handed_on, (tag, _) in enumerate(loader, start=1):
            assert tag == handed_on
            assert drawn <= handed_on + 2 * 2
    assert drawn == 40


def test_bugs_in_a_worker_stop_the_run(root: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        load(root, [10, RAISES, 11])


@pytest.mark.parametrize(
    ("culprit", "reason"),
    [(HANGS, "decoder_hung"), (HANGS_WITH_LOCK, "decoder_hung"), (CRASHES, "decoder_crashed")],
    ids=["hang", "hang with the lock", "crash"],
)
def test_a_worker_that_hangs_or_dies_costs_its_clip_only(root: Path, culprit: int, reason: str) -> None:
    hurried = dataclasses.replace(PATIENT, deadline_seconds=1.5)
    names = [10, 11, culprit, 300, 12, "text", 13, 10]
    begin = time.monotonic()
    results = load(root, names, SMALL_CHUNKS, hurried)
    assert time.monotonic() - begin < 40
    healthy = load(root, [name if name != culprit else "gone" for name in names], SMALL_CHUNKS)
    assert [tag for tag, _ in results] == [tag for tag, _ in healthy] == [0, 1, 2, *[3] * 5, 4, 5, 6, 7]
    for (tag, ours), (_, theirs) in zip(results, healthy, strict=True):
        if tag != 2:
            assert same(ours, theirs)
    rejected = results[2][1]
    assert isinstance(rejected, Reject)
    assert rejected.reason == reason
    assert "2 of 2 times" in rejected.message
    assert f"{culprit}.mp4" in rejected.message


def test_a_worker_killed_in_mid_message_costs_its_clip_only(root: Path) -> None:
    """Nobody reads while one is killed whose last result is more than a pipe holds: half of it would be there."""
    rows = "".join(f"{row:06d} \t0.312 \t0.105 \t0.251 \t0.446 \n" for row in range(5_000))
    (root / "long.txt").write_text(f"Text:  A\nConf:  5\nRef:   a\n\nFRAME \tX \tY \tW \tH \n{rows}")
    clips = [clip_of(root, 10), clip_of(root, 11, transcript_path="long.txt"), clip_of(root, HANGS_WITH_LOCK)]
    hurried = dataclasses.replace(PATIENT, num_workers=1, deadline_seconds=1.0)
    with ClipLoader(enumerate(clips), root, CONFIG, hurried, pitch=tricky_pitch) as loader:
        results = iter(loader)
        next(results)
        time.sleep(3)
        (_, chunk), (_, rejected) = results
    assert isinstance(chunk, DecodedChunk)
    assert chunk.head is not None
    assert chunk.head.transcript is not None
    assert chunk.head.transcript.boxes.nbytes > 2**16
    assert isinstance(rejected, Reject)
    assert rejected.reason == "decoder_hung"


def test_a_clip_that_fails_once_is_tried_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_CRASH_NOTE", str(tmp_path / "note"))
    clips = [(0, clip_of(root, 10)), (1, clip_of(root, CRASHES)), (2, clip_of(root, 11))]
    # A fork server that runs already has the environment of its own start: spawn reads it again.
    with ClipLoader(clips, root, CONFIG, worker_config(1), pitch=crash_once, start_method="spawn") as loader:
        results = list(loader)
    assert (tmp_path / "note").exists()
    assert [(tag, type(result)) for tag, result in results] == [(0, DecodedChunk), (1, DecodedChunk), (2, DecodedChunk)]


def test_a_slow_consumer_is_no_hang(root: Path) -> None:
    hurried = dataclasses.replace(PATIENT, deadline_seconds=1.0)
    clips = [(index, clip_of(root, 10, index)) for index in range(6)]
    with ClipLoader(clips, root, CONFIG, hurried, pitch=flat_pitch) as loader:
        for _, result in loader:
            assert isinstance(result, DecodedChunk)
            time.sleep(1.3 if result.clip.utterance in "02" else 0)


def test_sigchld_is_left_alone(root: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    clips = [(0, clip_of(root, 10))]
    with ClipLoader(clips, root, CONFIG, worker_config(1), pitch=flat_pitch) as loader:
        next(iter(loader))
        assert signal.getsignal(signal.SIGCHLD) == before


def test_bad_arguments(root: Path) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        ClipLoader([], root, CONFIG, worker_config(0), pitch=flat_pitch)


# What a run leaves behind -------------------------------------------------------------------------------------------

SCRIPT = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.pitch_stubs import tricky_pitch
from lrs3_loader.config import DecodeConfig, WorkerConfig
from lrs3_loader.types import Clip
from lrs3_loader.decode.loader import ClipLoader
from multiprocessing import active_children

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have been told to ignore it
    clips = ((i, Clip("a/b/" + str(i), "10.mp4", 0)) for i in range(10**9))
    with ClipLoader(clips, Path({root!r}), DecodeConfig(), WorkerConfig(num_workers=3), pitch=tricky_pitch) as loader:
        for tag, _ in loader:
            if tag == 3:
                print(*(child.pid for child in active_children()), flush=True)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and not yet collected


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_no_worker_outlives_its_parent(root: Path, tmp_path: Path, ending: signal.Signals) -> None:
    script = tmp_path / "endless.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), root=str(root)))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    try:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 3
        if ending == signal.SIGINT:
            os.killpg(parent.pid, ending)  # as a terminal does: everyone gets it
        else:
            parent.send_signal(ending)
        parent.wait(timeout=10)
    finally:
        parent.kill()
    until = time.monotonic() + 5
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    complaints = parent.stderr.read()
    assert complaints.count("Traceback") == (1 if ending == signal.SIGINT else 0), complaints


def test_closing_is_quick_and_complete(root: Path) -> None:
    before = {child.pid for child in active_children()}
    clips = ((index, clip_of(root, SLOW, index)) for index in range(100))
    loader = ClipLoader(clips, root, CONFIG, worker_config(3), pitch=tricky_pitch)
    next(iter(loader))
    assert len({child.pid for child in active_children()} - before) == 3
    begin = time.monotonic()
    loader.close()
    assert time.monotonic() - begin < 2
    assert {child.pid for child in active_children()} <= before


def resident_mebibytes(pid: int) -> float:
    """Memory of a process that is its own: shared memory in transit is not counted."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def test_memory_and_descriptors_stay_flat(root: Path) -> None:
    total, warm_up = 400, 150
    clips = ((index, clip_of(root, (10, 11, 12, 13)[index % 4], index)) for index in range(total))
    levels: dict[int, list[float]] = {}
    with ClipLoader(clips, root, CONFIG, worker_config(1), pitch=flat_pitch) as loader:
        before = {child.pid for child in active_children()}
        for index, _ in loader:
            pids = [os.getpid(), *({child.pid for child in active_children()} - before)]
            if index in (warm_up, total - 10):
                for pid in pids:
                    assert pid is not None
                    number = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                    levels.setdefault(pid, []).extend([resident_mebibytes(pid), number])
    assert len(levels) == 2
    for early, early_files, late, late_files in levels.values():
        assert late - early < 6
        assert late_files - early_files < 20
