"""Frames are what a player shows: turned and mirrored as the file asks, with square pixels."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.decode.display import shown_width
from lrs3_loader.decode.frames import read_frames
from lrs3_loader.decode.video import probe_video
from lrs3_loader.errors import TooLargeError
from lrs3_loader.types import Clip, DecodedChunk
from support import media_files as files
from support.pitch_stubs import flat_pitch

pytestmark = pytest.mark.smoke

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    return pytest.importorskip("imageio_ffmpeg", reason="compares with the ffmpeg program").get_ffmpeg_exe()


def draw(number: int, height: int, width: int) -> np.ndarray:
    """A picture that looks different in every orientation."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    return (255 * np.stack([x, y, (x * x + y + number / 50) / 3], -1)).astype(np.uint8)


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upright") / "a.mp4"
    return files.write_media(path, size=(HEIGHT, WIDTH), num_frames=10, draw=draw, sound=files.noise(0.5, 16_000))


def frames_of(path: Path) -> np.ndarray:
    track = probe_video(path, path.name, DecodeConfig())
    return read_frames(track, np.arange(len(track.pts))).numpy()


def remade(exe: str, source: Path, path: Path, before: str = "", after: str = "-c copy") -> Path:
    """What ffmpeg makes of a file, with options for its input and its output."""
    command = [exe, "-v", "error", *before.split(), "-i", str(source), *after.split(), str(path)]
    subprocess.run(command, check=True)
    return path


def by_ffmpeg(exe: str, path: Path, shape: tuple[int, ...], filters: str = "null") -> np.ndarray:
    command = [exe, "-v", "error", "-i", str(path), "-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-"]
    return np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8).reshape(shape)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("mirrored", ["", "h", "v", "hv"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_and_mirrored_as_by_ffmpeg(
    upright: Path, tmp_path: Path, ffmpeg: str, degrees: int, mirrored: str, suffix: str
) -> None:
    options = f"-display_rotation {degrees} " + " ".join(f"-display_{axis}flip" for axis in mirrored)
    path = remade(ffmpeg, upright, tmp_path / f"a.{suffix}", options)
    shown = frames_of(path)
    assert shown.shape == ((10, WIDTH, HEIGHT, 3) if degrees % 180 else (10, HEIGHT, WIDTH, 3))
    assert np.abs(shown.astype(int) - by_ffmpeg(ffmpeg, path, shown.shape)).max() <= 1
    # Not by FFmpeg: the frames of the file are turned against the clock first, and mirrored then.
    wanted = np.rot90(frames_of(upright), degrees // 90, axes=(1, 2))
    for axis in mirrored:
        wanted = np.flip(wanted, 2 if axis == "h" else 1)
    assert np.array_equal(shown, wanted)


def test_a_mirror_that_the_codec_asks_for(upright: Path, tmp_path: Path, ffmpeg: str) -> None:
    after = "-c copy -bsf:v h264_metadata=display_orientation=insert:flip=horizontal"
    path = remade(ffmpeg, upright, tmp_path / "a.mp4", after=after)
    assert np.array_equal(frames_of(path), np.flip(frames_of(upright), 2))


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9), Fraction(2), Fraction(1, 2)], ids=str)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_that_are_no_squares(upright: Path, tmp_path: Path, ffmpeg: str, aspect: Fraction, suffix: str) -> None:
    after = f"-c:v libx264 -qp 0 -pix_fmt yuv444p -vf setsar={aspect} -c:a copy"
    path = remade(ffmpeg, upright, tmp_path / f"a.{suffix}", after=after)
    width = round(WIDTH * aspect)
    shown = frames_of(path)
    assert shown.shape == (10, HEIGHT, width, 3)
    assert np.abs(shown.astype(int) - by_ffmpeg(ffmpeg, path, shown.shape, f"scale={width}:{HEIGHT}")).max() <= 3
    # The picture is widened as a whole: red grows from left to right over all of it.
    assert np.abs(shown[0, HEIGHT // 2, :, 0] - 255 * (np.arange(width) + 0.5) / width).max() < 12


def test_what_a_container_says_counts_more_than_the_codec(upright: Path, tmp_path: Path, ffmpeg: str) -> None:
    path = remade(ffmpeg, upright, tmp_path / "a.mkv", after="-c copy -aspect 16:9")
    assert frames_of(path).shape == (10, HEIGHT, round(WIDTH * 4 / 3), 3)


def test_a_turned_file_is_widened_first(upright: Path, tmp_path: Path, ffmpeg: str) -> None:
    wide = remade(ffmpeg, upright, tmp_path / "wide.mp4", after="-vf setsar=3/2")
    turned = remade(ffmpeg, wide, tmp_path / "turned.mp4", "-display_rotation 90")
    assert np.array_equal(frames_of(turned), np.rot90(frames_of(wide), 1, axes=(1, 2)))
    chunk = ClipDataset(tmp_path, DecodeConfig(), flat_pitch)[ChunkRequest(Clip("a/b/c", "turned.mp4", 1))]
    assert isinstance(chunk, DecodedChunk)
    assert chunk.head is not None
    source = chunk.head.source
    assert (source.height, source.width, source.sample_aspect_ratio) == (96, 48, 1.5)


def test_frames_that_become_too_large_are_refused(upright: Path, tmp_path: Path, ffmpeg: str) -> None:
    path = remade(ffmpeg, upright, tmp_path / "a.mp4", after="-vf setsar=40/1")
    with pytest.raises(TooLargeError, match="2560x48"):
        probe_video(path, "a.mp4", DecodeConfig(max_pixels=100_000))
    assert shown_width(10, Fraction(1, 100)) == 1
