"""Writes small media files of every odd kind, for tests.

Every frame carries its own number as a pattern of black and white blocks (``frame_number`` reads it back through
any codec), and sounds are clicks at known times, so that tests can say which source frame became which output frame
and when a sound is heard.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GRID = (4, 4)  # 16 blocks: the bits of a frame's number
TICKS = 60_000  # video time base: whole numbers at 24, 25, 30, 50, 60 and 30000/1001 frames a second


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """RGB [height, width, 3] u8 whose 4 x 4 blocks are the bits of ``number`` (below 65536)."""
    bits = np.array([(number >> k) & 1 for k in range(16)], dtype=np.uint8).reshape(GRID)
    rows = np.arange(height) * GRID[0] // height
    columns = np.arange(width) * GRID[1] // width
    grey = bits[rows][:, columns] * 200 + 28
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def frame_number(frame: np.ndarray) -> int:
    """The number that ``numbered_frame`` drew into a frame [H, W, 3] u8."""
    height, width = frame.shape[:2]
    number = 0
    for k in range(16):
        row, column = divmod(k, GRID[1])
        y = (2 * row + 1) * height // (2 * GRID[0])
        x = (2 * column + 1) * width // (2 * GRID[1])
        number |= int(frame[y, x].mean() > 128) << k
    return number


def clicks(num_seconds: float, sample_rate: int, times: Sequence[float], num_channels: int = 1) -> np.ndarray:
    """Sound [num_channels, n] f32: silence with a short Gaussian pulse centred on each of ``times`` (seconds)."""
    t = np.arange(round(num_seconds * sample_rate)) / sample_rate
    sound = sum((0.8 * np.exp(-(((t - at) / 0.0005) ** 2)) for at in times), np.zeros_like(t))
    return np.tile(sound.astype(np.float32), (num_channels, 1))


def click_times(waveform: np.ndarray, sample_rate: int = 16_000, floor: float = 0.3) -> list[float]:
    """Centres (seconds) of the pulses in a mono waveform [n]."""
    loud = np.flatnonzero(np.abs(waveform) > floor)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > sample_rate // 100) + 1) if len(loud) else []
    return [float((np.abs(waveform[g]) * g).sum() / np.abs(waveform[g]).sum() / sample_rate) for g in groups]


def noise(num_seconds: float, sample_rate: int, num_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Smooth noise [num_channels, n] f32, well inside [-1, 1]."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((num_channels, round(num_seconds * sample_rate) + 8))
    smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(9) / 9, "valid"), 1, white)
    return (0.3 * smooth).astype(np.float32)


def write_media(
    path: Path,
    *,
    num_frames: int = 50,
    frames_per_second: Fraction | int = 25,
    frame_times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 64),
    sound: np.ndarray | None = None,
    sample_rate: int = 16_000,
    sound_gap: tuple[float, float] | None = None,
    frame_offset: float = 0.0,
    sound_offset: float = 0.0,
    video_codec: str = "libx264",
    sound_codec: str = "aac",
    video_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    title: str = "",
    draw: Callable[[int, int, int], np.ndarray] = numbered_frame,
) -> Path:
    """Write numbered frames and a sound to ``path``; the suffix chooses the container.

    Args:
        num_frames: frames to write; 0 for a file without a video track.
        frame_times: timestamps in seconds of a variable frame rate (else ``i / frames_per_second``).
        size: height, width.
        sound: [channels, n] f32; None for a file without a sound track.
        sound_gap: (at, length) in seconds: a jump of the sound's timestamps, nothing written in between.
        frame_offset, sound_offset: seconds added to every timestamp of the track.
        container_options: muxer options, for example ``{"use_editlist": "0"}``.
        draw: (number, height, width) -> frame [height, width, 3] u8.
    """
    with av.open(str(path), "w", options=container_options or {}) as out:
        packets: list[av.Packet] = []
        if title:
            out.metadata["title"] = title
        # Both streams must be there before the first packet is written.
        video = _video_stream(out, video_codec, frames_per_second, size, video_options) if num_frames else None
        audio = _sound_stream(out, sound_codec, sample_rate, len(sound)) if sound is not None else None
        if video is not None:
            times = frame_times or [float(Fraction(i) / frames_per_second) for i in range(num_frames)]
            packets += _encode_frames(video, [t + frame_offset for t in times], size, draw)
        if audio is not None and sound is not None:
            packets += _encode_sound(audio, sound, sample_rate, sound_offset, sound_gap)
        packets.sort(key=lambda p: float(p.dts * p.time_base))
        for packet in packets:
            out.mux(packet)
    return path


def _video_stream(out, codec, frames_per_second, size, options):  # type: ignore[no-untyped-def]
    stream = out.add_stream(codec, rate=Fraction(frames_per_second))
    stream.height, stream.width = size
    odd = size[0] % 2 or size[1] % 2
    stream.pix_fmt = "rgb24" if codec == "png" else "yuv444p" if odd else "yuv420p"
    if codec == "libx264":
        stream.options = {"preset": "ultrafast", "g": "12", "bf": "2", "threads": "1"}
    stream.options = {**stream.options, **(options or {})}
    stream.codec_context.time_base = Fraction(1, TICKS)
    stream.time_base = Fraction(1, TICKS)
    return stream


def _sound_stream(out, codec, sample_rate, num_channels):  # type: ignore[no-untyped-def]
    return out.add_stream(codec, rate=sample_rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[num_channels])


def _encode_frames(stream, times, size, draw) -> list[av.Packet]:  # type: ignore[no-untyped-def]
    packets = []
    for number, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
        frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _encode_sound(stream, sound, sample_rate, offset, gap) -> list[av.Packet]:  # type: ignore[no-untyped-def]
    packets = []
    block = 1024
    for start in range(0, sound.shape[1], block):
        shift = offset + (gap[1] if gap and start >= gap[0] * sample_rate else 0.0)
        data = np.ascontiguousarray(sound[:, start : start + block])
        layout = stream.layout.name
        if stream.format.name == "s16":
            data = (data.T.reshape(1, -1) * 32767).round().astype(np.int16)
        frame = av.AudioFrame.from_ndarray(data, format=stream.format.name, layout=layout)
        frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
        frame.pts = start + round(shift * sample_rate)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def retimed(source: Path, path: Path, late: Callable[[int], float]) -> Path:
    """A copy in which packet ``number`` of the sound has a timestamp that is ``late(number)`` seconds later."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in container.streams}
        number = 0
        for packet in container.demux():
            if not packet.size:
                continue
            stream = packet.stream
            if stream.type == "audio":
                packet.pts = packet.dts = packet.pts + round(late(number) / packet.time_base)
                number += 1
            packet.stream = streams[stream.index]
            out.mux(packet)
    return path


def truncated(source: Path, path: Path, keep: float) -> Path:
    """The first ``keep`` (0..1) of a file's bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def scribbled(source: Path, path: Path, seed: int = 0, share: float = 0.02) -> Path:
    """A copy whose media bytes (the ``mdat`` box) have a share of bytes replaced at random."""
    data = bytearray(source.read_bytes())
    at = data.index(b"mdat") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    rng = np.random.default_rng(seed)
    where = rng.integers(at + 200, at + length, size=max(1, int(length * share)))
    for position in where:
        data[position] = rng.integers(0, 256)
    path.write_bytes(bytes(data))
    return path


def blanked(source: Path, path: Path, start: float, stop: float) -> Path:
    """A copy whose media bytes between two fractions (0..1) of the ``mdat`` box are zeros."""
    data = bytearray(source.read_bytes())
    at = data.index(b"mdat") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    first, last = at + 8 + int((length - 8) * start), at + 8 + int((length - 8) * stop)
    data[first:last] = bytes(last - first)
    path.write_bytes(bytes(data))
    return path


def promising(source: Path, path: Path, num_samples: int) -> Path:
    """A copy of an mp4 whose video sample table claims ``num_samples`` frames of one byte each."""
    data = bytearray(source.read_bytes())
    at = data.index(b"stsz") + 4
    struct.pack_into(">III", data, at, 0, 1, num_samples)  # version and flags, common size, count
    at = data.index(b"stts") + 4
    struct.pack_into(">IIII", data, at, 0, 1, num_samples, 512)
    path.write_bytes(bytes(data))
    return path


def oversized(source: Path, path: Path, height: int, width: int) -> Path:
    """A copy of an mp4 whose headers (``tkhd`` and ``avc1``) claim another frame size."""
    data = bytearray(source.read_bytes())
    at = data.index(b"avc1") + 4 + 24
    struct.pack_into(">HH", data, at, min(width, 65_535), min(height, 65_535))
    at = data.index(b"tkhd") + 4 + 76
    struct.pack_into(">II", data, at, (width << 16) & 0xFFFFFFFF, (height << 16) & 0xFFFFFFFF)
    path.write_bytes(bytes(data))
    return path


def struck(source: Path, path: Path, number: int, seed: int = 0) -> Path:
    """A copy of a file in which most bytes of the video packet of frame ``number`` are noise."""
    with av.open(str(source)) as container:
        packets = sorted((p for p in container.demux(video=0) if p.size), key=lambda packet: packet.pts)
        at, size = packets[number].pos, packets[number].size
    data = bytearray(source.read_bytes())
    first, last = at + size // 4, at + size * 3 // 4
    data[first:last] = np.random.default_rng(seed).bytes(last - first)
    path.write_bytes(bytes(data))
    return path
