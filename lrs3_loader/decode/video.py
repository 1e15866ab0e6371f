"""Reads what a video file holds: the timestamps of its frames, by demuxing and without decoding, and their size."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.avi import check_avi
from lrs3_loader.decode.display import pixel_aspect, shown_width
from lrs3_loader.decode.matroska import damaged_ranges
from lrs3_loader.decode.mp4 import check_mp4, joined
from lrs3_loader.decode.timing import lost_25fps, resample_to_25fps
from lrs3_loader.errors import NoVideoError, TooLargeError, UnreadableError
from lrs3_loader.io.media_file import MEDIA_ERRORS, check_regular, open_input
from lrs3_loader.types import FRAMES_PER_SECOND, shape_repr

av.logging.set_level(None)

MIN_SIDE = 2  # pixels: smaller frames cannot be resampled
MAX_SOURCE_RATE = 1_000  # frames per second; with more packets than this times its allowed length a video is rejected
#: How files begin, by their container. FFmpeg stops or skips where a second one begins; it reads other containers on.
_BEGINNINGS = {
    "flv": b"FLV\x01",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "nut": b"nut/multimedia container\0",
}
MAX_SLOTS = 10_000_000  # frames at 25 fps (111 hours) of a whole file, of which a clip may be a part


@dataclass(frozen=True)
class VideoTrack:
    """Timestamps of the frames of a video file, on the container's own timeline."""

    path: Path
    name: str  # of the file in error messages
    pts: np.ndarray  # [n] i64, ascending, in units of time_base: the frames that are shown
    end_pts: int  # when the last frame ends
    time_base: Fraction  # seconds
    height: int  # as shown, but for a rotation: by 90 degrees, frames have the height ``width``
    width: int
    key_pts: np.ndarray  # [k] i64, ascending: the key frames, with which decoding can begin
    damaged_pts: frozenset[int] = frozenset()  # frames whose bytes are known to be damaged
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel of the file over its height
    #: AVI has no timestamps: a frame is shown at the time of the packet that comes so many packets later, when the
    #: decoder gives it out. None: frames have timestamps.
    packet_delay: int | None = None

    __repr__ = shape_repr

    @property
    def start_seconds(self) -> Fraction:
        """The time at which the first frame is shown."""
        return int(self.pts[0]) * self.time_base

    def frame_indices_25fps(self) -> np.ndarray:
        """Return the source frame for each frame at 25 fps, [T] i64; see :func:`resample_to_25fps`."""
        return resample_to_25fps(self.pts, self.end_pts, self.time_base)

    def frames_lost_25fps(self) -> np.ndarray:
        """Tell which frames at 25 fps stand in for frames that the file has lost, [T] bool; see :func:`lost_25fps`."""
        return lost_25fps(self.pts, len(self.frame_indices_25fps()), self.time_base)


def probe_video(path: Path, name: str, config: DecodeConfig) -> VideoTrack:
    """Read the timestamps of a video file without decoding it.

    Args:
        name: the name of the file in error messages.

    Raises:
        UnreadableError: the file is missing, damaged, cut short, or not a media file.
        NoVideoError: the file has no video track.
        TooLargeError: its frames are larger, or more, than ``config`` allows.
    """
    with open_container(path, name) as container:
        ranges = _damaged_ranges(path, name) if "matroska" in container.format.name else ()
        _check_not_joined(path, name, container.format.name)
        stream = video_stream(container, name)
        aspect = pixel_aspect(stream)
        height, width = stream.height, shown_width(stream.width, aspect)
        if min(height, width, stream.width) < MIN_SIDE:
            raise UnreadableError(f"{name}: frames of {width}x{height} (unknown or damaged codec)")
        if height * max(width, stream.width) > config.max_pixels:
            raise TooLargeError(f"{name}: frames of {width}x{height}, more than {config.max_pixels} pixels")
        max_packets = config.max_frames * MAX_SOURCE_RATE // FRAMES_PER_SECOND
        unsorted, durations, key_pts, damaged = _demux_timestamps(container, stream, name, max_packets, ranges)
        time_base = Fraction(stream.time_base or 1)
        promised = _promised_seconds(stream, int(unsorted.min()) * time_base)
        if container.format.name == "avi":  # it has no timestamps: a lost packet would shift all that follow
            num_listed = sum(entry.size > 0 for entry in getattr(stream, "index_entries", ()))  # newer PyAV
            if num_listed > len(unsorted):
                raise UnreadableError(f"{name}: damaged: {len(unsorted)} of {num_listed} video packets found")
            packet_delay = _packet_delay(path, name, unsorted)
            unsorted = np.append(unsorted, unsorted[-1] + 1 + np.arange(packet_delay))[packet_delay:]
        else:
            packet_delay = None
            if unsorted.min() < key_pts[0]:  # a recording that was cut at a key frame, in the middle of an open GOP
                first = _first_frame(path, name)
                is_shown = unsorted >= (key_pts[0] if first is None or first.pts is None else first.pts)
                unsorted, durations = unsorted[is_shown], durations[is_shown]

    order = np.argsort(unsorted, kind="stable")
    pts = unsorted[order]
    # If the container does not say how long the last frame is shown: as the others, or 1/25 s.
    usual = int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / (FRAMES_PER_SECOND * time_base))
    end_pts = int(pts[-1]) + (int(durations[order[-1]]) or usual)
    seconds = (end_pts - int(pts[0])) * time_base
    if seconds * FRAMES_PER_SECOND > MAX_SLOTS:
        raise UnreadableError(f"{name}: damaged timestamps: frames {float(seconds):.0f} s apart")
    if promised - seconds > config.max_av_mismatch_seconds:
        raise UnreadableError(
            f"{name}: cut short: {float(promised):.2f} s promised, {float(seconds):.2f} s of video there"
        )
    return VideoTrack(
        path, name, pts, end_pts, time_base, height, width, np.unique(key_pts), damaged, aspect, packet_delay
    )


def open_container(path: Path, name: str) -> av.container.InputContainer:
    """Open a media file for reading.

    Args:
        name: the name of the file in error messages.

    Raises:
        UnreadableError: the file is missing, empty, damaged, or not a media file.
    """
    check_regular(path, name)
    try:
        check_mp4(path, name)
        check_avi(path, name)
    except OSError as error:
        raise UnreadableError(f"{name}: {error.strerror}") from error
    return open_input(path, name)


def _damaged_ranges(path: Path, name: str) -> tuple[range, ...]:
    try:
        return damaged_ranges(path)
    except OSError as error:
        raise UnreadableError(f"{name}: {error.strerror}") from error


def _check_not_joined(path: Path, name: str, container: str) -> None:
    """Raise ``UnreadableError`` if a file of ``_BEGINNINGS`` holds another behind it."""
    if container not in _BEGINNINGS:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        beginning = data[: max(9, len(_BEGINNINGS[container]))]  # the header of FLV has nine bytes
        second = data.find(beginning, 1)
    if second > 0:
        raise joined(name, second)


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the video track of a file.

    Args:
        name: the name of the file in error messages.

    Raises:
        NoVideoError: it has none.
        UnreadableError: FFmpeg has no decoder for it.
    """
    stream = container.streams.best("video")
    # Cover images of audio files are video streams, too; a track of an unknown codec has no codec context.
    if not isinstance(stream, av.VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
        raise NoVideoError(f"{name}: no video track")
    if stream.codec_context is None:
        raise UnreadableError(f"{name}: no decoder for its video")
    return stream


def _demux_timestamps(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    name: str,
    max_packets: int,
    damaged_ranges: tuple[range, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, frozenset[int]]:
    """Read the timestamps of a track.

    Returns:
        the times [n] of the frames that are shown, their durations [n] (0: unknown), the times of key frames [k], and
        those of frames that lie in damaged bytes of the file.
    """
    is_avi = container.format.name == "avi"
    pts: list[int] = []
    durations: list[int] = []
    key_pts: list[int] = []
    damaged: set[int] = set()
    num_packets = position = 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet that ends every stream
                continue
            if packet.is_corrupt:
                raise UnreadableError(f"{name}: damaged: packet {num_packets} of the video is incomplete")
            num_packets += 1
            if num_packets > max_packets:
                raise TooLargeError(f"{name}: more than {max_packets} frames")
            time = packet.dts if is_avi or packet.pts is None else packet.pts
            if time is None:
                raise UnreadableError(f"{name}: packet {num_packets} of the video has no timestamp")
            if packet.is_keyframe:
                if key_pts and time <= key_pts[-1]:
                    raise UnreadableError(
                        f"{name}: its timestamps start again at packet {num_packets} of the video: "
                        "recordings joined without rewriting their timestamps"
                    )
                key_pts.append(time)
            if _is_damaged(packet, damaged_ranges, position):
                damaged.add(time)
            position = max(position, packet.pos or 0)
            # Nothing before the first key frame can be decoded; an edit list may hide frames that others depend on.
            if key_pts and not packet.is_discard:
                pts.append(time)
                durations.append(packet.duration or 0)
    except MEDIA_ERRORS as error:
        why = getattr(error, "strerror", error)
        raise UnreadableError(f"{name}: damaged after {num_packets} video packets ({why})") from error
    if not pts:
        raise UnreadableError(f"{name}: the video track holds no frame that can be shown")
    return np.array(pts), np.array(durations), np.array(key_pts), frozenset(damaged)


def _is_damaged(packet: av.Packet, damaged_ranges: tuple[range, ...], previous: int) -> bool:
    """Tell whether a packet lies in damaged bytes, or after some in which frames that it depends on may have been lost.

    Args:
        previous: the position of the packet before it.
    """
    position = packet.pos or 0
    return any(
        position in damaged or (previous < damaged.start < position and not packet.is_keyframe)
        for damaged in damaged_ranges
    )


def _packet_delay(path: Path, name: str, times: np.ndarray) -> int:
    """Return how many packets after its own the first frame of an AVI file is decoded: frames may be out of order.

    Args:
        times: [n] those of the packets, in the order of the file.
    """
    first = _first_frame(path, name)
    return len(times) if first is None or first.dts is None else int(np.searchsorted(times, first.dts))


def _first_frame(path: Path, name: str) -> av.VideoFrame | None:
    """Decode the first frame that the decoder shows; None if it shows none."""
    try:
        with open_container(path, name) as container:
            stream = video_stream(container, name)
            stream.codec_context.thread_count = 1
            return next(container.decode(stream), None)
    except MEDIA_ERRORS as error:
        raise UnreadableError(f"{name}: damaged video ({getattr(error, 'strerror', error)})") from error


def _promised_seconds(stream: av.VideoStream, start_seconds: Fraction) -> Fraction:
    """Return the length of the video track that the container states; 0 if it states none."""
    if stream.duration is not None:
        return stream.duration * Fraction(stream.time_base or 1)
    try:  # Matroska: "00:00:02.040000000", the time at which the track ends
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * Fraction(hours) + 60 * Fraction(minutes) + Fraction(seconds) - max(Fraction(0), start_seconds)
    except ValueError:
        return Fraction(0)
