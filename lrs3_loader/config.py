"""Every number that decides what a run writes, one frozen dataclass per stage.

``RunConfig`` is saved in the run and compared on resume: two runs with equal configs over the same corpus write the
same bytes. What may differ between launches of one run (ranks, workers, folders) is ``LaunchConfig``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Flag = tyro.conf.arg


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


@dataclass(frozen=True)
class CorpusConfig:
    """Which clips."""

    corpus: Path | None = None
    """Folder (or .csv file) that holds the corpus."""
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
    max_sound_gap_seconds: float = 0.5
    """Sound and picture may differ in length by this much (filled with zeros, or cut); beyond it: length_mismatch."""
    chunk_mebibytes: int = 256
    """Frames of a long clip are decoded in chunks of about this size."""

    def __post_init__(self) -> None:
        _positive(self, "min_frames", "max_frames", "max_pixels", "chunk_mebibytes")


@dataclass(frozen=True)
class LandmarkConfig:
    """Face detection and landmarks."""

    frame_batch: int | None = None
    """Frames in one batch on the device (32 on a CPU, 256 on a GPU when not given)."""
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
    """Frames that go through its network at a time (8 on a CPU, 128 on a GPU when not given)."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Flag(name="deep3d-dtype")] = "float32"
    """Arithmetic of its convolutions."""
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
    """Seconds of sound in one batch, padding included (20 on a CPU, 320 on a GPU when not given)."""


@dataclass(frozen=True)
class RunConfig:
    """All that decides the bytes of a run."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
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

    out: Path
    """Folder of the run; an unfinished run found there is resumed."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto gives each rank the GPU of its local rank."""
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    demo: bool = False
    """Make a small corpus of synthetic talking heads and extract that."""
    retry_rejects: tuple[str, ...] | None = None
    """Run the shards again that hold rejects (only of the reasons named, if any)."""


def resolve(config: RunConfig, device_type: str) -> RunConfig:
    """Fill in what was left to the device (``"cpu"`` or ``"cuda"``), so that the saved config says it all."""
    on_gpu = device_type != "cpu"
    landmarks = dataclasses.replace(
        config.landmarks, frame_batch=config.landmarks.frame_batch or (256 if on_gpu else 32)
    )
    dtype = config.speech.dtype
    speech = dataclasses.replace(
        config.speech,
        dtype=dtype if dtype != "auto" else ("bfloat16" if on_gpu else "float32"),
        batch_seconds=config.speech.batch_seconds or (320.0 if on_gpu else 20.0),
    )
    regression = dataclasses.replace(config.regression, batch=config.regression.batch or (128 if on_gpu else 8))
    corpus = config.corpus
    if corpus.corpus is not None:  # a run may be resumed from another folder
        corpus = dataclasses.replace(corpus, corpus=corpus.corpus.absolute())
    return dataclasses.replace(config, corpus=corpus, landmarks=landmarks, speech=speech, regression=regression)


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
