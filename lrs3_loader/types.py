"""Payloads that the stages of the pipeline exchange, and the length contract that they share.

Shape letters: B frames of a batch, T frames of a clip at 25 fps, H x W source pixels,
L landmarks, V vertices, I identity modes, E expression modes, D width of the speech encoder.

Length contract: a clip has T video frames at 25 fps, exactly ``640 T`` audio samples at 16 kHz, and exactly
``2 T`` rows of every 50 Hz feature (mel, F0, HuBERT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

FRAMES_PER_SECOND = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND  # 640
ROWS_PER_FRAME = 2
HOP_LENGTH = SAMPLES_PER_FRAME // ROWS_PER_FRAME  # 320 samples: 50 rows per second


def shape_repr(payload: Any) -> str:
    """The ``__repr__`` of payload dataclasses: ``DecodedChunk(start=0, frames=u8[75, 224, 224, 3])``.

    Tensors and arrays are shown by dtype and shape, in tuples, lists and mappings too; everything else by its own
    ``repr``. Write ``__repr__ = shape_repr`` in the body of a dataclass.
    """
    parts = (f"{item.name}={_show(getattr(payload, item.name))}" for item in fields(payload) if item.repr)
    return f"{type(payload).__name__}({', '.join(parts)})"


def _show(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        dtype = str(value.dtype).removeprefix("torch.")
        for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")):
            dtype = dtype.replace(long, short)
        return f"{dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_show(item)}" for name, item in value.items()) + "}"
    if type(value) in (tuple, list):
        return f"{type(value).__name__}({', '.join(map(_show, value))})"
    return repr(value)


@dataclass(frozen=True)
class Clip:
    """A video file, or a part of one, with its audio and optional transcript.

    Paths are relative to the corpus root, with POSIX separators, so that a corpus may be mounted anywhere.
    """

    key: str  # "<split>/<speaker>/<utterance>": exactly two slashes, no dots, unique in its corpus
    video_path: str
    num_bytes: int  # size of the video file
    sound_path: str | None = None  # None: the audio track of the video file
    transcript_path: str | None = None  # an LRS3 transcript
    text: str | None = None  # the spoken text, if the corpus gives it without a transcript file
    start_seconds: float | None = None  # None: from the first frame
    end_seconds: float | None = None  # None: to the last frame
    audio_offset_frames: int | None = None  # frames (25 fps) by which the audio is late in the file, which is undone

    def __post_init__(self) -> None:
        if self.key.count("/") != 2 or "." in self.key:
            raise ValueError(f"clip key must read split/speaker/utterance without dots, got {self.key!r}")

    @property
    def split(self) -> str:
        return self.key.split("/")[0]

    @property
    def speaker(self) -> str:
        return self.key.split("/")[1]

    @property
    def utterance(self) -> str:
        return self.key.split("/")[2]


@dataclass(frozen=True)
class Shard:
    """A fixed, ordered list of clips of one split: the unit in which a run is computed, published and resumed."""

    name: str  # "<split>-<number, six digits>"
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Transcript:
    """The contents of an LRS3 transcript file."""

    text: str
    conf: int | None
    ref: str | None  # YouTube id
    boxes: np.ndarray  # [rows, 5] f64: source frame number (25 fps), then x, y, w, h as fractions of the frame
    words: tuple[tuple[str, float, float, float], ...]  # (word, start seconds, end seconds, ASD score)

    __repr__ = shape_repr


@dataclass(frozen=True)
class SourceInfo:
    """Properties of a media file before resampling, alignment and cutting."""

    frames_per_second: float  # average over the frames used
    num_frames: int
    height: int  # of a frame as shown: with square pixels, after rotation
    width: int
    sample_rate: int
    num_channels: int
    num_samples: int  # decoded samples at the source's rate
    sound_offset_seconds: float  # time of first audio sample minus first video frame; positive: audio starts later
    num_missing_samples: int  # samples at 16 kHz that were filled with zeros
    num_excess_samples: int  # samples at 16 kHz after the last frame that were cut
    sample_aspect_ratio: float = 1.0  # width of a pixel of the file over its height; frames were resampled to 1

    def as_json(self) -> dict[str, float]:
        """Return what a sample's json says; the aspect ratio is left out where pixels are squares."""
        return {name: value for name, value in asdict(self).items() if name != "sample_aspect_ratio" or value != 1}


@dataclass(frozen=True)
class ClipHead:
    """The data of a clip that are not per frame; part of its first chunk."""

    waveform: torch.Tensor  # [640 T] f32, mono, 16 kHz, nominally in [-1, 1]; starts at the first video frame
    f0_hz: torch.Tensor  # [2 T] f32, Hz, 0 = unvoiced; the last true row repeated
    num_f0_rows: int  # number of rows from Praat, before repeating or cutting
    source: SourceInfo
    transcript: Transcript | None = None
    mel_waveform: torch.Tensor | None = None  # [640 T] f32, for the mel spectrogram alone

    __repr__ = shape_repr

    @property
    def mel_source(self) -> torch.Tensor:
        """The waveform [640 T] of which the mel spectrogram is taken."""
        return self.waveform if self.mel_waveform is None else self.mel_waveform


@dataclass(frozen=True)
class DecodedChunk:
    """Consecutive frames ``start .. start + n`` of a clip, small enough to pass between processes.

    Chunks of a clip arrive in order and without gaps; almost every clip is one chunk.
    """

    clip: Clip
    num_frames: int  # T of the whole clip
    start: int  # index of the first frame of this chunk
    frames: torch.Tensor  # [n, H, W, 3] u8, RGB, the source's own size
    head: ClipHead | None  # present exactly when start == 0
    damaged: tuple[int, ...] = ()  # indices in the clip of its frames that could not be decoded faithfully

    __repr__ = shape_repr

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or len(frames) == 0:
            raise ValueError(f"frames must be u8 [n, H, W, 3] with n > 0, got {frames.dtype} {tuple(frames.shape)}")
        if self.start + len(frames) > self.num_frames:
            raise ValueError(f"chunk {self.start}+{len(frames)} passes the clip's {self.num_frames} frames")
        if (self.head is not None) != (self.start == 0):
            raise ValueError("exactly the first chunk of a clip must have its head")
        if self.head is not None:
            want = (self.num_frames * SAMPLES_PER_FRAME, self.num_frames * ROWS_PER_FRAME)
            got = (self.head.waveform.numel(), self.head.f0_hz.numel())
            if got != want:
                raise ValueError(f"waveform and F0 must have {want} entries for {self.num_frames} frames, got {got}")

    @property
    def stop(self) -> int:
        return self.start + len(self.frames)

    @property
    def is_last(self) -> bool:
        return self.stop == self.num_frames


@dataclass(frozen=True)
class Reject:
    """A clip that could not be extracted, and the reason."""

    clip: Clip
    reason: str  # a ClipError.reason
    message: str  # one printable line: file names may contain any characters

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))


def printable(text: str) -> str:
    """Escape line breaks, control characters and bytes that are not UTF-8, as in ``\\n``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class FieldSpec:
    """Shape, type, unit and meaning of an array of a sample."""

    shape: tuple[str | int, ...]  # letters as in the module docstring; "2T" is twice T, "640T" samples
    dtype: str
    unit: str
    meaning: str
    flag: str = ""  # of the extraction that stores it; empty: always stored
    extension: str = "npy"  # of its members; flac and mp4 are encoded audio and video


#: Every array a sample may hold. ``hubert`` may also be stored as f32 (``--hubert-store float32``).
FIELDS: dict[str, FieldSpec] = {
    "mel": FieldSpec(("2T", 80), "float32", "log10 amplitude, >= -6", "Slaney mel spectrogram, 80-7600 Hz"),
    "f0": FieldSpec(("2T",), "float32", "Hz, 0 = unvoiced", "pitch, Praat autocorrelation"),
    "hubert": FieldSpec(("2T", "D"), "float16", "-", "speech encoder, one hidden layer"),
    "lm68": FieldSpec(("T", 68, 2), "float32", "source pixels, y down", "iBUG-68 landmarks, as detected"),
    "lm478": FieldSpec(
        ("T", "L", 3),
        "float32",
        "source pixels, y down",
        "dense landmarks (L = 478, or 468); z: smaller is closer, 0 near the middle of the head",
        "--store-lm478",
    ),
    "blendshapes": FieldSpec(
        ("T", 52), "float16", "0..1", "ARKit blendshape scores", "--store-blendshapes, with face_landmarker.task"
    ),
    "id": FieldSpec(("I",), "float32", "-", "identity coefficients, one set a clip"),
    "exp": FieldSpec(("T", "E"), "float32", "-", "expression coefficients"),
    "pose": FieldSpec(("T", 6), "float32", "radians, decimetres", "Euler angles and translation"),
    "coeff": FieldSpec(("T", 257), "float32", "-", "Deep3DFaceRecon coefficients", "--deep3d FILE"),
    "idexp_lm3d": FieldSpec(
        ("T", 68, 3), "float32", "centimetres (decimetres x 10)", "landmark offsets from the mean face"
    ),
    "speaking": FieldSpec(
        ("T",), "float16", "logit", "active-speaker score: above 0, the face speaks what is heard", "--speaking"
    ),
    "valid": FieldSpec(("T",), "bool", "-", "a face was really found in this frame, which is not damaged"),
    "audio": FieldSpec(
        ("640T",),
        "float32",
        "full scale = 1",
        "the audio, mono at 16 kHz, as the features saw it",
        "--store-audio",
        "flac",
    ),
    "face": FieldSpec(("T", "S", "S", 3), "uint8", "RGB levels", "the aligned face", "--store-face SIZE", "mp4"),
    "face_to_frame": FieldSpec(
        ("T", 2, 3), "float32", "pixels", "from (column, row, 1) of face to (x, y) of the frame", "--store-face SIZE"
    ),
    "mouth": FieldSpec(("T", 96, 96), "uint8", "grey levels", "the aligned mouth", "--store-mouth", "mp4"),
    "mouth_to_frame": FieldSpec(
        ("T", 2, 3), "float32", "pixels", "from (column, row, 1) of mouth to (x, y) of the frame", "--store-mouth"
    ),
}
_ROWS = {"T": 1, "2T": ROWS_PER_FRAME, "640T": SAMPLES_PER_FRAME}  # per frame, by a field's first letter
#: Fields with the pixels and the audio of the corpus itself, which its licence may not let one pass on.
MEDIA_FIELDS = frozenset(name for name, spec in FIELDS.items() if spec.extension != "npy")


_FURTHER_SPEECH = re.compile(r"hubert_([2-9]|[1-9][0-9])")


def field_spec(field: str) -> FieldSpec | None:
    """Return the specification of a field, None for one that no extraction stores.

    ``hubert_2``, ``hubert_3`` ... are those of further speech encoders and layers.
    """
    if field not in FIELDS and _FURTHER_SPEECH.fullmatch(field):
        return replace(FIELDS["hubert"], meaning="a further speech encoder or layer", flag="--hubert, more than once")
    return FIELDS.get(field)


def is_speech(field: str) -> bool:
    """Return whether a field holds rows of a speech encoder: ``hubert``, ``hubert_2`` ..."""
    return field == "hubert" or _FURTHER_SPEECH.fullmatch(field) is not None


def rows_per_frame(field: str) -> int | None:
    """Return the rows per video frame of a field: 1, 2, 640, or None if it has no time axis."""
    spec = field_spec(field)
    return None if spec is None else _ROWS.get(str(spec.shape[0]))


def member_name(field: str) -> str:
    """Return the extension of a field's member in a tar: ``mel.npy``, ``audio.flac``."""
    return f"{field}.{FIELDS[field].extension if field in FIELDS else 'npy'}"


def field_of_member(extension: str) -> str | None:
    """Return the field that a member of a tar holds, by its extension; None for any other member, as the json."""
    field, dot, kind = extension.rpartition(".")
    return field if dot and kind == (FIELDS[field].extension if field in FIELDS else "npy") else None


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one clip: arrays as described in ``FIELDS``, encoded audio and video, and metadata."""

    clip: Clip
    num_frames: int  # T
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, bytes] = field(default_factory=dict)  # files by field (``MEDIA_FIELDS``)

    __repr__ = shape_repr

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            check_field(name, array, self.num_frames)
        if wrong := self.media.keys() - MEDIA_FIELDS:
            raise ValueError(f"{', '.join(sorted(wrong))} is not encoded; {', '.join(sorted(MEDIA_FIELDS))} are")


def check_field(name: str, array: np.ndarray, num_frames: int, *, finite: bool = True) -> None:
    """Raise ``ValueError`` if an array violates the contract of its field: shape, dtype, ``finite`` values."""
    spec = field_spec(name)
    if spec is None:
        raise ValueError(f"unknown field {name!r}; known are {', '.join(FIELDS)}")
    dtypes = (spec.dtype, "float32") if is_speech(name) else (spec.dtype,)
    sizes = {"T": num_frames, "2T": ROWS_PER_FRAME * num_frames, "640T": SAMPLES_PER_FRAME * num_frames}
    want = [sizes.get(s, -1) if isinstance(s, str) else s for s in spec.shape]
    fits = array.ndim == len(want) and all(w in (-1, s) for w, s in zip(want, array.shape, strict=True))
    if not fits or array.dtype.name not in dtypes:
        raise ValueError(
            f"{name} must be {spec.dtype} [{', '.join(map(str, spec.shape))}] with T = {num_frames}, "
            f"got {array.dtype} {list(array.shape)}"
        )
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
