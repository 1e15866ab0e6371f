"""Damaged media bytes: frames that come out wrong are known to be damaged, and intact files have none."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz.clips import draw_frame
from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.frames import FrameReader
from lrs3_loader.decode.video import probe_video
from lrs3_loader.errors import ClipError
from support import media_files as files

NUM_FRAMES = 60
BAD_DB = 30.0  # peak signal-to-noise ratio; compression by itself is not counted, as both sides have it
#: Without x264's macroblock tree and weights, which differ from process to process.
STEADY = "mbtree=0:weightp=0"
H264 = {"preset": "fast", "crf": "23", "g": "250", "threads": "1", "x264-params": STEADY}
#: Name: the codec, its options, the container's suffix.
KINDS: dict[str, tuple[str, dict[str, str], str]] = {
    "h264": ("libx264", H264, "mp4"),
    "h264 slices": ("libx264", {**H264, "x264-params": f"slices=4:{STEADY}"}, "mp4"),
    "h264 open groups": ("libx264", {**H264, "x264-params": f"open-gop=1:keyint=20:{STEADY}"}, "mkv"),
    "h264 ts": ("libx264", {**H264, "g": "20"}, "ts"),
    "mpeg4": ("mpeg4", {"qscale": "4", "bf": "2", "g": "20"}, "mp4"),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "webm"),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}, "mp4"),
}


def moving(number: int, height: int, width: int) -> np.ndarray:
    return draw_frame(number, height, width, slice(40, 70), noise=6.0)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("intact")
    return {
        name: files.write_media(
            folder / f"{name.replace(' ', '_')}.{suffix}",
            num_frames=NUM_FRAMES,
            size=(224, 224),
            video_codec=codec,
            video_options=options,
            draw=moving,
        )
        for name, (codec, options, suffix) in KINDS.items()
    }


def read(path: Path, start: int = 0) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """Times and frames of a file from frame ``start`` on, and which are damaged."""
    track = probe_video(path, path.name, DecodeConfig())
    sources = track.frame_indices_25fps()
    reader = FrameReader(track, sources, start)
    frames, damaged = reader.read(reader.num_left)
    return track.pts[sources][start:], frames.numpy(), set(damaged)


def spoilt(data: bytes, rng: random.Random) -> bytes:
    """Media bytes changed, zeroed, or lost; the first and last tenth hold headers."""
    spoilt, first, last = bytearray(data), len(data) // 10, len(data) * 9 // 10
    at, size = rng.randrange(first, last), rng.choice([8, 60, 400])
    match rng.choice(["flip", "zero", "noise"]):
        case "flip":
            for _ in range(rng.choice([1, 2, 20])):
                spoilt[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        case "zero":
            spoilt[at : at + size] = bytes(len(spoilt[at : at + size]))
        case "noise":
            spoilt[at : at + size] = rng.randbytes(len(spoilt[at : at + size]))
    return bytes(spoilt)


@pytest.mark.parametrize("name", KINDS)
def test_intact_files_have_no_damaged_frames(intact: dict[str, Path], name: str) -> None:
    _, whole, damaged = read(intact[name])
    assert damaged == set()
    for start in range(1, NUM_FRAMES, 7):  # after a seek, too
        _, frames, damaged = read(intact[name], start)
        assert damaged == set()
        assert np.array_equal(frames, whole[start:])


def test_real_files_have_no_damaged_frames(shared_data: Path) -> None:
    for path in sorted(shared_data.rglob("*.mp4")):
        assert read(path)[2] == set(), path


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("vp9", "hevc")])
def test_frames_that_come_out_wrong_are_damaged(intact: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Some damage decodes without a contradiction; FFmpeg sees none in VP9, and hardly any in HEVC."""
    rng, data = random.Random(name), intact[name].read_bytes()
    times, truth, _ = read(intact[name])
    path = tmp_path / intact[name].name
    num_read = num_bad = num_caught = 0
    for _ in range(120):
        path.write_bytes(spoilt(data, rng))
        try:
            their_times, frames, damaged = read(path)
        except ClipError:
            continue
        num_read += 1
        same = truth[[int(np.abs(times - time).argmin()) for time in their_times]]
        error = np.square(frames.astype(np.float32) - same).mean((1, 2, 3))
        bad = set(np.flatnonzero(error > 255**2 / 10 ** (BAD_DB / 10)).tolist())
        num_bad += len(bad)
        num_caught += len(bad & damaged)
    assert num_read > 5
    assert num_bad > 50
    assert num_caught >= 0.6 * num_bad, (num_caught, num_bad)


def test_damage_lasts_until_the_next_key_frame_and_is_the_same_after_a_seek(
    intact: dict[str, Path], tmp_path: Path
) -> None:
    data = bytearray(intact["h264 ts"].read_bytes())
    path = tmp_path / "a.ts"
    for at in range(len(data) // 4, len(data), 500):
        spoilt = bytearray(data)
        spoilt[at : at + 40] = bytes(40)
        path.write_bytes(bytes(spoilt))
        try:
            damaged = read(path)[2]
        except ClipError:
            continue
        if damaged and max(damaged) < 40 and len(read(path)[1]) == NUM_FRAMES:
            break
    else:
        pytest.fail("no damage in the second of three groups of frames")
    assert max(damaged) in (19, 39)
    for start in (5, 20, 25, 40, 50):
        assert read(path, start)[2] == {frame for frame in damaged if frame >= start}
