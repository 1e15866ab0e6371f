"""Reads the frames of a video file: their timestamps, the choice of 25 per second, and their pixels.

The timestamps are read by demuxing, without decoding; the frames are then decoded and found by their own timestamps,
exactly or not at all.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.avi import check_avi
from lrs3_loader.decode.matroska import damaged_ranges
from lrs3_loader.decode.mp4 import check_mp4, joined
from lrs3_loader.errors import ClipError, NoVideoError, TooLargeError, UnreadableError
from lrs3_loader.io.media_file import MEDIA_ERRORS, check_regular, open_input
from lrs3_loader.types import FRAMES_PER_SECOND, shape_repr

av.logging.set_level(None)

MIN_SIDE = 2  # pixels: smaller frames cannot be resampled
MAX_SOURCE_RATE = 1_000  # frames per second; with more packets than this times its allowed length a video is rejected
MAX_REORDERED = 16  # frames that H.264 may show before one that was decoded earlier
#: How files begin, by their container. FFmpeg stops or skips where a second one begins; it reads other containers on.
_BEGINNINGS = {
    "flv": b"FLV\x01",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "nut": b"nut/multimedia container\0",
}
MIN_STEPS = 10  # between frames, before a rate counts as constant
STEP_TOLERANCE = 0.02  # of a step: containers round timestamps
MAX_GAP_SHARE = 0.05  # of the steps; with more gaps the rate varies
MAX_SLOTS = 10_000_000  # frames at 25 fps (111 hours) of a whole file, of which a clip may be a part

Allocate = Callable[[tuple[int, ...]], torch.Tensor]


def allocate_private(shape: tuple[int, ...]) -> torch.Tensor:
    """Make an uninitialized u8 tensor in the memory of this process."""
    return torch.empty(shape, dtype=torch.uint8)


@dataclass(frozen=True)
class VideoTrack:
    """Timestamps of the frames of a video file, on the container's own timeline."""

    path: Path
    name: str  # of the file in error messages
    pts: np.ndarray  # [n] i64, ascending, in units of time_base: the frames that are shown
    end_pts: int  # when the last frame ends
    time_base: Fraction  # seconds
    height: int  # as coded: a file with a rotation of 90 degrees gives frames of height ``width``
    width: int
    key_pts: np.ndarray  # [k] i64, ascending: the key frames, with which decoding can begin
    damaged_pts: frozenset[int] = frozenset()  # frames whose bytes are known to be damaged

    __repr__ = shape_repr

    @property
    def start_seconds(self) -> Fraction:
        """The time at which the first frame is shown."""
        return int(self.pts[0]) * self.time_base

    def frame_indices_25fps(self) -> np.ndarray:
        """Return the source frame for each frame at 25 fps, [T] i64; see :func:`resample_to_25fps`."""
        return resample_to_25fps(self.pts, self.end_pts, self.time_base)

    def frames_lost_25fps(self) -> np.ndarray:
        """Tell which frames at 25 fps stand in for frames that the file has lost, [T] bool; see :func:`is_after_loss`.

        A source frame stands for itself as long as others are shown.
        """
        sources = self.frame_indices_25fps()
        times = int(self.pts[0]) + np.arange(len(sources)) / (FRAMES_PER_SECOND * float(self.time_base))
        step = np.median(np.diff(self.pts)) if len(self.pts) > 1 else 0
        return is_after_loss(self.pts)[sources] & (times - self.pts[sources] >= step)


def is_after_loss(pts: np.ndarray) -> np.ndarray:
    """Tell after which frames others are missing.

    That is known at a constant rate only: all frames are equally far apart, but for a few gaps of several frames. Where
    timestamps count frames, as in AVI, a gap is a frame that is to be shown for longer.

    Args:
        pts: [n] i64, ascending.

    Returns:
        [n] bool.
    """
    lost = np.zeros(len(pts), dtype=bool)
    steps = np.diff(pts)
    if len(steps) < MIN_STEPS:
        return lost
    usual = np.median(steps)
    if usual < 2:
        return lost
    counts = np.rint(steps / usual)
    is_regular = np.abs(steps - counts * usual) <= np.maximum(1, STEP_TOLERANCE * usual) * np.maximum(counts, 1)
    gaps = counts > 1
    if is_regular.all() and (counts > 0).all() and gaps.mean() <= MAX_GAP_SHARE:
        lost[:-1] = gaps
    return lost


def resample_to_25fps(pts: np.ndarray, end_pts: int, time_base: Fraction) -> np.ndarray:
    """Choose a source frame for each frame at 25 fps, as FFmpeg's ``fps=25`` filter does with its default rounding.

    A source frame at time ``t`` after the first takes slot ``floor(25 t + 1/2)``; slot k shows the latest source frame
    whose slot is not after k; ``T = floor(25 t_end + 1/2)``, at least 1. The arithmetic is in integers, so that a
    source at 25 fps gives every frame once.

    Args:
        pts: [n] i64, ascending, in units of ``time_base`` (seconds).
        end_pts: when the last source frame ends.

    Returns:
        [T] i64, non-decreasing indices into ``pts``.
    """
    rate = 2 * FRAMES_PER_SECOND * time_base
    first = int(pts[0])

    def slot(value: int) -> int:
        return ((value - first) * rate.numerator + rate.denominator) // (2 * rate.denominator)

    slots = np.array([slot(int(value)) for value in pts], dtype=np.int64)
    return np.searchsorted(slots, np.arange(max(1, slot(end_pts))), side="right") - 1


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
        stream = _video_stream(container, name)
        height, width = stream.height, stream.width
        if min(height, width) < MIN_SIDE:
            raise UnreadableError(f"{name}: frames of {width}x{height} (unknown or damaged codec)")
        if height * width > config.max_pixels:
            raise TooLargeError(f"{name}: frames of {width}x{height}, more than {config.max_pixels} pixels")
        max_packets = config.max_frames * MAX_SOURCE_RATE // FRAMES_PER_SECOND
        unsorted, durations, key_pts, damaged = _demux_timestamps(container, stream, name, max_packets, ranges)
        time_base = Fraction(stream.time_base or 1)
        promised = _promised_seconds(stream)
        if container.format.name == "avi":  # it has no timestamps: a lost packet would shift all that follow
            num_listed = sum(entry.size > 0 for entry in getattr(stream, "index_entries", ()))  # newer PyAV
            if num_listed > len(unsorted):
                raise UnreadableError(f"{name}: damaged: {len(unsorted)} of {num_listed} video packets found")

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
    return VideoTrack(path, name, pts, end_pts, time_base, height, width, np.unique(key_pts), damaged)


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


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
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
    pts: list[int] = []
    durations: list[int] = []
    key_pts: list[int] = []
    damaged: set[int] = set()
    num_packets = 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet that ends every stream
                continue
            if packet.is_corrupt:
                raise UnreadableError(f"{name}: damaged: packet {num_packets} of the video is incomplete")
            num_packets += 1
            if num_packets > max_packets:
                raise TooLargeError(f"{name}: more than {max_packets} frames")
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None:
                raise UnreadableError(f"{name}: packet {num_packets} of the video has no timestamp")
            if packet.is_keyframe:
                if key_pts and time <= key_pts[-1]:
                    raise UnreadableError(
                        f"{name}: its timestamps start again at packet {num_packets} of the video: "
                        "recordings joined without rewriting their timestamps"
                    )
                key_pts.append(time)
            if any((packet.pos or 0) in damaged_range for damaged_range in damaged_ranges):
                damaged.add(time)
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


def _promised_seconds(stream: av.VideoStream) -> Fraction:
    """Return the length of the video track that the container states; 0 if it states none."""
    if stream.duration is not None:
        return stream.duration * Fraction(stream.time_base or 1)
    try:  # Matroska: "00:00:02.040000000"
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * Fraction(hours) + 60 * Fraction(minutes) + Fraction(seconds)
    except ValueError:
        return Fraction(0)


def read_frames(track: VideoTrack, sources: np.ndarray) -> torch.Tensor:
    """Decode all of these frames at once; see :class:`FrameReader`."""
    return FrameReader(track, sources).read(len(sources))[0]


class FrameReader:
    """Decodes chosen frames of a video in order, as many at a time as the caller has memory for.

    Args:
        track: the video.
        sources: [n] non-decreasing indices into ``track.pts``; repeated ones are decoded once.
        start: how many of them to leave out.
        lost: [n] bool, those that stand in for lost frames, and count as damaged.
    """

    def __init__(self, track: VideoTrack, sources: np.ndarray, start: int = 0, lost: np.ndarray | None = None) -> None:
        self.track = track
        self.num_frames = len(sources)
        self._times: list[int] = track.pts[sources].tolist()
        self._num_read = start
        self._decoded = _frames_from(track, self._times[start])
        self._convert = VideoReformatter()  # keeps its tables, which cost more than the conversion of a small frame
        self._time: int | None = None  # of the last frame that was decoded
        self._pixels: np.ndarray | None = None  # of the last frame that was wanted
        self._is_damaged = False
        self._lost = lost

    @property
    def num_left(self) -> int:
        return self.num_frames - self._num_read

    def read(self, num_frames: int, allocate: Allocate = allocate_private) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Decode the next ``num_frames`` frames.

        Args:
            allocate: makes the tensor that is returned, from its shape.

        Returns:
            [num_frames, H, W, 3] u8, RGB, rotated as the file asks, and the indices in ``sources`` of those that are
            damaged (see :func:`_with_damage`).

        Raises:
            UnreadableError: one of them cannot be decoded.
        """
        start, damaged = self._num_read, []
        rows = np.empty(0, dtype=np.uint8)
        for i in range(num_frames):
            pixels = self._next()
            if i == 0:
                frames = allocate((num_frames, *pixels.shape))
                rows = frames.numpy()
            rows[i] = pixels
            if self._is_damaged or (self._lost is not None and self._lost[start + i]):
                damaged.append(start + i)
        return frames, tuple(damaged)

    def _next(self) -> np.ndarray:
        """Decode up to the next wanted frame; returns its pixels [H, W, 3]."""
        wanted = self._times[self._num_read]
        if self._time != wanted or self._pixels is None:
            pixels = self._rgb(self._find(wanted))
            if self._pixels is not None and pixels.shape != self._pixels.shape:
                raise self._failed("the size of the frames changes")
            self._pixels = pixels
        self._num_read += 1
        return self._pixels

    def _find(self, wanted: int) -> av.VideoFrame:
        try:
            for frame, is_damaged in self._decoded:
                time = frame.pts if frame.pts is not None else frame.dts
                if time == wanted:
                    self._time, self._is_damaged = time, is_damaged
                    return frame
                if time is not None and time > wanted:
                    break
        except MEDIA_ERRORS as error:
            raise self._failed(str(getattr(error, "strerror", error))) from error
        raise self._failed("no frame at its time")

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to pixels [H, W, 3], a view of the memory that the frame owns."""
        shown = self._convert.reformat(frame, format="rgb24")
        plane = shown.planes[0]
        rows = np.asarray(memoryview(plane)).reshape(shown.height, plane.line_size)
        pixels = rows[:, : 3 * shown.width].reshape(shown.height, shown.width, 3)
        return np.rot90(pixels, round(frame.rotation / 90))

    def _failed(self, why: str) -> ClipError:
        message = f"damaged video: {self._num_read} of {self.num_frames} frames decoded, then: {why}"
        return UnreadableError(f"{self.track.name}: {message}")


def _frames_from(track: VideoTrack, pts: int) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Decode from the last key frame at or before ``pts``, or from an earlier one if the seek misses it.

    Yields:
        Each frame, and whether it is damaged.
    """
    first_key = max(0, int(np.searchsorted(track.key_pts, pts, side="right")) - 1)
    for key in (*range(first_key, max(0, first_key - 2), -1), None):
        with open_container(track.path, track.name) as container:
            stream = _video_stream(container, track.name)
            stream.codec_context.thread_count = 1
            if key is not None:
                container.seek(int(track.key_pts[key]), stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            if first is None or (key is not None and (first.pts is None or first.pts > pts)):
                continue
            yield from _with_damage(itertools.chain([first], frames), track.damaged_pts)
            return


def _with_damage(frames: Iterable[av.VideoFrame], damaged_pts: frozenset[int]) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Tell which frames are damaged: of which the decoder had to conceal parts, or that are predicted from such frames.

    Frames whose bytes are known to be damaged count as those of which parts were concealed. Damage lasts until the next
    key frame. B frames are also predicted from the frame that is shown after them, and from one another.
    """

    def has_damage(frame: av.VideoFrame) -> bool:
        return bool(frame.is_corrupt or frame.pts in damaged_pts)

    waiting: list[av.VideoFrame] = []  # B frames
    is_damaged = False
    for frame in frames:
        waiting.append(frame)
        if frame.pict_type == av.video.frame.PictureType.B and len(waiting) < MAX_REORDERED:
            continue
        for other in waiting[:-1]:
            yield other, is_damaged or any(map(has_damage, waiting))
        is_damaged = has_damage(frame) or (is_damaged and not frame.key_frame)
        yield frame, is_damaged
        waiting.clear()
    for frame in waiting:
        yield frame, is_damaged or any(map(has_damage, waiting))
