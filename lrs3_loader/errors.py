"""Exceptions for expected failures.

A ``ClipError`` concerns one clip, which is recorded as a reject while the run goes on. A ``RunError`` is a problem that
the user has to fix; it ends the run with one clear message. Any other exception is a bug.
"""

from __future__ import annotations

from typing import ClassVar


class RunError(Exception):
    """The run cannot continue. The message says what is wrong, where, and what to do."""


class ClipError(Exception):
    """A clip cannot be extracted. Rejects are counted by ``reason``."""

    reason: ClassVar[str]


class UnreadableError(ClipError):
    """The file is missing, empty, damaged, or not a media file."""

    reason = "unreadable"


class NoVideoError(ClipError):
    """The file has no video track."""

    reason = "no_video"


class NoAudioError(ClipError):
    """The file has no audio track."""

    reason = "no_sound"


class TooShortError(ClipError):
    """The clip has fewer frames than the configured minimum."""

    reason = "too_short"


class TooLargeError(ClipError):
    """The clip has more or larger frames than the configured maximum, or does not fit into memory."""

    reason = "too_large"


class LengthMismatchError(ClipError):
    """Audio and video differ in length by more than the configured maximum."""

    reason = "length_mismatch"


class BadTranscriptError(ClipError):
    """The transcript file is damaged or has another format."""

    reason = "bad_transcript"


class DecoderHungError(ClipError):
    """The decoder made no progress within the deadline."""

    reason = "decoder_hung"


class DecoderCrashedError(ClipError):
    """The worker process died while it decoded the clip."""

    reason = "decoder_crashed"


class NoFaceError(ClipError):
    """A face was found in too few frames."""

    reason = "no_face"


class PoorFitError(ClipError):
    """The face model fits the landmarks worse than the configured maximum."""

    reason = "poor_fit"


REASONS: tuple[str, ...] = tuple(sorted(kind.reason for kind in ClipError.__subclasses__()))
