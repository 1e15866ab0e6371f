"""Small clips of known frames and audio, in the containers and codecs that corpora come in."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_FRAMES = 50
SIDE = 96  # pixels
SECONDS = NUM_FRAMES / 25


@dataclass(frozen=True)
class Kind:
    """A container with its codecs."""

    suffix: str
    video: str
    audio: str
    options: dict[str, str] = field(default_factory=dict)  # of the video codec
    sample_rate: int = 16_000


_X264 = {"preset": "veryfast", "g": "25", "threads": "1"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=25"}
_VPX = {"deadline": "realtime", "cpu-used": "8", "g": "25", "threads": "1"}
_KINDS = {
    "h264 mp4": Kind("mp4", "libx264", "aac", _X264),
    "h264 mkv": Kind("mkv", "libx264", "aac", _X264),
    "h264 ts": Kind("ts", "libx264", "aac", _X264),
    "h264 avi": Kind("avi", "libx264", "libmp3lame", {**_X264, "bf": "0"}),
    "hevc mp4": Kind("mp4", "libx265", "aac", _X265),
    "vp8 webm": Kind("webm", "libvpx", "libopus", _VPX, 48_000),
    "vp9 webm": Kind("webm", "libvpx-vp9", "libopus", _VPX, 48_000),
    "av1 mp4": Kind("mp4", "libsvtav1", "aac", {"preset": "12", "g": "25", "svtav1-params": "lp=1"}),
    "mpeg4 mp4": Kind("mp4", "mpeg4", "aac", {"qscale": "4", "bf": "2", "g": "25"}),
    "mpeg4 avi": Kind("avi", "mpeg4", "libmp3lame", {"qscale": "4", "g": "25"}),
    "mjpeg avi": Kind("avi", "mjpeg", "pcm_s16le", {"qscale": "4"}),
    "mpeg2 mpg": Kind("mpg", "mpeg2video", "mp2", {"qscale": "4", "bf": "2", "g": "25"}),
}

#: Those that this PyAV can encode.
KINDS = {name: kind for name, kind in _KINDS.items() if {kind.video, kind.audio} <= av.codecs_available}


def draw_frame(
    number: int, height: int = SIDE, width: int = SIDE, square: slice = slice(30, 50), noise: float = 4.0
) -> np.ndarray:
    """Draw [height, width, 3] u8: waves that drift, a square that moves the other way, and the noise of a camera.

    Args:
        square: the rows of the square.
        noise: its standard deviation, of 255.
    """
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x * a + y * b + number * c) / 9) for a, b, c in ((1, 2, 5), (3, -1, 2), (-2, 5, 3))]
    frame = 128 + 40 * np.stack(waves, -1)
    side = square.stop - square.start
    at = (number * 2) % (width - side)
    frame[square, width - side - at : width - at] = (220, 40, 90)
    frame += np.random.default_rng(number).normal(0, noise, frame.shape)
    return frame.clip(0, 255).astype(np.uint8)


def make_audio(sample_rate: int) -> np.ndarray:
    """Make [n] f32: tones that change every tenth of a second, so that each moment sounds different."""
    t = np.arange(round(SECONDS * sample_rate)) / sample_rate
    hertz = 200 + 1500 * np.random.default_rng(0).random(int(10 * SECONDS))
    phase = 2 * np.pi * np.cumsum(np.repeat(hertz, sample_rate // 10)[: len(t)]) / sample_rate
    return (0.3 * np.sin(phase)).astype(np.float32)


def write_clip(path: Path, kind: Kind) -> None:
    """Encode the frames and the audio."""
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        video = container.add_stream(kind.video, rate=25, options=dict(kind.options))
        video.height, video.width = SIDE, SIDE
        video.pix_fmt = "yuvj420p" if kind.video == "mjpeg" else "yuv420p"
        audio = container.add_stream(kind.audio, rate=kind.sample_rate, layout="mono")
        packets = []
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode(None)
        samples = make_audio(kind.sample_rate)
        for start in range(0, len(samples), 1024):
            block = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = kind.sample_rate, start, Fraction(1, kind.sample_rate)
            packets += audio.encode(block)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
