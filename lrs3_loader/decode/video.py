"""Reads the frames of a video file: their timestamps, the choice of 25 per second, and their pixels.

decord decodes about twice as fast as PyAV, but silently gives wrong frames in some files: it starts every track at
zero, repeats neighbours of frames that it could not decode, counts packets that an edit list hides, and returns frames
that are a few too late after a seek in a video with open groups of pictures. So PyAV reads the timestamps (by demuxing,
without decoding), decord decodes the files that it is known to decode correctly, and PyAV the others, exactly or not at
all. Both give the same bits.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch  # decord must be loaded after torch

# isort: split
import decord

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.mp4 import check_mp4
from lrs3_loader.errors import ClipError, NoVideoError, TooLargeError, UnreadableError
from lrs3_loader.io.media_file import check_regular, open_input
from lrs3_loader.types import FRAMES_PER_SECOND, shape_repr

av.logging.set_level(None)
decord.logging.set_level(decord.logging.QUIET)
logger = logging.getLogger(__name__)

PIECE_BYTES = 7 << 18  # of frames requested from decord at a time, which bounds the copy that it keeps
MIN_SIDE = 2  # pixels: smaller frames cannot be resampled
MAX_SOURCE_RATE = 1_000  # frames per second; with more packets than this times its allowed length a video is rejected
MAX_SLOTS = 10_000_000  # frames at 25 fps (111 hours) of a whole file, of which a clip may be a part
# Errors of decord; the last three are raised if it cannot open the file, finds no frame, or the name is not UTF-8.
DECORD_ERRORS = (
    decord.DECORDError,
    decord._ffi.base.DECORDLimitReachedError,
    RuntimeError,
    AssertionError,
    UnicodeEncodeError,
)
DECORD_FORMATS = ("mov", "matroska")  # in others (MPEG-TS) decord silently skips the first group of pictures

Allocate = Callable[..., torch.Tensor]


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
    has_open_groups: bool  # some frames follow a key frame in the file, but are shown before it
    decord_fits: bool  # every packet is shown, in a container that decord reads correctly

    __repr__ = shape_repr

    @property
    def start_seconds(self) -> Fraction:
        """The time at which the first frame is shown."""
        return int(self.pts[0]) * self.time_base

    def frame_indices_25fps(self) -> np.ndarray:
        """Return the source frame for each frame at 25 fps, [T] i64; see :func:`resample_to_25fps`."""
        return resample_to_25fps(self.pts, self.end_pts, self.time_base)


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
        stream = _video_stream(container, name)
        height, width = stream.height, stream.width
        if min(height, width) < MIN_SIDE:
            raise UnreadableError(f"{name}: frames of {width}x{height} (unknown or damaged codec)")
        if height * width > config.max_pixels:
            raise TooLargeError(f"{name}: frames of {width}x{height}, more than {config.max_pixels} pixels")
        max_packets = config.max_frames * MAX_SOURCE_RATE // FRAMES_PER_SECOND
        packets = _demux_timestamps(container, stream, name, max_packets)
        time_base = Fraction(stream.time_base or 1)
        faithful = any(kind in container.format.name for kind in DECORD_FORMATS)
        promised = _promised_seconds(stream)

    order = np.argsort(packets.pts, kind="stable")
    pts = packets.pts[order]
    end_pts = int(pts[-1]) + (int(packets.durations[order[-1]]) or _usual_step(pts, time_base))
    seconds = (end_pts - int(pts[0])) * time_base
    if seconds * FRAMES_PER_SECOND > MAX_SLOTS:
        raise UnreadableError(f"{name}: damaged timestamps: frames {float(seconds):.0f} s apart")
    if promised - seconds > config.max_av_mismatch_seconds:
        raise UnreadableError(
            f"{name}: cut short: {float(promised):.2f} s promised, {float(seconds):.2f} s of video there"
        )
    return VideoTrack(
        path,
        name,
        pts,
        end_pts,
        time_base,
        height,
        width,
        key_pts=np.unique(packets.key_pts),
        has_open_groups=packets.has_open_groups,
        decord_fits=faithful and packets.num_packets == len(pts),
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
    except OSError as error:
        raise UnreadableError(f"{name}: {error.strerror}") from error
    return open_input(path, name)


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    stream = container.streams.best("video")
    # Cover images of audio files are video streams, too; a track of an unknown codec has no codec context.
    if not isinstance(stream, av.VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
        raise NoVideoError(f"{name}: no video track")
    if stream.codec_context is None:
        raise UnreadableError(f"{name}: no decoder for its video")
    return stream


@dataclass
class _Packets:
    """The packets of a video track, in the order of the file."""

    pts: np.ndarray  # [n] i64: the frames shown
    durations: np.ndarray  # [n] i64, 0 where unknown
    key_pts: np.ndarray  # [k] i64, including hidden frames
    has_open_groups: bool
    num_packets: int  # including those of hidden frames


def _demux_timestamps(
    container: av.container.InputContainer, stream: av.VideoStream, name: str, max_packets: int
) -> _Packets:
    pts: list[int] = []
    durations: list[int] = []
    key_pts: list[int] = []
    has_open_groups = False
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
            has_open_groups = has_open_groups or bool(key_pts and time < key_pts[-1])
            # Nothing before the first key frame can be decoded; an edit list may hide frames that others depend on.
            if key_pts and not packet.is_discard:
                pts.append(time)
                durations.append(packet.duration or 0)
    except av.error.FFmpegError as error:
        raise UnreadableError(f"{name}: damaged after {num_packets} video packets ({error.strerror})") from error
    if not pts:
        raise UnreadableError(f"{name}: the video track holds no frame that can be shown")
    columns = [np.array(values, dtype=np.int64) for values in (pts, durations, key_pts)]
    return _Packets(columns[0], columns[1], columns[2], has_open_groups, num_packets)


def _usual_step(pts: np.ndarray, time_base: Fraction) -> int:
    """Estimate how long the last frame is shown if the container does not say: as the others, or 1/25 s."""
    if len(pts) > 1:
        return int(np.median(np.diff(pts)))
    return round(1 / (FRAMES_PER_SECOND * time_base))


def _promised_seconds(stream: av.VideoStream) -> Fraction:
    """Return the length of the video track that the container states; 0 if it states none."""
    if stream.duration is not None:
        return stream.duration * Fraction(stream.time_base or 1)
    try:  # Matroska: "00:00:02.040000000"
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * Fraction(hours) + 60 * Fraction(minutes) + Fraction(seconds)
    except ValueError:
        return Fraction(0)


def read_frames(track: VideoTrack, sources: np.ndarray, allocate: Allocate = torch.empty) -> torch.Tensor:
    """Decode frames of a video.

    Args:
        sources: [n] non-decreasing indices into ``track.pts``; repeated ones are decoded once.
        allocate: makes the tensor that is returned, from its shape and ``dtype``.

    Returns:
        [n, H, W, 3] u8, RGB, rotated as the file asks.

    Raises:
        UnreadableError: some of the frames cannot be decoded.
    """
    wanted, position = np.unique(sources, return_inverse=True)
    # decord seeks when frames are left out.
    reads_through = np.array_equal(wanted, np.arange(len(wanted)))
    if track.decord_fits and (reads_through or not track.has_open_groups):
        try:
            return _gather(_decode_with_decord(track, wanted), position, allocate)
        except _DecordDiffersError as error:
            logger.debug("%s: decoding with av instead of decord: %s", track.name, error)
    return _gather(_decode_with_av(track, wanted), position, allocate)


def _gather(pieces: Iterator[np.ndarray], position: np.ndarray, allocate: Allocate) -> torch.Tensor:
    """Pick the frames at ``position`` (non-decreasing) from the pieces [k, H, W, 3], with a single copy of each."""
    frames: torch.Tensor | None = None
    start = 0
    for piece in pieces:
        if frames is None:
            frames = allocate((len(position), *piece.shape[1:]), dtype=torch.uint8)
        first, last = np.searchsorted(position, (start, start + len(piece)))
        picked = position[first:last] - start
        frames[first:last] = torch.from_numpy(piece if len(picked) == len(piece) else piece[picked])
        start += len(piece)
    assert frames is not None
    assert start == position[-1] + 1
    return frames


class _DecordDiffersError(Exception):
    """decord does not find the frames that the container holds."""


def _decode_with_decord(track: VideoTrack, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames in order, [k, H, W, 3] u8 at a time; raise :class:`_DecordDiffersError` if in doubt."""
    try:
        # With the smallest tolerance above zero decord raises instead of repeating a neighbour.
        reader = decord.VideoReader(str(track.path), num_threads=1, fault_tol=1e-9)
        if len(reader) != len(track.pts):
            raise _DecordDiffersError(f"decord counts {len(reader)} frames, the container {len(track.pts)}")
        theirs = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        ours = (track.pts - track.pts[0]) * float(track.time_base)
        if np.abs(theirs - theirs[0] - ours).max() > 1e-3:
            raise _DecordDiffersError("decord's timestamps differ from the container's")
        step = max(1, PIECE_BYTES // (3 * track.height * track.width))
        for start in range(0, len(wanted), step):
            yield reader.get_batch(wanted[start : start + step].tolist()).asnumpy()
    except DECORD_ERRORS as error:
        raise _DecordDiffersError(str(error).splitlines()[0]) from error


def _decode_with_av(track: VideoTrack, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames in order, [1, H, W, 3] u8 each, found by their own timestamps or reported as missing."""
    missing = track.pts[wanted].tolist()[::-1]  # the next one last
    size = None
    try:
        for frame in _frames_from(track, missing[-1]):
            time = frame.pts if frame.pts is not None else frame.dts
            while missing and missing[-1] == time:
                missing.pop()
                if size not in (None, (frame.height, frame.width)):
                    raise _lost(track, len(missing), len(wanted), "the size of the frames changes")
                size = frame.height, frame.width
                pixels = frame.to_ndarray(format="rgb24")
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))[None]
            if not missing or (time is not None and time > missing[-1]):
                break
    except av.error.FFmpegError as error:
        raise _lost(track, len(missing), len(wanted), str(error.strerror)) from error
    if missing:
        raise _lost(track, len(missing), len(wanted), "no frame at its time")


def _frames_from(track: VideoTrack, pts: int) -> Iterator[av.VideoFrame]:
    """Decode from the last key frame at or before ``pts``, or from an earlier one if the seek misses it."""
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
            for frame in itertools.chain([first], frames):
                assert isinstance(frame, av.VideoFrame)
                yield frame
            return


def _lost(track: VideoTrack, num_missing: int, num_wanted: int, why: str) -> ClipError:
    done = num_wanted - num_missing
    return UnreadableError(f"{track.name}: damaged video: {done} of {num_wanted} frames decoded, then: {why}")
