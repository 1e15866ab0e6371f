"""Reads the audio of one clip: decoded, mixed to mono, aligned with the video frames, resampled to 16 kHz.

The timeline is FFmpeg's (``-af aresample=async=1:first_pts=0``, shifted to the first video frame): audio is placed by
its timestamps; encoder priming is dropped where FFmpeg drops it; holes and overlaps of the timestamps become silence or
a cut. Those under 20 ms (FFmpeg: 100 ms) are ignored, so that rounded or unsteady timestamps leave no holes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch

from lrs3_loader.decode.downmix import to_mono
from lrs3_loader.decode.geneface_audio import geneface_waveform
from lrs3_loader.decode.resampling import to_16khz
from lrs3_loader.decode.video import open_container
from lrs3_loader.errors import LengthMismatchError, NoAudioError, TooLargeError, UnreadableError
from lrs3_loader.io.media_file import MEDIA_ERRORS
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, shape_repr

TOLERANCE_SECONDS = Fraction(1, 50)  # timestamps off by less are those of an unsteady writer, not holes
PREROLL_SECONDS = 1  # decoded and discarded after a seek, until the decoder is in a steady state
SAMPLE_RATES = range(4_000, 768_001)

MelWaveform = Callable[[np.ndarray, int, int, int], torch.Tensor]
"""A second waveform of a clip, of which only the mel spectrogram is taken; see ``geneface_waveform``."""
MEL_WAVEFORMS: dict[str, MelWaveform | None] = {"librosa": None, "geneface": geneface_waveform}
"""By ``DecodeConfig.mel_like``; None: the one that all features see."""


@dataclass(frozen=True)
class TimeRange:
    """The part of an audio track that belongs to a clip. Times are on the container's timeline."""

    start_seconds: Fraction | None  # of the first video frame; None: of the audio track itself (a separate file)
    skip_seconds: Fraction  # added to the start: where in the file the clip begins
    num_frames: int  # T
    open_end: bool  # the clip lasts until the end of the file, so audio after it is excess


@dataclass(frozen=True)
class ClipAudio:
    """The audio of a clip, and properties of its source."""

    waveform: torch.Tensor  # [640 T] f32, mono, 16 kHz
    sample_rate: int  # of the source
    num_channels: int
    num_samples: int  # decoded, at the source's rate
    start_seconds: Fraction  # when the track begins on the container's timeline
    num_missing_samples: int  # filled with zeros, at 16 kHz
    num_excess_samples: int  # after the last frame, at 16 kHz
    mel_waveform: torch.Tensor | None = None  # the same to take the mel spectrogram from; None: ``waveform``

    __repr__ = shape_repr


def read_audio(
    path: Path,
    name: str,
    time_range: TimeRange,
    max_mismatch_seconds: float,
    for_mel: MelWaveform | None = None,
) -> ClipAudio:
    """Read exactly ``640 T`` samples at 16 kHz, from the time at which the first frame is shown.

    Args:
        name: the name of the file in error messages.
        max_mismatch_seconds: the most audio that may be missing (filled with zeros), or follow the last frame (cut).
        for_mel: makes ``mel_waveform``.

    Raises:
        NoAudioError: the file has no audio track, or one without a sample.
        LengthMismatchError: audio and video differ by more than ``max_mismatch_seconds``.
        UnreadableError: the file is missing, damaged, or not a media file.
    """
    with open_container(path, name) as container:
        try:
            placed = _place(container, name, time_range, Fraction(max_mismatch_seconds))
        except MEDIA_ERRORS as error:
            raise UnreadableError(f"{name}: damaged audio ({getattr(error, 'strerror', error)})") from error
    rate, wanted = placed.sample_rate, time_range.num_frames * SAMPLES_PER_FRAME
    missing = round(placed.num_missing * Fraction(SAMPLE_RATE, rate))
    excess = round(placed.num_excess * Fraction(SAMPLE_RATE, rate)) if time_range.open_end else 0
    for samples, what in ((missing, "misses"), (excess, "exceeds the video by at least")):
        if samples > max_mismatch_seconds * SAMPLE_RATE:
            seconds = time_range.num_frames / FRAMES_PER_SECOND
            raise LengthMismatchError(
                f"{name}: the audio {what} {samples / SAMPLE_RATE:.3f} s, with {seconds:.2f} s of video "
                f"(allowed: {max_mismatch_seconds:g} s)"
            )
    # One frame's time of audio on either side keeps the edge effects of the resampler out of the result.
    resampled = to_16khz(torch.from_numpy(placed.samples), rate)
    waveform = torch.zeros(wanted)
    part = resampled[SAMPLES_PER_FRAME : SAMPLES_PER_FRAME + wanted]
    waveform[: len(part)] = part
    if not torch.isfinite(waveform).all():
        raise UnreadableError(f"{name}: damaged audio: it holds values that are not finite")
    return ClipAudio(
        waveform=waveform,
        sample_rate=rate,
        num_channels=placed.num_channels,
        num_samples=placed.num_samples,
        start_seconds=placed.start_seconds,
        num_missing_samples=missing,
        num_excess_samples=excess,
        mel_waveform=None if for_mel is None else for_mel(placed.samples, rate, placed.num_channels, wanted),
    )


def read_sound(path: Path, name: str, max_frames: int) -> ClipAudio:
    """Read a whole audio track, from its own beginning: ``640 T`` samples, the last frame filled up with zeros.

    Args:
        name: the name of the file in error messages.
        max_frames: T of the longest track that is read.

    Raises:
        NoAudioError: the file has no audio track, or one without a sample.
        TooLargeError: the track is longer.
        UnreadableError: the file is missing, damaged, or not a media file.
    """
    num_frames = _count_frames(path, name, max_frames)
    return read_audio(path, name, TimeRange(None, Fraction(0), num_frames, open_end=True), num_frames)


def _count_frames(path: Path, name: str, max_frames: int) -> int:
    """Decode a track to see how many video frames it lasts; containers tell it roughly, or not at all."""
    everything = TimeRange(None, Fraction(0), max_frames, open_end=True)
    with open_container(path, name) as container:
        try:
            first, frames = _open_track(container, name, everything)
            rate = first.frame.sample_rate
            limit = max_frames * rate // FRAMES_PER_SECOND
            end = 0
            for frame, position, overlap in _positions(chain([first], frames), first.track_start, rate):
                end = position + frame.samples - overlap
                if end > limit:
                    raise TooLargeError(f"{name}: its sound lasts more than {max_frames / FRAMES_PER_SECOND:g} s")
        except MEDIA_ERRORS as error:
            raise UnreadableError(f"{name}: damaged audio ({getattr(error, 'strerror', error)})") from error
    return max(1, -(-end * FRAMES_PER_SECOND // rate))


@dataclass
class _Placed:
    """Mono samples at the source's rate, from one video frame before the clip to one frame after it."""

    samples: np.ndarray  # [n] f32
    sample_rate: int
    num_channels: int
    num_samples: int
    start_seconds: Fraction
    num_missing: int
    num_excess: int


class _Timed(NamedTuple):
    """A decoded frame of audio on the container's timeline."""

    frame: av.AudioFrame
    seconds: Fraction | None  # None: right after its predecessor
    track_start: Fraction  # when the track begins


def _place(
    container: av.container.InputContainer, name: str, time_range: TimeRange, max_mismatch_seconds: Fraction
) -> _Placed:
    """Decode no more than is needed and place it on the timeline of the range."""
    first, frames = _open_track(container, name, time_range)
    rate, num_channels, track_start = first.frame.sample_rate, first.frame.layout.nb_channels, first.track_start
    origin = track_start if time_range.start_seconds is None else time_range.start_seconds
    origin += time_range.skip_seconds
    margin = -(-rate // FRAMES_PER_SECOND)
    length = -(-time_range.num_frames * rate // FRAMES_PER_SECOND)
    limit = length + int(max_mismatch_seconds * rate) + margin + 1  # decoding further would not change the result
    samples = np.zeros(margin + length + margin, dtype=np.float32)
    covered = np.zeros(length, dtype=bool)
    num_samples = end = 0
    for frame, position, overlap in _positions(chain([first], frames), origin, rate):
        if num_samples and end >= limit:
            break
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, num_channels):
            raise UnreadableError(f"{name}: sample rate or channels change in the middle of the audio")
        num_samples += frame.samples
        block = to_mono(frame)[overlap:]
        start, end = position + margin, position + len(block)
        inside = block[max(0, -start) : max(0, len(samples) - start)]
        samples[max(0, start) :][: len(inside)] = inside
        covered[max(0, position) : max(0, end)] = True
    num_missing = length - int(covered.sum())
    return _Placed(samples, rate, num_channels, num_samples, track_start, num_missing, max(0, end - length))


def _open_track(
    container: av.container.InputContainer, name: str, time_range: TimeRange
) -> tuple[_Timed, Iterator[_Timed]]:
    """Return the first decoded frame of the audio track, and those after it."""
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
        raise NoAudioError(f"{name}: no audio track")
    frames = _frames(container, stream, name, time_range)
    first = next(frames, None)
    if first is None:
        raise NoAudioError(f"{name}: the audio track holds no samples")
    if first.frame.sample_rate not in SAMPLE_RATES:
        raise UnreadableError(f"{name}: audio of {first.frame.sample_rate} samples per second")
    return first, frames


def _positions(frames: Iterable[_Timed], origin: Fraction, rate: int) -> Iterator[tuple[av.AudioFrame, int, int]]:
    """Place frames by their timestamps: one after the other, but for holes and overlaps above ``TOLERANCE_SECONDS``.

    A single frame that is off is no hole: its successor must not be in time again.

    Yields:
        A frame, the position of its first sample after ``origin`` that is used, and how many before that are not.
    """
    tolerance = TOLERANCE_SECONDS * rate
    position: int | None = None
    timed: Iterable[_Timed | None] = chain(frames, [None])
    for current, following in pairwise(timed):
        assert current is not None
        frame, overlap = current.frame, 0
        at = position or 0 if current.seconds is None else round((current.seconds - origin) * rate)
        if position is None:
            position = at
        elif abs(at - position) > tolerance:
            next_seconds = None if following is None else following.seconds
            is_in_time = next_seconds is not None and (
                abs((next_seconds - origin) * rate - position - frame.samples) <= tolerance
            )
            if not is_in_time:
                overlap = min(max(0, position - at), frame.samples)
                position = max(at, position)
        yield frame, position, overlap
        position += frame.samples - overlap


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream, name: str, time_range: TimeRange
) -> Iterator[_Timed]:
    """Decode the track, from shortly before the time range on."""
    time_base = Fraction(stream.time_base or 1)
    stream.codec_context.thread_count = 1
    track_start: Fraction | None = None
    ahead = time_range.skip_seconds - PREROLL_SECONDS
    if ahead > PREROLL_SECONDS:
        track_start = (stream.start_time or 0) * time_base
        origin = track_start if time_range.start_seconds is None else time_range.start_seconds
        container.seek(int((origin + ahead) / time_base), stream=stream)
    for frame in container.decode(stream):
        assert isinstance(frame, av.AudioFrame)
        if frame.is_corrupt:
            raise UnreadableError(f"{name}: damaged audio")
        seconds = None if frame.pts is None else frame.pts * Fraction(frame.time_base or time_base)
        if track_start is None:
            track_start = seconds or Fraction(0)
        if frame.samples > 0:
            yield _Timed(frame, seconds, track_start)
