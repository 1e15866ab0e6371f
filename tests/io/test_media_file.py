"""Only regular files of known containers are opened: nothing that blocks, and nothing that reads further files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest

from lrs3_loader.errors import UnreadableError
from lrs3_loader.io.media_file import open_input
from support.media_files import write_media

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("media") / "a.mp4", num_frames=5)


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "socket", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    else:
        path.mkdir()
    with pytest.raises(UnreadableError, match=r"^clip: not a regular file"):
        open_input(path, "clip")


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile a.mp4\n",
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:02,000\nhello\n\n",
    "webvtt": "WEBVTT\n\n00:00.000 --> 00:02.000\nhello\n\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_and_texts_are_refused(name: str, neighbour: Path) -> None:
    """A list of FFmpeg's concat demuxer or of HLS would otherwise be read as a copy of the file that it names."""
    path = neighbour.with_name(name if "." in name else f"{name}.mp4")
    path.write_text(PLAYLISTS[name])
    with pytest.raises(UnreadableError, match="a playlist, image, text or the like"):
        open_input(path, path.name)


def test_sequences_of_images_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        with av.open(str(tmp_path / f"{number}.png"), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream("png", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (tmp_path / "clip.mp4").write_bytes((tmp_path / "1.png").read_bytes())
    with pytest.raises(UnreadableError, match="a playlist, image, text or the like"):
        open_input(tmp_path / "clip.mp4", "clip.mp4")
    with pytest.raises(UnreadableError, match="No such file"):
        open_input(tmp_path / "%d.png", "%d.png")


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "mpg", "ts", "flv", "asf", "nut"])
def test_containers_of_video_are_read(suffix: str, tmp_path: Path) -> None:
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = write_media(tmp_path / f"clip.{suffix}", num_frames=5, video_codec=codec)
    with open_input(path, path.name) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
