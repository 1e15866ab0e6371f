"""Recordings joined as with ``cat``: all their frames, or a reject that says so; never a silent half."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.video import probe_video
from lrs3_loader.errors import UnreadableError
from support.media_files import numbered_frame


def write_video(path: Path, num_frames: int, group: int) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"g": str(group)})
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
