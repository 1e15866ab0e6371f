"""Decodes chosen frames of a video: they are found by their own timestamps, exactly or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np
import torch

from lrs3_loader.decode.display import Display
from lrs3_loader.decode.grey import GreyAreas, can_be_made_up
from lrs3_loader.decode.video import VideoTrack, open_container, video_stream
from lrs3_loader.errors import ClipError, UnreadableError
from lrs3_loader.io.media_file import MEDIA_ERRORS

MAX_REORDERED = 16  # frames that H.264 may show before one that was decoded earlier

Allocate = Callable[[tuple[int, ...]], torch.Tensor]


def allocate_private(shape: tuple[int, ...]) -> torch.Tensor:
    """Make an uninitialized u8 tensor in the memory of this process."""
    return torch.empty(shape, dtype=torch.uint8)


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
        self._display = Display(track.pixel_aspect)
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
            [num_frames, H, W, 3] u8, RGB, as a player shows them (:class:`~lrs3_loader.decode.display.Display`), and
            the indices in ``sources`` of those that are damaged (see :func:`_with_damage`).

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
            pixels = self._display.to_rgb(self._find(wanted))
            if self._pixels is not None and pixels.shape != self._pixels.shape:
                raise self._failed("the size of the frames changes")
            self._pixels = pixels
        self._num_read += 1
        return self._pixels

    def _find(self, wanted: int) -> av.VideoFrame:
        try:
            for frame, is_damaged in self._decoded:
                self._display.note_matrix(frame)
                time = frame.pts if frame.pts is not None else frame.dts
                if time == wanted:
                    self._time, self._is_damaged = time, is_damaged
                    return frame
                if time is not None and time > wanted:
                    break
        except MEDIA_ERRORS as error:
            raise self._failed(str(getattr(error, "strerror", error))) from error
        raise self._failed("no frame at its time")

    def _failed(self, why: str) -> ClipError:
        message = f"damaged video: {self._num_read} of {self.num_frames} frames decoded, then: {why}"
        return UnreadableError(f"{self.track.name}: {message}")


def _frames_from(track: VideoTrack, pts: int) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Decode from the last key frame at or before ``pts``, or from an earlier one if the seek misses it.

    Yields:
        Each frame, and whether it is damaged.
    """
    first_key = int(np.searchsorted(track.key_pts, pts, side="right")) - 1
    # Where the times are those of other packets, some frames before are decoded as well, until the delay is steady.
    first_key = max(0, first_key - 2 * bool(track.packet_delay))
    for key in (*range(first_key, max(0, first_key - 2), -1), None):
        with open_container(track.path, track.name) as container:
            stream = video_stream(container, track.name)
            stream.codec_context.thread_count = 1
            if key is not None:
                container.seek(int(track.key_pts[key]), stream=stream)
            frames = container.decode(stream)
            if track.packet_delay is not None:
                frames = _at_packets(frames, int(track.pts[0]))
            first = next(frames, None)
            if first is None or (key is not None and (first.pts is None or first.pts > pts)):
                continue
            is_made_up = GreyAreas() if can_be_made_up(stream.codec_context.name, track.pts) else _never
            yield from _with_damage(itertools.chain([first], frames), track.damaged_pts, is_made_up)
            return


def _at_packets(frames: Iterable[av.VideoFrame], time: int) -> Iterator[av.VideoFrame]:
    """Give frames the times of the packets with which they come out of the decoder; the last come without a packet.

    Args:
        time: of the first frame, should it come without a packet.
    """
    for frame in frames:
        time = time if frame.dts is None else frame.dts
        frame.pts = time
        time += 1
        yield frame


def _never(frame: av.VideoFrame) -> bool:
    return False


def _with_damage(
    frames: Iterable[av.VideoFrame], damaged_pts: frozenset[int], is_made_up: Callable[[av.VideoFrame], bool]
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Tell which frames are damaged: of which the decoder had to conceal parts, or that are predicted from such frames.

    Frames whose bytes are known to be damaged count as those of which parts were concealed, and so do those that
    ``is_made_up`` finds. Damage lasts until the next key frame. B frames are also predicted from the frame that is
    shown after them, and from one another.
    """

    waiting: list[tuple[av.VideoFrame, bool]] = []  # B frames, and whether each has damage of its own
    is_damaged = False
    for frame in frames:
        has_damage = bool(frame.is_corrupt or frame.pts in damaged_pts or is_made_up(frame))
        waiting.append((frame, has_damage))
        if frame.pict_type == av.video.frame.PictureType.B and len(waiting) < MAX_REORDERED:
            continue
        for other, _ in waiting[:-1]:
            yield other, is_damaged or any(damage for _, damage in waiting)
        is_damaged = has_damage or (is_damaged and not frame.key_frame)
        yield frame, is_damaged
        waiting.clear()
    for frame, _ in waiting:
        yield frame, is_damaged or any(damage for _, damage in waiting)
