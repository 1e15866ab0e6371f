"""Settings that may differ between launches of one run: folders, processes, where logs go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lrs3_loader.config.flag_types import Flag, OptionalPlace, Place, rarely, require_positive
from lrs3_loader.errors import REASONS
from lrs3_loader.runtime.boards import BoardConfig


@dataclass(frozen=True)
class WorkerConfig:
    """Decode processes of a rank, and their deadline."""

    num_workers: Annotated[int, Flag(name="workers")] = 2
    """Decode processes of each rank."""
    deadline_seconds: Annotated[float, Flag(name="decode-deadline-seconds")] = 60.0
    """A decode process that makes no progress on a clip for this long is replaced."""
    attempts: Annotated[int, Flag(name="decode-attempts")] = 2
    """A clip is rejected after its process hung or died this often (decoder_hung, decoder_crashed)."""
    frames_mebibytes: Annotated[int | None, Flag(name="decode-mebibytes")] = None
    """Memory of each rank for decoded frames that wait to be used (default: a quarter of what is free, shared by the
    ranks; at most 1024 per decode process)."""

    def __post_init__(self) -> None:
        require_positive(self, "num_workers", "deadline_seconds", "attempts")
        if self.frames_mebibytes is not None:
            require_positive(self, "frames_mebibytes")


@dataclass(frozen=True)
class OffsetLimits:
    """Which of the measured offsets are applied."""

    min_offset_frames: int = 2
    """Smaller audio-video offsets are not applied (25 fps frames): one frame is within the error of a measurement."""
    max_offset_frames: int = 6
    """Larger audio-video offsets are not applied (25 fps frames)."""
    min_offset_confidence: float = 0.1
    """Offsets measured with less confidence (0..2) are not applied."""

    def __post_init__(self) -> None:
        require_positive(self, "min_offset_frames", "max_offset_frames")


@dataclass(frozen=True)
class LaunchConfig:
    """Settings that may differ between launches of a run."""

    out: Place
    """Folder of the run, or its URL (s3://bucket/run); an unfinished run there is resumed."""
    assets: Path | None = None
    """Folder with model files, searched first (then $LRS3_LOADER_ASSETS, then the cache)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto gives each rank the GPU of its local rank."""
    workers: Annotated[WorkerConfig, rarely("decode processes")] = field(default_factory=WorkerConfig)
    offsets: OptionalPlace = None
    """A sync.jsonl that `verify --sync` wrote for a run of this corpus: the audio of its clips is shifted by their
    offsets. Decided when a run is begun, and recorded in its manifest."""
    offsets_limits: Annotated[OffsetLimits, rarely("offsets")] = field(default_factory=OffsetLimits)
    demo: bool = False
    """Make a small corpus of synthetic talking heads and extract it."""
    retry_rejects: tuple[str, ...] | None = None
    """Run shards that contain rejects again (only rejects of the given reasons, if any)."""
    log_folder: Path | None = None
    """Append the log of each rank as JSON lines (rank-N.jsonl), and keep the progress there as a text file for
    Prometheus (lrs3_loader.prom)."""
    boards: Annotated[BoardConfig, rarely("figures of this launch elsewhere")] = field(default_factory=BoardConfig)
    max_reject_fraction: float = 1.0
    """Exit code 3 if a larger share of the run's clips are rejects, and in any case if all are."""
    extend: bool = False
    """Add shards for clips that are new in the corpus; published ones stay as they are."""
    add: tuple[Literal["audio", "face", "mouth", "lm478", "hubert"], ...] = ()
    """Add fields to the run, and extract nothing else again: with --resume OUT. face is --store-face 256 unless that is
    given; hubert needs --hubert with another encoder."""
    repair: bool = False
    """Read all shards first, and make those again that do not match their records."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction must lie in 0..1, got {self.max_reject_fraction}")
        if unknown := sorted(set(self.retry_rejects or ()) - set(REASONS)):
            raise ValueError(f"unknown reject reason {', '.join(unknown)}; known are {', '.join(REASONS)}")
