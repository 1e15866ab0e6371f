"""The sound of one clip: decoded, averaged to mono, laid on the timeline of the pictures, brought to 16 kHz.

The timeline is FFmpeg's (``-af aresample=async=1:first_pts=0``, shifted to the first picture): sound goes where its
timestamps say; encoder priming that FFmpeg drops is dropped; jumps of the timestamps become silence or a cut, and
smaller unsteadiness is ignored, so that rounded timestamps leave no holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from pathlib import Path

import av
import numpy as np
import torch
from torchaudio.functional import resample

from lrs3_loader.decode.video import open_container
from lrs3_loader.errors import LengthMismatchError, NoAudioError, UnreadableError
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, shape_repr

JUMP_SECONDS = Fraction(1, 10)  # smaller steps of the timestamps are ignored: libswresample's min_hard_comp
PREROLL_SECONDS = 1  # decoded and thrown away after a seek, so that the decoder has settled
SAMPLE_RATES = range(4_000, 768_001)
MAX_KERNEL = 4_000_000  # taps of torchaudio's resampling kernel; odder ratios of rates go through FFmpeg's resampler
INTEGER_SCALES = {"u8": 2**7, "s16": 2**15, "s32": 2**31}


@dataclass(frozen=True)
class TimeRange:
    """What is wanted of a sound track. Times are on the container's timeline."""

    start_seconds: Fraction | None  # of the first frame wanted; None: the track's own beginning (a separate file)
    skip_seconds: Fraction  # added to the start: where in the clip the stretch begins
    num_frames: int  # T
    open_end: bool  # the clip ends here: sound beyond it is excess


@dataclass(frozen=True)
class ClipAudio:
    """Sound of a stretch, and what was found on the way."""

    waveform: torch.Tensor  # [640 T] f32, mono, 16 kHz
    sample_rate: int  # of the source
    num_channels: int
    num_samples: int  # decoded, at the source's rate
    start_seconds: Fraction  # when the track begins on the container's timeline
    num_missing_samples: int  # filled with zeros, at 16 kHz
    num_excess_samples: int  # beyond the last frame, at 16 kHz

    __repr__ = shape_repr


def read_audio(path: Path, name: str, time_range: TimeRange, max_gap_seconds: float) -> ClipAudio:
    """Read exactly ``640 T`` samples at 16 kHz, starting when the first frame wanted is shown.

    Args:
        name: what messages call the file.
        max_gap_seconds: more silence to be filled in, or more sound beyond the last frame, is an error.

    Raises:
        NoAudioError: no sound track, or one without a sample.
        LengthMismatchError: sound and pictures differ by more than ``max_gap_seconds``.
        UnreadableError: see errors.py.
    """
    with open_container(path, name) as container:
        try:
            placed = _place(container, name, time_range, Fraction(max_gap_seconds))
        except av.error.FFmpegError as error:
            raise UnreadableError(f"{name}: damaged sound ({error.strerror})") from error
    rate, wanted = placed.sample_rate, time_range.num_frames * SAMPLES_PER_FRAME
    missing = round(placed.num_missing * Fraction(SAMPLE_RATE, rate))
    excess = round(placed.num_excess * Fraction(SAMPLE_RATE, rate)) if time_range.open_end else 0
    for samples, what in ((missing, "misses"), (excess, "exceeds the pictures by at least")):
        if samples > max_gap_seconds * SAMPLE_RATE:
            seconds = time_range.num_frames / FRAMES_PER_SECOND
            raise LengthMismatchError(
                f"{name}: the sound {what} {samples / SAMPLE_RATE:.3f} s where {seconds:.2f} s of pictures are shown "
                f"(allowed: {max_gap_seconds:g} s)"
            )
    # One frame's time of sound on either side keeps the resampler's edges out of what is returned.
    resampled = _to_16khz(torch.from_numpy(placed.samples), rate)
    waveform = torch.zeros(wanted)
    part = resampled[SAMPLES_PER_FRAME : SAMPLES_PER_FRAME + wanted]
    waveform[: len(part)] = part
    if not torch.isfinite(waveform).all():
        raise UnreadableError(f"{name}: damaged sound: it holds values that are not finite")
    return ClipAudio(waveform, rate, placed.num_channels, placed.num_samples, placed.start_seconds, missing, excess)


@dataclass
class _Placed:
    """Mono samples at the source's rate, from one frame before the stretch to one frame after."""

    samples: np.ndarray  # [n] f32
    sample_rate: int
    num_channels: int
    num_samples: int
    start_seconds: Fraction
    num_missing: int
    num_excess: int


def _place(
    container: av.container.InputContainer, name: str, time_range: TimeRange, max_gap_seconds: Fraction
) -> _Placed:
    """Decode no more than is needed and place it on the timeline of the range."""
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
        raise NoAudioError(f"{name}: no sound track")
    frames = _frames(container, stream, name, time_range)
    first = next(frames, None)
    if first is None:
        raise NoAudioError(f"{name}: the sound track holds no samples")
    rate, num_channels = first.frame.sample_rate, first.frame.layout.nb_channels
    if rate not in SAMPLE_RATES:
        raise UnreadableError(f"{name}: sound of {rate} samples a second")

    origin = first.track_start if time_range.start_seconds is None else time_range.start_seconds
    origin += time_range.skip_seconds
    margin = -(-rate // FRAMES_PER_SECOND)
    length = -(-time_range.num_frames * rate // FRAMES_PER_SECOND)
    limit = length + int(max_gap_seconds * rate) + margin + 1  # decoding further would tell nothing new
    samples = np.zeros(margin + length + margin, dtype=np.float32)
    covered = np.zeros(length, dtype=bool)
    position: int | None = None
    num_samples = 0
    item: _Frame | None = first
    while item is not None and (position is None or position < limit):
        if (item.frame.sample_rate, item.frame.layout.nb_channels) != (rate, num_channels):
            raise UnreadableError(f"{name}: sample rate or channels change in the middle of the sound")
        block = mono(item.frame)
        num_samples += len(block)
        at = round((item.seconds - origin) * rate) if item.seconds is not None else position or 0
        if position is None:
            position = at
        elif abs(at - position) > JUMP_SECONDS * rate:
            block = block[max(0, position - at) :]
            position = max(at, position)
        _lay(samples, position + margin, block)
        covered[max(0, position) : max(0, position + len(block))] = True
        position += len(block)
        item = next(frames, None)
    assert position is not None
    num_missing = length - int(covered.sum())
    return _Placed(samples, rate, num_channels, num_samples, first.track_start, num_missing, max(0, position - length))


def _lay(samples: np.ndarray, at: int, block: np.ndarray) -> None:
    """Copy ``block`` to ``samples[at:]``, cutting what lies outside on either side."""
    first, last = max(0, at), min(len(samples), at + len(block))
    if first < last:
        samples[first:last] = block[first - at : last - at]


@dataclass
class _Frame:
    frame: av.AudioFrame
    seconds: Fraction | None  # on the container's timeline; None: right after the one before
    track_start: Fraction


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream, name: str, time_range: TimeRange
) -> Iterator[_Frame]:
    """Decode the track, from shortly before the stretch on."""
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
            raise UnreadableError(f"{name}: damaged sound")
        seconds = None if frame.pts is None else frame.pts * Fraction(frame.time_base or time_base)
        if track_start is None:
            track_start = seconds or Fraction(0)
        if frame.samples > 0:
            yield _Frame(frame, seconds, track_start)


def mono(frame: av.AudioFrame) -> np.ndarray:
    """Average of the channels, [n] f32, full scale = 1.

    The libraries' own downmix keeps the power of uncorrelated channels, which makes identical ones 1.41 times too loud.
    """
    data = frame.to_ndarray()
    if not frame.format.is_planar:  # [1, n * channels]
        data = data.reshape(-1, frame.layout.nb_channels).T
    kind = frame.format.name.removesuffix("p")
    if kind in INTEGER_SCALES:
        zero = 128 if kind == "u8" else 0
        return ((data.astype(np.float64).mean(axis=0) - zero) / INTEGER_SCALES[kind]).astype(np.float32)
    return data.mean(axis=0, dtype=np.float64 if kind == "dbl" else None).astype(np.float32)


def _to_16khz(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """[n] at ``rate`` -> [about n * 16000 / rate], the first sample staying where it was."""
    common = gcd(rate, SAMPLE_RATE)
    if (SAMPLE_RATE // common) * (rate // common) <= MAX_KERNEL:
        return resample(samples, rate, SAMPLE_RATE)
    frame = av.AudioFrame.from_ndarray(samples.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    parts = [part.to_ndarray()[0] for step in (frame, None) for part in resampler.resample(step)]
    return torch.from_numpy(np.concatenate(parts))
