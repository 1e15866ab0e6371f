"""What can go wrong, by who has to know about it.

A ``ClipError`` costs one clip: it is recorded as a reject and the run goes on. A ``RunError`` is something the
user has to put right: it ends the run with one clear message. Anything else is a bug and is let through.
"""

from __future__ import annotations

from typing import ClassVar


class RunError(Exception):
    """The run cannot go on: the message says what is wrong, where, and what to do."""


class ClipError(Exception):
    """One clip cannot be extracted. ``reason`` is the word it is counted under."""

    reason: ClassVar[str]


class UnreadableError(ClipError):
    """The file is missing, empty, damaged, or no media file at all."""

    reason = "unreadable"


class NoVideoError(ClipError):
    """The file has no video track."""

    reason = "no_video"


class NoAudioError(ClipError):
    """The file has no sound track."""

    reason = "no_sound"


class TooShortError(ClipError):
    """Fewer frames than the configured minimum."""

    reason = "too_short"


class TooLargeError(ClipError):
    """More frames or larger pictures than the configured maximum."""

    reason = "too_large"


class LengthMismatchError(ClipError):
    """Sound and picture differ in length by more than the declared bound."""

    reason = "length_mismatch"


class BadTranscriptError(ClipError):
    """The transcript is there but cannot be read as one."""

    reason = "bad_transcript"


class DecoderHungError(ClipError):
    """The decoder gave nothing within the deadline."""

    reason = "decoder_hung"


class DecoderCrashedError(ClipError):
    """The worker process died while it decoded this clip."""

    reason = "decoder_crashed"


class NoFaceError(ClipError):
    """Too few frames in which a face was found."""

    reason = "no_face"


class PoorFitError(ClipError):
    """The face model does not reach the landmarks within the configured bound."""

    reason = "poor_fit"


REASONS: tuple[str, ...] = tuple(sorted(kind.reason for kind in ClipError.__subclasses__()))
