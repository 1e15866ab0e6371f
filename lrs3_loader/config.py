"""Every number that decides what a run writes, one frozen dataclass per stage.

``RunConfig`` is saved in the run and compared on resume: two runs with equal configs over the same corpus write the
same bytes. What may differ between launches of one run (ranks, workers, folders) is ``LaunchConfig``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lrs3_loader.io.storage import Location, Url, location

Flag = tyro.conf.arg


def rarely(group: str) -> Any:
    """Annotates a dataclass whose flags few runs need: help shows them under a title that says so."""
    return tyro.conf.arg(name=f"rarely set: {group}")


Place = Annotated[
    Location,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FOLDER|URL",
        instance_from_str=lambda words: location(words[0]),
        is_instance=lambda value: isinstance(value, (Path, Url)),
        str_from_instance=lambda value: [str(value)],
    ),
]


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


@dataclass(frozen=True)
class CorpusConfig:
    """Which clips."""

    corpus: Place | None = None
    """Folder (or .csv file) that holds the corpus, or its URL (s3://bucket/lrs3)."""
    layout: Literal["auto", "lrs3", "voxceleb2", "folder", "csv"] = "auto"
    """How the corpus is laid out; auto looks at the tree."""
    splits: tuple[str, ...] = ()
    """Only these splits (all when empty)."""
    speakers: tuple[str, ...] = ()
    """Only these speakers (all when empty)."""
    limit: int | None = None
    """At most this many clips of each split, for a try-out."""

    def __post_init__(self) -> None:
        if self.limit is not None:
            _positive(self, "limit")


@dataclass(frozen=True)
class PlanConfig:
    """How clips are cut into shards."""

    shard_frames: int = 15_000
    """Target number of 25 fps frames in a shard (15000: ten minutes, about 100 MB)."""
    shard_clips: int = 1_000
    """At most this many clips in a shard."""

    def __post_init__(self) -> None:
        _positive(self, "shard_frames", "shard_clips")


@dataclass(frozen=True)
class DecodeConfig:
    """How a file becomes frames and samples."""

    min_frames: int = 6
    """Clips with fewer 25 fps frames are rejected (too_short)."""
    max_frames: int = 180_000
    """Clips with more 25 fps frames are rejected (too_large); 180000 is two hours."""
    max_pixels: int = 3840 * 2160
    """Pictures larger than this are rejected (too_large)."""
    max_av_mismatch_seconds: float = 0.5
    """Sound and picture may differ in length by this much (filled with zeros, or cut); beyond it: length_mismatch."""
    chunk_mebibytes: int = 256
    """Frames of a long clip are decoded in chunks of about this size."""

    def __post_init__(self) -> None:
        _positive(self, "min_frames", "max_frames", "max_pixels", "chunk_mebibytes")


@dataclass(frozen=True)
class LandmarkConfig:
    """Face detection and landmarks."""

    frame_batch: int | None = None
    """Frames in one batch on the device (when not given: 32 on a CPU; up to 1024 on a GPU, by its free memory)."""
    min_face_score: float = 0.5
    """Detections and presence scores below this are not faces."""
    max_gap_frames: int = 12
    """Gaps without a face up to this long are filled by interpolation and flagged in `valid`."""
    min_valid_fraction: float = 0.8
    """Clips with a smaller share of frames with a face are rejected (no_face)."""
    store_lm478: bool = False
    """Also store all dense landmarks."""
    store_blendshapes: bool = True
    """Also store the 52 blendshape scores, where the model file holds their network."""

    def __post_init__(self) -> None:
        if self.frame_batch is not None:
            _positive(self, "frame_batch")
        for name in ("min_face_score", "min_valid_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")


@dataclass(frozen=True)
class FaceConfig:
    """The 3D morphable face model and its fit."""

    face_model: str = "ict"
    """ict, demo, or a model file FILE.npz."""
    fit: Literal["fast", "best", "photometric"] = "fast"
    """How landmarks are fitted: identity from 16 frames, then the rest; or all frames of a clip jointly; or fast, and
    then expression and pose refined on the pixels (needs pytorch3d; slow without a GPU)."""
    max_reprojection: float | None = None
    """Clips fitted worse than this are rejected (poor_fit); mean landmark error as a fraction of the face size."""


@dataclass(frozen=True)
class RegressionConfig:
    """Deep3DFaceRecon's regression of the 257 coefficients that GeneFace was trained on."""

    checkpoint: Annotated[Path | None, Flag(name="deep3d")] = None
    """Deep3DFaceRecon_pytorch's epoch_20.pth; no regression when not given. It needs similarity_Lm3D_all.mat beside it,
    in a folder BFM beside it, or in the assets folder."""
    batch: Annotated[int | None, Flag(name="deep3d-batch")] = None
    """Frames that go through its network at a time (when not given: 8 on a CPU; up to 512 on a GPU, by its free
    memory)."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(name="deep3d-dtype")] = "auto"
    """Arithmetic of its convolutions; auto is float32 on a CPU, float16 on a GPU (as many digits as the TF32 in which
    the original runs there)."""
    idexp: Annotated[Literal["fit", "regression", "geneface"], Flag(name="idexp-from")] = "fit"
    """Where idexp_lm3d comes from: the landmark fit, the regression (needs a Basel Face Model), or the regression read
    one vertex beside each landmark, as in GeneFace's published data."""

    def __post_init__(self) -> None:
        if self.batch is not None:
            _positive(self, "batch")
        if self.idexp != "fit" and self.checkpoint is None:
            raise ValueError(f"idexp-from {self.idexp} needs --deep3d FILE")


@dataclass(frozen=True)
class SpeechConfig:
    """The speech encoder (HuBERT and its relatives)."""

    model: Annotated[str, Flag(name="hubert")] = "facebook/hubert-large-ls960-ft"
    """Hugging Face name or local folder of a HuBERT, WavLM or wav2vec 2.0 encoder; `demo` is a small untrained one."""
    layer: Annotated[int | None, Flag(name="hubert-layer")] = None
    """Which hidden layer to store: 0 is the encoder's input, -1 or nothing the last hidden state."""
    chunking: Annotated[Literal["reference", "whole"], Flag(name="hubert-chunking")] = "reference"
    """Clips over 20 s: in chunks of 20 s as GeneFace does, or whole."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(name="hubert-dtype")] = "auto"
    """Arithmetic; auto is float32 on a CPU, bfloat16 on a GPU."""
    store: Annotated[Literal["float16", "float32"], Flag(name="hubert-store")] = "float16"
    """How the rows are stored."""
    batch_seconds: Annotated[float | None, Flag(name="hubert-batch-seconds")] = None
    """Seconds of sound in one batch, padding included (when not given: 20 on a CPU; up to 1280 on a GPU, by its free
    memory)."""


@dataclass(frozen=True)
class RunConfig:
    """All that decides the bytes of a run."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    landmarks: Annotated[LandmarkConfig, rarely("landmarks")] = field(default_factory=LandmarkConfig)
    decode: Annotated[DecodeConfig, rarely("decode")] = field(default_factory=DecodeConfig)
    plan: Annotated[PlanConfig, rarely("plan")] = field(default_factory=PlanConfig)
    threads: int = 1
    """Compute threads of each rank. They change last bits, so they belong to the run: on CPUs start more ranks."""


@dataclass(frozen=True)
class WorkerConfig:
    """Decode processes of a rank, and how long they are waited for."""

    num_workers: Annotated[int, Flag(name="workers")] = 2
    """Decode processes of each rank."""
    deadline_seconds: Annotated[float, Flag(name="decode-deadline-seconds")] = 60.0
    """A decode process that makes no progress on a clip for this long is replaced."""
    attempts: Annotated[int, Flag(name="decode-attempts")] = 2
    """A clip on which its process hung or died this often is rejected (decoder_hung, decoder_crashed)."""

    def __post_init__(self) -> None:
        _positive(self, "num_workers", "deadline_seconds", "attempts")


@dataclass(frozen=True)
class LaunchConfig:
    """What may differ from one launch of a run to the next."""

    out: Place
    """Folder of the run, or its URL (s3://bucket/run); an unfinished run found there is resumed."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto gives each rank the GPU of its local rank."""
    workers: Annotated[WorkerConfig, rarely("decode processes")] = field(default_factory=WorkerConfig)
    demo: bool = False
    """Make a small corpus of synthetic talking heads and extract that."""
    retry_rejects: tuple[str, ...] | None = None
    """Run the shards again that hold rejects (only of the reasons named, if any)."""


#: On a GPU: bytes that one frame, one aligned crop and one second of sound take while they are worked on (rounded up),
#: and the most of them that still gains speed.
_FRAME_BYTES, _MOST_FRAMES = 12 << 20, 1024
_CROP_BYTES, _MOST_CROPS = 16 << 20, 512
_SECOND_BYTES, _MOST_SECONDS = 16 << 20, 1280
_LEFT_TO_THE_DEVICE = {
    "landmarks": ("frame_batch",),
    "speech": ("dtype", "batch_seconds"),
    "regression": ("dtype", "batch"),
}


def resolve(config: RunConfig, device_type: str, free_bytes: int = 16 << 30) -> RunConfig:
    """Fill in what was left to the device (``"cpu"`` or ``"cuda"``), so that the saved config says it all.

    Args:
        free_bytes: of the GPU's memory. Each kind of batch may take an eighth of it.
    """
    on_gpu = device_type != "cpu"

    def batch(on_cpu: int, bytes_each: int, most: int) -> int:
        if not on_gpu:
            return on_cpu
        fitting = max(free_bytes // 8 // bytes_each, 16)
        return min(1 << (fitting.bit_length() - 1), most)

    frames, crops = batch(32, _FRAME_BYTES, _MOST_FRAMES), batch(8, _CROP_BYTES, _MOST_CROPS)
    seconds = float(batch(20, _SECOND_BYTES, _MOST_SECONDS))
    landmarks, speech, regression, corpus = config.landmarks, config.speech, config.regression, config.corpus
    landmarks = dataclasses.replace(landmarks, frame_batch=landmarks.frame_batch or frames)
    speech = dataclasses.replace(
        speech,
        dtype=speech.dtype if speech.dtype != "auto" else ("bfloat16" if on_gpu else "float32"),
        batch_seconds=speech.batch_seconds or seconds,
    )
    regression = dataclasses.replace(
        regression,
        dtype=regression.dtype if regression.dtype != "auto" else ("float16" if on_gpu else "float32"),
        batch=regression.batch or crops,
    )
    if isinstance(corpus.corpus, Path):  # a run may be resumed from another folder
        corpus = dataclasses.replace(corpus, corpus=corpus.corpus.absolute())
    return dataclasses.replace(config, corpus=corpus, landmarks=landmarks, speech=speech, regression=regression)


#: (section, old name, new name) of config fields that had another name in earlier versions.
_RENAMED_FIELDS = (("decode", "max_sound_gap_seconds", "max_av_mismatch_seconds"),)


def upgrade_saved(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A config from a ``run.json`` of any earlier version, with the names that its fields have now."""
    upgraded = dict(saved)
    for section, old, new in _RENAMED_FIELDS:
        if old in upgraded.get(section, {}):
            upgraded[section] = {new if name == old else name: value for name, value in upgraded[section].items()}
    return upgraded


def with_current_flags(argv: Sequence[str]) -> list[str]:
    """Command-line words in which flags of earlier versions are replaced by those of the renamed config fields."""
    flags = {f"--{old}".replace("_", "-"): f"--{new}".replace("_", "-") for _, old, new in _RENAMED_FIELDS}
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        words.append(f"{flags[name]}{equals}{value}" if (name := flag.replace("_", "-")) in flags else word)
    return words


def inherit_auto_values(config: RunConfig, saved: Mapping[str, Any]) -> RunConfig:
    """What was left to the device, as the launch chose that began the run: ``saved`` is the config in its run.json.

    The same batches on every launch, whatever is free on the GPU by then, give the same bytes.
    """
    parts: dict[str, Any] = {}
    for part, names in _LEFT_TO_THE_DEVICE.items():
        own, theirs = getattr(config, part), saved.get(part, {})
        chosen = {name: theirs[name] for name in names if getattr(own, name) in (None, "auto") and name in theirs}
        parts[part] = dataclasses.replace(own, **chosen)
    return dataclasses.replace(config, **parts)


def demo_defaults(config: RunConfig) -> RunConfig:
    """The config a demo run starts from: models that need no download."""
    return dataclasses.replace(
        config,
        face=dataclasses.replace(config.face, face_model="demo"),
        speech=dataclasses.replace(config.speech, model="demo"),
    )


def as_json(config: object) -> dict[str, Any]:
    """A config dataclass as plain JSON values, nested."""
    plain = dataclasses.asdict(config)  # type: ignore[call-overload]
    return _plain(plain)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
