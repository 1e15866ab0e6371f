"""Decodes single chunks of clips: ``ClipDataset``, which ``ClipLoader`` runs in worker processes.

An expected failure of a clip becomes a :class:`~lrs3_loader.types.Reject`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.config import DecodeConfig
from lrs3_loader.corpus.transcript import read_transcript
from lrs3_loader.decode.audio import MEL_WAVEFORMS, TimeRange, read_audio
from lrs3_loader.decode.clip_queue import PREFETCH, ChunkRequest
from lrs3_loader.decode.frames import Allocate, FrameReader, allocate_private
from lrs3_loader.decode.video import VideoTrack, probe_video
from lrs3_loader.errors import ClipError, LengthMismatchError, RunError, TooLargeError, TooShortError
from lrs3_loader.io.storage import Location, store_at
from lrs3_loader.types import FRAMES_PER_SECOND, ROWS_PER_FRAME, Clip, ClipHead, DecodedChunk, Reject, SourceInfo

Pitch = Callable[[np.ndarray, int], tuple[np.ndarray, int]]
"""A module-level function (waveform [n] f32 at 16 kHz, wanted rows) -> (F0 in Hz [rows] f32, rows before fitting)."""


def _no_beat() -> None:
    """Do nothing: no process supervises the work."""


class ClipDataset:
    """Decodes the chunks of clips that are asked for by a :class:`ChunkRequest`.

    Args:
        root: folder or URL that the clips' paths are relative to.
        pitch: computes F0 for the head of each clip.
    """

    def __init__(self, root: Location, config: DecodeConfig, pitch: Pitch) -> None:
        self.files = store_at(root)
        self._root = _identity(self.files.root)
        self.config = config
        self.pitch = pitch
        self.beat: Callable[[], None] = _no_beat  # called between the steps of the work
        self.allocate: Allocate = allocate_private  # makes the tensors of frames
        self._readers: OrderedDict[tuple[Clip, int], FrameReader] = OrderedDict()  # by the next frame of each

    def __getitem__(self, request: ChunkRequest) -> DecodedChunk | Reject:
        """Decode one chunk. A ``ClipError`` becomes a Reject.

        The clip's files are fetched first if they are not on this machine. A reader is kept for the next chunk.

        Raises:
            RunError: fetching fails, or the whole corpus has gone.
            MemoryError: there is not enough memory for so large a chunk.
        """
        clip = request.clip
        reader = self._readers.pop((clip, request.start), None)
        try:
            if reader is not None:
                return self._read(request, reader, None)
            heads = (clip.sound_path, clip.transcript_path) if request.start == 0 else ()
            names = [clip.video_path, *(name for name in heads if name is not None)]
            with self.files.local_copy(*names, beat=self.beat) as root:
                try:
                    return self._begin(request, root)
                except ClipError as error:
                    # A corpus may be mounted anywhere, so messages must not depend on that.
                    raise type(error)(str(error).replace(f"{root}{os.sep}", "")) from error
        except ClipError as error:
            self._check_there(clip)
            return Reject(clip, error.reason, str(error))

    def chunks(self, clip: Clip) -> Iterator[DecodedChunk | Reject]:
        """Decode a whole clip in this process; yield its chunks in order. A Reject, if any, is the last item."""
        start: int | None = 0
        while start is not None:
            item = self[ChunkRequest(clip, start)]
            yield item
            start = None if isinstance(item, Reject) or item.is_last else item.stop

    def _check_there(self, clip: Clip) -> None:
        """Raise ``RunError`` if a video is missing because the disk of the corpus is no longer mounted."""
        root = self.files.root
        if isinstance(root, Path) and not os.path.lexists(root / clip.video_path) and _identity(root) != self._root:
            raise RunError(
                f"{root} is not what it was when the run began, and {clip.video_path} is not in it: "
                "mount or restore it, then run the same command again"
            )

    def _begin(self, request: ChunkRequest, root: Path) -> DecodedChunk:
        clip = request.clip
        track = probe_video(root / clip.video_path, clip.video_path, self.config)
        self.beat()
        sources, skip = select_frames(track, clip, self.config)
        head = self._head(clip, root, track, sources, skip) if request.start == 0 else None
        first = int(skip * FRAMES_PER_SECOND)
        lost = track.frames_lost_25fps()[first : first + len(sources)]
        return self._read(request, FrameReader(track, sources, request.start, lost), head)

    def _read(self, request: ChunkRequest, reader: FrameReader, head: ClipHead | None) -> DecodedChunk:
        max_bytes = self.config.chunk_mebibytes << 20 if request.max_bytes is None else request.max_bytes
        size = max(1, max_bytes // (reader.track.height * reader.track.width * 3))
        frames, damaged = reader.read(min(size, reader.num_left), self.allocate)
        if reader.num_left:
            self._readers[request.clip, request.start + len(frames)] = reader
            if len(self._readers) > PREFETCH:
                self._readers.popitem(last=False)
        if head is not None:  # a file may ask to be rotated
            shown = dataclasses.replace(head.source, height=frames.shape[1], width=frames.shape[2])
            head = dataclasses.replace(head, source=shown)
        return DecodedChunk(request.clip, reader.num_frames, request.start, frames, head, damaged)

    def _head(self, clip: Clip, root: Path, track: VideoTrack, sources: np.ndarray, skip: Fraction) -> ClipHead:
        transcript = read_transcript(root / clip.transcript_path) if clip.transcript_path else None
        name = clip.sound_path or clip.video_path
        start = None if clip.sound_path else track.start_seconds
        late = Fraction(clip.audio_offset_frames or 0, FRAMES_PER_SECOND)
        if transcript is not None and late:  # its times are those of the audio
            transcript = dataclasses.replace(transcript, words=tuple(_earlier(word, late) for word in transcript.words))
        time_range = TimeRange(start, skip + late, len(sources), open_end=clip.end_seconds is None)
        mismatch, for_mel = self.config.max_av_mismatch_seconds, MEL_WAVEFORMS[self.config.mel_like]
        audio = read_audio(root / name, name, time_range, mismatch, for_mel)
        self.beat()
        f0_hz, num_f0_rows = self.pitch(audio.waveform.numpy(), ROWS_PER_FRAME * len(sources))
        self.beat()
        source = SourceInfo(
            frames_per_second=_average_rate(track, sources),
            num_frames=len(track.pts),
            height=track.height,
            width=track.width,
            sample_rate=audio.sample_rate,
            num_channels=audio.num_channels,
            num_samples=audio.num_samples,
            sound_offset_seconds=float(audio.start_seconds - start) if start is not None else 0.0,
            num_missing_samples=audio.num_missing_samples,
            num_excess_samples=audio.num_excess_samples,
            sample_aspect_ratio=float(track.pixel_aspect),
        )
        return ClipHead(audio.waveform, torch.from_numpy(f0_hz), num_f0_rows, source, transcript, audio.mel_waveform)


def _earlier(word: tuple[str, float, float, float], seconds: Fraction) -> tuple[str, float, float, float]:
    """Move a word of a transcript to an earlier time."""
    text, start, end, score = word
    return text, round(start - float(seconds), 4), round(end - float(seconds), 4), score


def _identity(root: Location) -> tuple[int, int] | None:
    """Return device and inode of a folder; None if there is none, or on object storage."""
    if not isinstance(root, Path):
        return None
    try:
        state = root.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def select_frames(track: VideoTrack, clip: Clip, config: DecodeConfig) -> tuple[np.ndarray, Fraction]:
    """Choose the source frames of a clip, resampled to 25 fps and cut at its start and end.

    Returns:
        [T] indices of source frames, and the start of the clip: seconds after the first frame, a multiple of 1/25.

    Raises:
        TooShortError, TooLargeError: T is out of the configured range.
        LengthMismatchError: the clip ends more than ``max_av_mismatch_seconds`` after its video.
    """
    whole = track.frame_indices_25fps()
    start = round((clip.start_seconds or 0) * FRAMES_PER_SECOND)
    stop = len(whole) if clip.end_seconds is None else round(clip.end_seconds * FRAMES_PER_SECOND)
    if stop - len(whole) > config.max_av_mismatch_seconds * FRAMES_PER_SECOND:
        length = len(whole) / FRAMES_PER_SECOND
        raise LengthMismatchError(f"{track.name}: to be used until {clip.end_seconds} s, but it lasts {length:.2f} s")
    sources = whole[start:stop]
    if len(sources) < config.min_frames:
        raise TooShortError(f"{track.name}: {len(sources)} frames at 25 fps, fewer than {config.min_frames}")
    if len(sources) > config.max_frames:
        raise TooLargeError(f"{track.name}: {len(sources)} frames at 25 fps, more than {config.max_frames}")
    return sources, Fraction(start, FRAMES_PER_SECOND)


def _average_rate(track: VideoTrack, sources: np.ndarray) -> float:
    """Return the average number of source frames per second in the range that is used."""
    first, last = int(sources[0]), int(sources[-1])
    end = track.end_pts if last + 1 == len(track.pts) else int(track.pts[last + 1])
    return float((last + 1 - first) / ((end - int(track.pts[first])) * track.time_base))
