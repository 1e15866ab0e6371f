"""Exceptions for expected failures.

A ``ClipError`` concerns one clip, which is recorded as a reject while the run goes on. A ``RunError`` is a problem that
the user has to fix; it ends the run with one clear message. Any other exception is a bug.
"""

from __future__ import annotations

from typing import ClassVar


def count_of(number: int, noun: str) -> str:
    """Return ``1 clip``, ``2 clips``, for messages."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class RunError(Exception):
    """The run cannot continue. The message says what is wrong, where, and what to do."""


class UnreachableError(RunError):
    """A server or object storage does not respond, or refuses; the message names the URL."""


class ClipError(Exception):
    """A clip cannot be extracted. Rejects are counted by ``reason``."""

    reason: ClassVar[str]

    def __init_subclass__(cls, *, reason: str) -> None:
        cls.reason = reason


class UnreadableError(ClipError, reason="unreadable"):
    """The file is missing, empty, damaged, or not a media file."""


class NoVideoError(ClipError, reason="no_video"):
    """The file has no video track."""


class NoAudioError(ClipError, reason="no_sound"):
    """The file has no audio track."""


class TooShortError(ClipError, reason="too_short"):
    """The clip has fewer frames than the configured minimum."""


class TooLargeError(ClipError, reason="too_large"):
    """The clip has more or larger frames than the configured maximum, or does not fit into memory."""


class LengthMismatchError(ClipError, reason="length_mismatch"):
    """Audio and video differ in length by more than the configured maximum."""


class BadTranscriptError(ClipError, reason="bad_transcript"):
    """The transcript file is damaged or has another format."""


class DamagedFramesError(ClipError, reason="damaged"):
    """Too many frames could not be decoded faithfully."""


class DecoderHungError(ClipError, reason="decoder_hung"):
    """The decoder made no progress within the deadline."""


class DecoderCrashedError(ClipError, reason="decoder_crashed"):
    """The worker process died while it decoded the clip."""


class NoFaceError(ClipError, reason="no_face"):
    """A face was found in too few frames."""


class NotSpeakingError(ClipError, reason="not_speaking"):
    """The face speaks in a smaller share of the frames than the configured minimum."""


class SceneCutError(ClipError, reason="scene_cut"):
    """The picture changes from one scene to another more often than the configured maximum."""


class PoorFitError(ClipError, reason="poor_fit"):
    """The face model fits the landmarks worse than the configured maximum."""


_KINDS = {kind.reason: kind for kind in ClipError.__subclasses__()}
REASONS: tuple[str, ...] = tuple(sorted(_KINDS))


def clip_error(reason: str, message: str) -> ClipError:
    """Return the error that a reject with this reason was made from."""
    return _KINDS[reason](message)
