"""Encodes audio as FLAC and square frames as mp4 in memory, with the same bytes each time, and decodes them again.

Encoders use one thread, write neither times nor versions, and x264 the same assembler on every processor.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.codec.context import Flags

from lrs3_loader.io.media_file import MEDIA_ERRORS
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE

VideoCodec = Literal["h264", "jpeg"]
#: Frames of a clip that are larger than this when decoded are not encoded: 43,000 of 256 x 256 pixels in colour.
MAX_VIDEO_BYTES = 8 << 30
_KEY_FRAME_EVERY = 25  # a reader that looks for one frame decodes at most a second
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG: grey levels are stored as they are
_BT601 = 5  # AVCOL_SPC_BT470BG, which decoders take where they are not told
_FLAC_BLOCK = 4096
_FLAC_FORMATS = {16: "s16", 24: "s32"}
_PIXEL_FORMATS = ("yuv420p", "yuvj420p")


def encode_flac(waveform: np.ndarray, bits: int) -> tuple[bytes, int]:
    """Encode a waveform [n] f32 at 16 kHz as mono FLAC of 16 or 24 bits.

    Returns:
        the file, and its scale: full scale of the file stands for this value, 1 or the power of two above the peak.
        Decoded samples times the scale differ from the waveform by at most half a step, ``scale / 2 ** bits``; those
        that were read from a file of so many bits are equal.
    """
    full, scale = 1 << (bits - 1), 1
    wide = waveform.astype(np.float64)
    while ((levels := np.rint(wide * (full / scale))).size and levels.max() >= full) or levels.min(initial=0) < -full:
        scale *= 2
    samples = levels.astype(np.int16) if bits == 16 else levels.astype(np.int32) << 8
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact", "metadata_header_padding": "0"}
    with av.open(buffer, "w", format="flac", container_options=options) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", options={"frame_size": str(_FLAC_BLOCK)})
        stream.format = _FLAC_FORMATS[bits]
        make_reproducible(stream)
        for start in range(0, len(samples), _FLAC_BLOCK):
            block = np.ascontiguousarray(samples[None, start : start + _FLAC_BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format=_FLAC_FORMATS[bits], layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue(), scale


def decode_flac(data: bytes | bytearray, scale: float = 1) -> np.ndarray:
    """Decode a file of ``encode_flac`` to [n] f32.

    Raises:
        ValueError: it is damaged, or not mono FLAC at 16 kHz of 16 or 24 bits; or the scale is none.
    """
    if not 0 < scale < 1 << 32:
        raise ValueError(f"a scale of {scale}")
    parts = []
    with _opened(data, "flac") as container:
        for frame in container.decode(audio=0):
            kind = frame.format.name
            if kind not in _FLAC_FORMATS.values() or frame.layout.nb_channels != 1 or frame.sample_rate != SAMPLE_RATE:
                raise ValueError(f"audio of {frame.layout.nb_channels} channels at {frame.sample_rate} Hz, {kind}")
            parts.append((frame.to_ndarray()[0] * (scale / (1 << (15 if kind == "s16" else 31)))).astype(np.float32))
    if not parts:
        raise ValueError("no flac file: it holds no samples")
    return np.concatenate(parts)


class VideoEncoder:
    """Encodes the frames of one clip, which it is given in order, at 25 fps.

    Args:
        size: of a side in pixels, even.
        quality: x264's constant rate factor, or FFmpeg's quantizer scale of JPEG.
    """

    def __init__(self, size: int, codec: VideoCodec, quality: int) -> None:
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4", container_options={"fflags": "+bitexact"})
        name, options = {
            "h264": (
                "libx264",
                {
                    "crf": str(quality),
                    "preset": "veryfast",
                    "g": str(_KEY_FRAME_EVERY),
                    "x264-params": "cpu-independent=1",
                },
            ),
            "jpeg": ("mjpeg", {"qmin": str(quality), "qmax": str(quality)}),
        }[codec]
        stream: Any = self._container.add_stream(name, rate=FRAMES_PER_SECOND, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = self._format = "yuv420p" if codec == "h264" else "yuvj420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = _FULL_RANGE, _BT601
        make_reproducible(stream)
        self._stream = stream
        self.num_frames = 0

    def append(self, planes: np.ndarray) -> None:
        """Encode the next frames, u8 [n, 3 S / 2, S]: brightness, and both colour differences at half the resolution.

        See ``face.image.colour.to_yuv420``.
        """
        for frame in planes:
            image = av.VideoFrame.from_ndarray(frame, format=self._format)
            image.pts, image.time_base = self.num_frames, Fraction(1, FRAMES_PER_SECOND)
            image.color_range, image.colorspace = _FULL_RANGE, _BT601
            self._container.mux(self._stream.encode(image))
            self.num_frames += 1

    def finish(self) -> bytes:
        """Return the mp4 file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


def decode_video(data: bytes | bytearray, *, grey: bool) -> np.ndarray:
    """Decode a file of ``VideoEncoder`` to u8 [T, S, S] (``grey``: brightness) or [T, S, S, 3] (RGB).

    Raises:
        ValueError: it is damaged, holds other frames than an encoder here writes, or over ``MAX_VIDEO_BYTES``.
    """
    frames: list[np.ndarray] = []
    with _opened(data, "mp4") as container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise ValueError("no video in it")
        stream.codec_context.thread_count = 1
        num_bytes = 0
        for frame in container.decode(stream):
            num_bytes += frame.width * frame.height * (1 if grey else 3)
            if frame.format.name not in _PIXEL_FORMATS or frame.width != frame.height or num_bytes > MAX_VIDEO_BYTES:
                raise ValueError(f"frames of {frame.width} x {frame.height}, {frame.format.name}, or too many")
            if frames and frames[0].shape[1] != frame.width:
                raise ValueError("frames of several sizes")
            frames.append(frame.to_ndarray()[: frame.height] if grey else frame.to_ndarray(format="rgb24"))
    if not frames:
        raise ValueError("no frames in it")
    return np.stack(frames)


@contextmanager
def _opened(data: bytes | bytearray, kind: str) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(io.BytesIO(data), format=kind) as container:
            yield container
    except MEDIA_ERRORS as error:
        raise ValueError(f"no {kind} file: {getattr(error, 'strerror', error)}") from error


def make_reproducible(stream: Any) -> None:
    """Let a stream be encoded to the same bytes each time: by one thread, without times and versions."""
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact
