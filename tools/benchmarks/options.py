"""Options of the benchmarks of extraction, from which their command lines are generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lrs3_loader.config import CorpusConfig


@dataclass(frozen=True)
class BenchOptions:
    """Shared by all of them."""

    clips: Path | None = None
    """A corpus of real clips to measure on (any layout that extract.py reads); generated ones when not given."""
    assets: Path | None = None
    """Folder with model files, looked in first."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of HuBERT and ResNet-50 on our side; auto is bfloat16 where the processor or GPU has it."""
    threads: int = 1
    """CPU cores that each side gets: the process, and all that it starts, is kept on so many."""
    frames: int | None = None
    """Frames at 25 fps to measure on (what fits ten minutes on two cores when not given; more on a GPU)."""
    repeats: int = 3
    """How often each thing is timed; medians are printed."""
    quick: bool = False
    """Tiny inputs and a tiny speech encoder, to see that everything runs; the figures mean nothing."""
    json: Path | None = None
    """File for all figures with machine, date and command."""
    plot: Path | None = None
    """File for a picture of them: .png, .svg or .pdf."""
    scratch: Path | None = None
    """Folder to work in (a temporary one otherwise); 2 GB, removed at the end."""

    def __post_init__(self) -> None:
        for name in ("threads", "frames", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def corpus(self, generated: Path) -> CorpusConfig:
        """The clips to measure on, ``generated`` being where generated ones are."""
        return CorpusConfig(corpus=self.clips or generated, layout="auto" if self.clips else "lrs3")
