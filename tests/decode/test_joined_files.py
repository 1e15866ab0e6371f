"""Recordings joined as with ``cat``: all their frames, or a reject that says so; never a silent half."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.frames import read_frames
from lrs3_loader.decode.video import probe_video
from lrs3_loader.errors import UnreadableError
from support.media_files import numbered_frame


def write_video(
    path: Path, num_frames: int, group: int, codec: str = "mpeg2video", flags: dict[str, str] | None = None
) -> bytes:
    with av.open(str(path), "w", options=flags or {}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(group)})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index, 64, 64), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["mpg", "mkv"])
@pytest.mark.parametrize("group", [12, 50])
def test_a_joined_recording_is_refused_by_name(suffix: str, group: int, tmp_path: Path) -> None:
    data = write_video(tmp_path / f"one.{suffix}", 50, group)
    assert len(probe_video(tmp_path / f"one.{suffix}", "one", DecodeConfig()).frame_indices_25fps()) == 50
    (tmp_path / f"two.{suffix}").write_bytes(data + data)
    with pytest.raises(UnreadableError, match=r"^two: its timestamps start again at packet 51 .* joined"):
        probe_video(tmp_path / f"two.{suffix}", "two", DecodeConfig())


def num_frames(path: Path) -> int:
    track = probe_video(path, path.name, DecodeConfig())
    return len(read_frames(track, track.frame_indices_25fps()))


@pytest.mark.parametrize(
    ("suffix", "codec", "flags"),
    [
        ("mp4", "libx264", {}),
        ("mp4", "libx264", {"movflags": "faststart"}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("mov", "libx264", {}),
        ("flv", "libx264", {}),
        ("wmv", "mpeg4", {}),
        ("nut", "mpeg4", {}),
        ("webm", "libvpx", {}),
        ("ts", "libx264", {}),
    ],
)
def test_no_container_gives_a_part_of_joined_files(
    suffix: str, codec: str, flags: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / f"two.{suffix}"
    data = write_video(path, 50, 12, codec, flags)
    assert num_frames(path) == 50
    path.write_bytes(data + data)
    with pytest.raises(UnreadableError, match=r"joined|packet \d+ of the video is incomplete"):
        num_frames(path)


def test_avi_files_that_are_joined_give_all_their_frames(tmp_path: Path) -> None:
    path = tmp_path / "two.avi"
    path.write_bytes(2 * write_video(path, 50, 12, "mpeg4"))
    assert num_frames(path) == 100


def test_fragments_may_follow_repeated_headers(tmp_path: Path) -> None:
    """As a live stream writes them: the same header again, and the timestamps go on."""
    path = tmp_path / "live.mp4"
    data = write_video(path, 50, 12, "libx264", {"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    header, second = data[: data.index(b"moof") - 4], data.rindex(b"moof") - 4
    path.write_bytes(data[:second] + header + data[second:])
    assert num_frames(path) == 50
