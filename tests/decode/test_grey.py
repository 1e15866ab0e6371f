"""Areas that FFmpeg makes up where frames are missing that an HEVC frame is predicted from."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.fuzz.clips import draw_frame
from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.frames import FrameReader
from lrs3_loader.decode.grey import GreyAreas, can_be_made_up
from lrs3_loader.decode.video import probe_video
from lrs3_loader.errors import ClipError
from support.media_files import write_media

X265 = {"preset": "fast", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=250:bframes=0"}


def picture(grey: slice, value: int = 128, form: str = "yuv420p", is_key: bool = False) -> av.VideoFrame:
    """A frame of 128 x 128 that is noise but for some columns, which are ``value`` in all planes."""
    is_deep = form.endswith("10le")
    data = np.random.default_rng(0).integers(0, 100, (192, 128)).astype(np.uint16 if is_deep else np.uint8)
    frame = av.VideoFrame(128, 128, form)
    for plane, side, rows in zip(frame.planes, (128, 64, 64), (data[:128], data[128:160], data[160:]), strict=True):
        pixels = np.frombuffer(memoryview(plane), data.dtype).reshape(side, -1)
        pixels[:, :side] = rows.reshape(side, side)
        pixels[:, grey.start * side // 128 : grey.stop * side // 128] = value
    if is_key:
        frame.pict_type = av.video.frame.PictureType.I
    return frame


NONE, SOME, MANY = slice(0, 0), slice(32, 64), slice(0, 96)


@pytest.mark.parametrize(("form", "mid"), [("yuv420p", 128), ("yuv420p10le", 512)])
def test_sudden_grey_is_made_up(form: str, mid: int) -> None:
    is_made_up = GreyAreas()
    frames = [(NONE, mid), (SOME, mid + 1), (NONE, mid), (SOME, mid), (MANY, mid), (NONE, mid)]
    assert [is_made_up(picture(grey, value, form)) for grey, value in frames] == [False] * 3 + [True] * 2 + [False]


def test_only_videos_with_gaps_are_looked_at() -> None:
    times = np.arange(50)
    assert can_be_made_up("hevc", np.delete(times, 20))
    assert not can_be_made_up("hevc", times)
    assert not can_be_made_up("h264", np.delete(times, 20))
    assert not can_be_made_up("hevc", times[:1])


def remove_packets(source: Path, target: Path, removed: set[int]) -> None:
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        for number, packet in enumerate(whole.demux(stream)):
            if packet.dts is not None and number not in removed:
                packet.stream = copy
                part.mux(packet)


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this PyAV cannot encode HEVC")
@pytest.mark.parametrize("removed", [{10}, {10, 11, 12}, {20, 30}])
def test_lost_frames_of_hevc_are_told_one_way_or_another(tmp_path: Path, removed: set[int]) -> None:
    """FFmpeg 8 leaves out what it cannot predict, so that the clip is a reject; older versions make up grey areas."""

    def draw(number: int, height: int, width: int) -> np.ndarray:
        return draw_frame(number, height, width, slice(40, 70))

    whole, part = tmp_path / "whole.ts", tmp_path / "part.ts"
    write_media(whole, num_frames=50, size=(96, 96), video_codec="libx265", video_options=X265, draw=draw)
    remove_packets(whole, part, removed)
    track = probe_video(part, part.name, DecodeConfig())
    sources = track.frame_indices_25fps()
    try:
        frames, damaged = FrameReader(track, sources, lost=track.frames_lost_25fps()).read(len(sources))
    except ClipError:
        return
    truth_track = probe_video(whole, whole.name, DecodeConfig())
    truth, _ = FrameReader(truth_track, truth_track.frame_indices_25fps()).read(50)
    shift = round((track.start_seconds - truth_track.start_seconds) * 25)
    error = (frames.float() - truth[shift : shift + len(frames)].float()).square().mean((1, 2, 3))
    bad = set((error > 255**2 / 10**3).nonzero().flatten().tolist())
    assert bad
    assert len(bad - set(damaged)) <= 0.2 * len(bad), (sorted(bad), damaged)


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this PyAV cannot encode HEVC")
def test_a_slide_of_that_grey_is_not_made_up(tmp_path: Path) -> None:

    def draw(number: int, height: int, width: int) -> np.ndarray:
        frame = draw_frame(number, height, width)
        if number >= 20:
            frame[:] = 130  # 128 in YUV of limited range
            frame[10:40, number : number + 30] = draw_frame(number, 30, 30, slice(5, 10))
        return frame

    path = tmp_path / "a.mp4"
    write_media(path, num_frames=50, size=(96, 96), video_codec="libx265", video_options=X265, draw=draw)
    track = probe_video(path, path.name, DecodeConfig())
    _, damaged = FrameReader(track, track.frame_indices_25fps()).read(50)
    assert damaged == ()
