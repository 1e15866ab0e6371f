"""Model files: `check` lists those on this machine, `fetch` downloads the free ones, `convert` reads face models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lrs3_loader.assets.locate import HUBERT, Assets
from lrs3_loader.config import rarely
from lrs3_loader.launch import cli


@dataclass(frozen=True)
class Check:
    """Print a table of all model files; exit code 1 if one that a run needs is missing or damaged."""

    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    face_model: str = "ict"
    """The face model the run would use: ict, demo, or a model file FILE.npz."""
    hubert: str = HUBERT
    """The speech encoder the run would use: a Hugging Face name, a folder, or demo."""

    def __call__(self) -> int:
        from lrs3_loader.assets.check import check_assets, format_table, is_complete

        rows = check_assets(Assets(self.assets), self.face_model, self.hubert)
        print(cli.as_called(format_table(rows)))
        return cli.EXIT_OK if is_complete(rows) else cli.EXIT_PROBLEM


@dataclass(frozen=True)
class Fetch:
    """Download MediaPipe's face landmarker and ICT-FaceKit, and check their hashes; existing files are kept."""

    assets: Path | None = None
    """Put them into this folder (made if needed) rather than the cache."""
    face_model: str = "ict"
    """Only the landmarker is fetched for demo."""
    speaking: bool = False
    """Also fetch LR-ASD's weights, which `extract --speaking` needs."""

    def __call__(self) -> int:
        assets = Assets(store=self.assets)
        print(assets.ensure_landmarker())
        if self.face_model != "demo":
            print(assets.ensure_face_model(self.face_model))
        if self.speaking:
            print(assets.ensure_speaking_weights())
        return cli.EXIT_OK


@dataclass(frozen=True)
class ConvertDetails:
    """Files that go with the face model, and FLAME's jaw."""

    task: Path | None = None
    """The face_landmarker.task to find dense correspondence with (looked for as for a run when not given)."""
    dense_index: Path | None = None
    """An existing dense correspondence instead: 468 vertex numbers (.npy, text), or the .npz that comes with FLAME."""
    flame_embedding: Path | None = None
    """FLAME's 68 landmarks, landmark_embedding.npy (looked for next to the model when not given)."""
    flame_jaw: bool = True
    """Include FLAME's jaw joint in the expressions; off for models whose expressions already move the jaw."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""


@dataclass(frozen=True)
class Convert:
    """Convert a published face model into a file for --face-model; none of them is part of this package."""

    kind: tyro.conf.Positional[Literal["bfm-front", "bfm-2009", "flame", "ict"]]
    """bfm-front: BFM_model_front.mat; bfm-2009: the folder of its originals; flame: its pickle; ict: its release."""
    source: tyro.conf.Positional[Path]
    """The file or folder to read."""
    out: Path
    """The file to write, FILE.npz."""
    details: Annotated[ConvertDetails, rarely("details")] = field(default_factory=ConvertDetails)

    def __call__(self) -> int:
        from lrs3_loader.face.model.convert import convert_face_model, describe_model, save_face_model

        given = self.details
        task = given.task or Assets(given.assets).canonical_task()
        model = convert_face_model(
            self.kind, self.source, task, given.dense_index, given.flame_embedding, given.flame_jaw
        )
        save_face_model(model, self.out)
        print(describe_model(model))
        if model.dense is None:
            print("no face_landmarker.task found (see --task), so dense landmarks cannot be fitted with this file")
        print(f"use it with --face-model {self.out}")
        return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    return cli.parse(Check | Fetch | Convert, __doc__ or "", "assets", argv)()  # type: ignore[arg-type]
