"""AVI has no timestamps: frames, also those out of order, have the times that the ffmpeg program gives them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.frames import FrameReader, read_frames
from lrs3_loader.decode.video import VideoTrack, probe_video
from support import media_files as files

pytestmark = pytest.mark.smoke

#: Name: the codec, its options, how many packets after its own the first frame is decoded.
KINDS: dict[str, tuple[str, dict[str, str], int]] = {
    "h264": ("libx264", {"bf": "3"}, 2),
    "h264 in order": ("libx264", {"bf": "0"}, 0),
    "h264 open groups": ("libx264", {"g": "20", "bf": "5", "x264-params": "open-gop=1:keyint=20:b-pyramid=normal"}, 2),
    "mpeg4": ("mpeg4", {"bf": "2", "g": "10"}, 1),
    "mpeg4 in order": ("mpeg4", {"g": "10"}, 0),
    "mjpeg": ("mjpeg", {}, 0),
}


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    return pytest.importorskip("imageio_ffmpeg", reason="compares with the ffmpeg program").get_ffmpeg_exe()


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("master") / "a.mov"
    return files.write_media(path, num_frames=60, video_codec="png", sound=files.noise(2.4, 16_000))


def write(ffmpeg: str, master: Path, tmp_path: Path, kind: str, num_frames: int = 60) -> VideoTrack:
    """A file by the ffmpeg program."""
    codec, options, _ = KINDS[kind]
    path = tmp_path / "a.avi"
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    settings = [part for name, value in options.items() for part in (f"-{name}", value)]
    command = [ffmpeg, "-v", "error", "-i", str(master), "-frames:v", str(num_frames), "-c:v", codec, *settings]
    subprocess.run([*command, "-pix_fmt", pixels, "-c:a", "pcm_s16le", str(path)], check=True)
    return probe_video(path, path.name, DecodeConfig())


@pytest.mark.parametrize("num_frames", [60, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_times_are_ffmpegs(tmp_path: Path, ffmpeg: str, master: Path, kind: str, num_frames: int) -> None:
    track = write(ffmpeg, master, tmp_path, kind, num_frames)
    command = [ffmpeg, "-v", "error", "-i", str(track.path), "-an", "-fps_mode", "passthrough", "-copyts"]
    lines = subprocess.run([*command, "-f", "framecrc", "-"], check=True, capture_output=True, text=True).stdout
    theirs = [int(line.split(",")[2]) for line in lines.splitlines() if not line.startswith("#")]
    assert len(theirs) == num_frames
    assert track.packet_delay == KINDS[kind][2]
    assert track.pts.tolist() == theirs
    frames = read_frames(track, np.arange(num_frames))
    assert [files.frame_number(frame) for frame in frames.numpy()] == list(range(num_frames))


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_equals_reading_through(tmp_path: Path, ffmpeg: str, master: Path, kind: str) -> None:
    track = write(ffmpeg, master, tmp_path, kind)
    whole = read_frames(track, np.arange(60))
    for start in (1, 9, 10, 11, 19, 20, 21, 22, 39, 40, 58, 59):
        assert torch.equal(read_frames(track, np.arange(start, 60)), whole[start:]), start
    reader = FrameReader(track, np.arange(60), 25)
    parts = [reader.read(min(7, reader.num_left))[0] for _ in range(25, 60, 7)]
    assert torch.equal(torch.cat(parts), whole[25:])
