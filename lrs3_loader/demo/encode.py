"""Encodes frames and audio as an mp4 file of the kind that LRS3 consists of: H.264 at 25 fps, AAC at 16 kHz mono."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from lrs3_loader.io.media_codec import make_reproducible
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE

_AAC_FRAME = 1024
# crf: nearly lossless, so that the landmarks can be found again. cpu-independent: without it, x264's assembler
# sometimes gives other bytes for the same frames, on one thread too.
_X264_OPTIONS = {"crf": "17", "preset": "veryfast", "x264-params": "cpu-independent=1"}


def write_mp4(path: Path, frames: Iterable[np.ndarray], waveform: np.ndarray | None) -> None:
    """Encode frames [H, W, 3] u8 RGB and a waveform [n] f32 in [-1, 1] (or none); both tracks start at time 0.

    The same input gives the same bytes with the same FFmpeg. Raises ``ValueError`` without any frame.
    """
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        video: VideoStream | None = None
        audio = None if waveform is None else container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        if audio is not None:
            audio.bit_rate = 64_000
            make_reproducible(audio)
        for index, frame in enumerate(frames):
            if video is None:
                video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=_X264_OPTIONS)
                video.height, video.width = frame.shape[:2]
                video.pix_fmt = "yuv420p"
                make_reproducible(video)
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(image))
        if video is None:
            raise ValueError("a clip needs at least one frame")
        container.mux(video.encode(None))
        if waveform is None or audio is None:
            return
        for start in range(0, len(waveform), _AAC_FRAME):
            samples = np.ascontiguousarray(waveform[None, start : start + _AAC_FRAME], dtype=np.float32)
            chunk = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(chunk))
        container.mux(audio.encode(None))
