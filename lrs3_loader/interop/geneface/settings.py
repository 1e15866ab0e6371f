"""How a run becomes a GeneFace set and a set becomes a run; imports nothing heavy, so that command lines are quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from lrs3_loader.config import PlanConfig, rarely
from lrs3_loader.selection.settings import Choice


@dataclass(frozen=True)
class ItemOptions:
    """GeneFace's quirks, each by name."""

    keypoint_off_by_one: bool = False
    """Take idexp_lm3d at the vertices that GeneFace's released data use: its 1-based keypoint indices read as if they
    counted from 0, so each is one too high. Needs the run's face model."""
    flip_lm5: bool = True
    """Store lm5 upside down (height - 1 - y), as a side effect in GeneFace's own processing does."""


@dataclass(frozen=True)
class ExportOptions:
    """Settings of an export: the split of the clips, and the quirks of GeneFace to reproduce."""

    validation: Literal["speakers", "every100"] = "speakers"
    """speakers: whole speakers are held out, chosen by a hash of their name; every100: each 100th clip of the sorted
    list, GeneFace's rule (the same speakers on both sides)."""
    val_fraction: float = 0.01
    """Share of speakers held out."""
    splits: tuple[str, ...] = ()
    """Only these splits of the corpus (all when empty)."""
    partial: bool = False
    """Export what is there of a run that is not finished."""
    overwrite: bool = False
    """Replace a set that is already there."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    items: Annotated[ItemOptions, rarely("quirks")] = field(default_factory=ItemOptions)

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {self.val_fraction}")


@dataclass(frozen=True)
class ImportOptions:
    """Settings of an import: how items are cut into shards."""

    hubert_store: Literal["float16", "float32"] = "float16"
    """How the HuBERT rows are stored."""
    plan: Annotated[PlanConfig, rarely("plan")] = field(default_factory=PlanConfig)
