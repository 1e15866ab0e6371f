"""Model files: `check` says which are here, `fetch` gets what may be fetched freely, `convert` reads face models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lrs3_loader.assets.check import check_assets, format_table, is_complete
from lrs3_loader.assets.locate import HUBERT, Assets
from lrs3_loader.launch import cli


@dataclass(frozen=True)
class Check:
    """Print a table of all model files; exit code 1 if something that a run needs is missing or damaged."""

    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""
    face_model: str = "ict"
    """The face model the run would use: ict, demo, or a model file FILE.npz."""
    hubert: str = HUBERT
    """The speech encoder the run would use: a Hugging Face name, a folder, or demo."""

    def __call__(self) -> int:
        rows = check_assets(Assets(self.assets), self.face_model, self.hubert)
        print(cli.as_called(format_table(rows)))
        return cli.EXIT_OK if is_complete(rows) else cli.EXIT_PROBLEM


@dataclass(frozen=True)
class Fetch:
    """Get MediaPipe's face landmarker and ICT-FaceKit, checking what arrives; nothing is fetched twice."""

    assets: Path | None = None
    """Put them into this folder (made if needed) rather than the cache."""
    face_model: str = "ict"
    """Only the landmarker is fetched for demo."""

    def __call__(self) -> int:
        assets = Assets(store=self.assets)
        print(assets.ensure_landmarker())
        if self.face_model != "demo":
            print(assets.ensure_face_model(self.face_model))
        return cli.EXIT_OK


@dataclass(frozen=True)
class Convert:
    """Convert a published face model into a file for --face-model; none of them is part of this package."""

    kind: tyro.conf.Positional[Literal["bfm-front", "bfm-2009", "flame", "ict"]]
    """bfm-front: BFM_model_front.mat; bfm-2009: the folder of its originals; flame: its pickle; ict: its release."""
    source: tyro.conf.Positional[Path]
    """The file or folder to read."""
    out: Path
    """The file to write, FILE.npz."""
    task: Path | None = None
    """The face_landmarker.task to find dense correspondence with (looked for as for a run when not given)."""
    dense_index: Path | None = None
    """An existing dense correspondence instead: 468 vertex numbers (.npy, text), or the .npz that comes with FLAME."""
    flame_embedding: Path | None = None
    """Where FLAME's 68 landmarks lie, landmark_embedding.npy (looked for beside the model when not given)."""
    flame_jaw: bool = True
    """Fold FLAME's jaw joint into the expressions; off for models whose expressions have the jaw's movement already."""
    assets: Path | None = None
    """Folder with model files, looked in first (then $LRS3_LOADER_ASSETS, then the cache)."""

    def __call__(self) -> int:
        from lrs3_loader.face.model.convert import (
            convert_face_model,
            describe_model,
            save_face_model,
        )

        task = self.task or Assets(self.assets).canonical_task()
        model = convert_face_model(self.kind, self.source, task, self.dense_index, self.flame_embedding, self.flame_jaw)
        save_face_model(model, self.out)
        print(describe_model(model))
        if model.dense is None:
            print("no face_landmarker.task found (see --task), so dense landmarks cannot be fitted with this file")
        print(f"use it with --face-model {self.out}")
        return cli.EXIT_OK


@dataclass(frozen=True)
class Args:
    command: tyro.conf.OmitSubcommandPrefixes[Check | Fetch | Convert]


def main(argv: Sequence[str] | None = None) -> int:
    return cli.parse(Args, __doc__ or "", "assets", argv).command()
