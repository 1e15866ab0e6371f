"""Writes a clip's pictures and sound into an mp4 as LRS3 ships them: H.264 at 25 fps, AAC at 16 kHz mono."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.video.stream import VideoStream

from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE

_AAC_FRAME = 1024
_CRF = "17"  # close to transparent: the landmarks are to be found again


def write_mp4(path: Path, frames: Iterable[np.ndarray], waveform: np.ndarray | None) -> None:
    """Encode frames [H, W, 3] u8 RGB and a waveform [n] f32 in [-1, 1] (or none); both tracks start at time 0.

    One thread and no clock in the file: the same input gives the same bytes with the same FFmpeg.
    """
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        video: VideoStream | None = None
        sound = None if waveform is None else _sound_stream(container)
        for index, frame in enumerate(frames):
            if video is None:
                video = _video_stream(container, *frame.shape[:2])
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(picture))
        if video is None:
            raise ValueError("a clip needs at least one frame")
        container.mux(video.encode(None))
        if waveform is None or sound is None:
            return
        for start in range(0, len(waveform), _AAC_FRAME):
            samples = np.ascontiguousarray(waveform[None, start : start + _AAC_FRAME], dtype=np.float32)
            chunk = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(sound.encode(chunk))
        container.mux(sound.encode(None))


def _video_stream(container: av.container.OutputContainer, height: int, width: int) -> VideoStream:
    # Without cpu-independent, x264's assembler gives now and then other bytes for the same frames, on one thread too.
    options = {"crf": _CRF, "preset": "veryfast", "x264-params": "cpu-independent=1"}
    stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact
    return stream


def _sound_stream(container: av.container.OutputContainer) -> AudioStream:
    stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
    stream.bit_rate = 64_000
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact
    return stream
