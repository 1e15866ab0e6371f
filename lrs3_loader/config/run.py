"""Settings that decide the bytes of a run, one frozen dataclass per stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lrs3_loader.config.flag_types import Flag, Layers, OptionalPlace, rarely, require_positive

#: By video codec: range of its quality, and its default (x264's constant rate factor, FFmpeg's quantizer scale).
VIDEO_QUALITIES: dict[str, tuple[range, int]] = {"h264": (range(52), 18), "jpeg": (range(2, 32), 3)}

Layout = Literal["auto", "lrs3", "voxceleb2", "folder", "csv"]


@dataclass(frozen=True)
class CorpusConfig:
    """Selection of clips."""

    corpus: OptionalPlace = None
    """Folder (or .csv file) that holds the corpus, or its URL (s3://bucket/lrs3)."""
    layout: Layout = "auto"
    """Layout of the corpus; auto recognizes it from the tree."""
    splits: tuple[str, ...] = ()
    """Only these splits (all when empty)."""
    speakers: tuple[str, ...] = ()
    """Only these speakers (all when empty)."""
    limit: int | None = None
    """At most this many clips of each split, for a trial."""
    on_collision: Literal["error", "rename", "skip"] = "error"
    """What happens to files whose clips would have the same key, such as `a b.mp4` and `a_b.mp4`: nothing is begun and
    all are listed; all but the first get a number; or all but the first are left out."""

    def __post_init__(self) -> None:
        require_positive(self, "limit")


@dataclass(frozen=True)
class PlanConfig:
    """Division of clips into shards."""

    shard_frames: int = 15_000
    """Target number of 25 fps frames in a shard (15000: ten minutes, about 100 MB)."""
    shard_clips: int = 1_000
    """At most this many clips in a shard."""

    def __post_init__(self) -> None:
        require_positive(self, "shard_frames", "shard_clips")


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding of files to frames and audio samples."""

    min_frames: int = 6
    """Clips with fewer 25 fps frames are rejected (too_short)."""
    max_frames: int = 180_000
    """Clips with more 25 fps frames are rejected (too_large); 180000 is two hours."""
    max_pixels: int = 3840 * 2160
    """Videos with larger frames (height x width) are rejected (too_large)."""
    max_av_mismatch_seconds: float = 0.5
    """Audio and video may differ in length by this much (filled with zeros, or cut); otherwise: length_mismatch."""
    max_damaged_fraction: float = 0.2
    """Clips with a larger share of damaged frames are rejected (damaged); others count as frames without a face."""
    chunk_mebibytes: int = 256
    """Frames of a long clip are decoded in chunks of at most this size (a frame at least)."""
    mel_like: Literal["librosa", "geneface"] = "librosa"
    """librosa: mel of the audio that all features see; geneface: of audio as GeneFace's scripts hear it (mono sources
    3 dB quieter, resampled without a filter), to be trained on together with its published data."""

    def __post_init__(self) -> None:
        require_positive(self, "min_frames", "max_frames", "max_pixels", "chunk_mebibytes")
        if not 0 <= self.max_damaged_fraction <= 1:
            raise ValueError(f"max_damaged_fraction must lie in 0..1, got {self.max_damaged_fraction}")


@dataclass(frozen=True)
class LandmarkConfig:
    """Face detection and landmarks."""

    frame_batch: int | None = None
    """Frames in one batch on the device (default: 32 on a CPU; up to 1024 on a GPU, by its free memory)."""
    min_face_score: float = 0.5
    """Faces need at least this detection and presence score."""
    max_gap_frames: int = 12
    """Gaps without a face up to this long are filled by interpolation and flagged in `valid`."""
    min_valid_fraction: float = 0.8
    """Clips with a smaller share of frames with a face are rejected (no_face)."""
    store_lm478: bool = False
    """Also store all dense landmarks."""
    store_blendshapes: bool = True
    """Also store the 52 blendshape scores, if the model file contains their network."""

    def __post_init__(self) -> None:
        require_positive(self, "frame_batch")
        for name in ("min_face_score", "min_valid_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")


Fit = Literal["fast", "best", "geneface", "photometric"]


@dataclass(frozen=True)
class FaceConfig:
    """3D morphable face model and its fit."""

    face_model: str = "ict"
    """ict, demo, or a model file FILE.npz."""
    fit: Fit = "fast"
    """Method of the fit: fast finds identity from 16 frames, then the rest; best fits all frames of a clip jointly
    (both use blendshape scores where the model's expressions bear ARKit's names, as ict's do);
    geneface minimises GeneFace++'s objective with its weights, without bounds of the coefficients;
    photometric is fast, then refines expression and pose on the pixels (needs pytorch3d; slow without a GPU)."""
    max_reprojection: float | None = None
    """Clips fitted worse than this are rejected (poor_fit); mean landmark error as a fraction of the face size."""


@dataclass(frozen=True)
class RegressionConfig:
    """Regression of the 257 coefficients of Deep3DFaceRecon, on which GeneFace was trained."""

    checkpoint: Annotated[Path | None, Flag(name="deep3d")] = None
    """Deep3DFaceRecon_pytorch's epoch_20.pth; no regression without it. It needs similarity_Lm3D_all.mat in the
    same folder, in a folder BFM there, or in the assets folder."""
    batch: Annotated[int | None, Flag(name="deep3d-batch")] = None
    """Frames in one batch of its network (default: 8 on a CPU; up to 512 on a GPU, by its free
    memory)."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(name="deep3d-dtype")] = "auto"
    """Arithmetic of its convolutions; auto is float32 on a CPU, float16 on a GPU (as many digits as the TF32 in which
    the original runs there)."""
    idexp: Annotated[Literal["fit", "regression", "geneface"], Flag(name="idexp-from")] = "fit"
    """Source of idexp_lm3d: the landmark fit; the regression (needs a Basel Face Model); or the regression read one
    vertex next to each landmark, as in GeneFace's published data."""

    def __post_init__(self) -> None:
        require_positive(self, "batch")
        if self.idexp != "fit" and self.checkpoint is None:
            raise ValueError(f"idexp-from {self.idexp} needs --deep3d FILE")


@dataclass(frozen=True)
class SpeechConfig:
    """Speech encoder (HuBERT and its relatives)."""

    model: Annotated[str, Flag(name="hubert")] = "facebook/hubert-large-ls960-ft"
    """Hugging Face name or local folder of a HuBERT, WavLM, wav2vec 2.0 or Whisper encoder; `demo` is a small
    untrained one. Given again, further encoders, whose rows are stored as hubert_2, hubert_3 ..."""
    also: Annotated[tuple[str, ...], Flag(name="also-hubert")] = ()
    """Further encoders: the same as --hubert given again."""
    layer: Layers = None
    """Hidden layer to store: 0 is the encoder's input, -1 (the default) the last hidden state. Several, as in 9,12, are
    stored as hubert, hubert_2 ..., those of one encoder after the other."""
    chunking: Annotated[Literal["reference", "whole"], Flag(name="hubert-chunking")] = "reference"
    """Clips over 20 s: in chunks of 20 s as GeneFace does, or whole."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(name="hubert-dtype")] = "auto"
    """Arithmetic of the encoder; auto is float32 on a CPU, bfloat16 on a GPU."""
    store: Annotated[Literal["float16", "float32"], Flag(name="hubert-store")] = "float16"
    """Type of the stored rows."""
    batch_seconds: Annotated[float | None, Flag(name="hubert-batch-seconds")] = None
    """Seconds of audio in one batch, including padding (default: 20 on a CPU; up to 1280 on a GPU, by its free
    memory)."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_seconds")

    @property
    def models(self) -> tuple[str, ...]:
        """All encoders, in the order of their fields."""
        return (self.model, *self.also)

    @property
    def num_layers(self) -> int:
        """Layers that are stored of each encoder."""
        return len(self.layer) if isinstance(self.layer, tuple) else 1


@dataclass(frozen=True)
class SpeakingConfig:
    """Active-speaker scores: does the face speak what is heard?"""

    store: Annotated[bool, Flag(name="speaking")] = False
    """Score every frame with LR-ASD and store the scores (fetched on first use, 3 MB)."""
    min_share: Annotated[float | None, Flag(name="min-speaking-share")] = None
    """Clips whose face speaks in a smaller share of the frames (0..1) are rejected (not_speaking)."""
    track: Literal["largest", "speaking"] = "largest"
    """Face to follow in clips with several: the largest and most central, or the one that speaks in the first 10 s."""

    def __post_init__(self) -> None:
        if self.min_share is not None and not 0 <= self.min_share <= 1:
            raise ValueError(f"min-speaking-share must lie in 0..1, got {self.min_share}")
        if self.min_share is not None and not self.store:
            raise ValueError("min-speaking-share needs --speaking")

    @property
    def needs_scores(self) -> bool:
        """True if the active-speaker network is used at all."""
        return self.store or self.track == "speaking"


@dataclass(frozen=True)
class QualityConfig:
    """Figures of every clip, by which clips are chosen (docs/quality.md)."""

    level: Annotated[Literal["auto", "none", "basic", "full"], Flag(name="quality")] = "auto"
    """none: only what the extraction knows anyway; basic: also from landmarks, pose and audio; full: also from pixels.
    auto is full, but none for runs begun before there were levels."""
    speech_detector: Literal["auto", "energy", "silero"] = "auto"
    """Source of speech_fraction: a rule of energy, or silero-vad (the extra quality), which auto takes if installed."""
    scene_cut_strength: float = 12.0
    """Changes of the picture at least this strong (levels of 255) are scene cuts."""
    max_scene_cuts: int | None = None
    """Clips with more scene cuts are rejected (scene_cut); 0 admits none."""

    def __post_init__(self) -> None:
        require_positive(self, "scene_cut_strength")
        if self.max_scene_cuts is not None and self.max_scene_cuts < 0:
            raise ValueError(f"max_scene_cuts must be at least 0, got {self.max_scene_cuts}")
        if self.max_scene_cuts is not None and self.level not in ("auto", "full"):
            raise ValueError(f"max_scene_cuts needs --quality full, got {self.level}")


@dataclass(frozen=True)
class MediaConfig:
    """Pixels and audio of the corpus, of which none are stored by default (docs/media.md)."""

    store_audio: bool = False
    """Also store the audio, as the features saw it: 16 kHz mono FLAC."""
    audio_bits: Literal[16, 24] = 24
    """Bits of its samples: 24 keep all that the features saw, 16 take two thirds of the room."""
    store_face: Annotated[int | None, Flag(metavar="SIZE")] = None
    """Also store the aligned face in every frame, SIZE x SIZE pixels (a multiple of 4), as a video."""
    store_mouth: bool = False
    """Also store the aligned mouth in every frame, 96 x 96 grey pixels as lip readers take them, as a video."""
    codec: Annotated[Literal["h264", "jpeg"], Flag(name="video-codec")] = "h264"
    """Codec of these videos: h264, or jpeg, whose frames stand by themselves and take five times the room."""
    quality: Annotated[int | None, Flag(name="video-quality")] = None
    """Lower is better: for h264 0 to 51 (default 18), for jpeg 2 to 31 (default 3)."""

    def __post_init__(self) -> None:
        if self.store_face is not None and (self.store_face % 4 or not 32 <= self.store_face <= 1024):
            raise ValueError(f"store-face must be a multiple of 4 in 32..1024, got {self.store_face}")
        allowed, _ = VIDEO_QUALITIES[self.codec]
        if self.quality is not None and self.quality not in allowed:
            raise ValueError(
                f"video-quality must lie in {allowed.start}..{allowed.stop - 1} for {self.codec}, got {self.quality}"
            )

    @property
    def final_quality(self) -> int:
        return VIDEO_QUALITIES[self.codec][1] if self.quality is None else self.quality


@dataclass(frozen=True)
class RunConfig:
    """All settings that affect the bytes of a run."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    speaking: SpeakingConfig = field(default_factory=SpeakingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    landmarks: Annotated[LandmarkConfig, rarely("landmarks")] = field(default_factory=LandmarkConfig)
    decode: Annotated[DecodeConfig, rarely("decode")] = field(default_factory=DecodeConfig)
    plan: Annotated[PlanConfig, rarely("plan")] = field(default_factory=PlanConfig)
    threads: int = 1
    """Compute threads of each rank, fixed for the run because they change last bits. On CPUs, rather add ranks."""
    kernels: Literal["auto", "fast", "plain"] = "auto"
    """fast: on a GPU, kernels that join many operations; plain: PyTorch's own. auto is fast where a small batch at
    start-up proves them equal, and what the run was begun with when it is resumed."""
