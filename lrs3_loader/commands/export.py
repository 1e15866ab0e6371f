"""Export a run to other formats, and import GeneFace sets as runs.

lrs3-loader export geneface runs/demo data/binary/lrs3

lrs3-loader export import-geneface data/binary/lrs3 runs/imported

lrs3-loader export files runs/demo plain

lrs3-loader export stats runs/demo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from lrs3_loader.config import Place
from lrs3_loader.errors import count_of
from lrs3_loader.interop.geneface.settings import ExportOptions, ImportOptions
from lrs3_loader.launch import cli
from lrs3_loader.selection.settings import Choice


@dataclass(frozen=True)
class Geneface:
    """Write a run as train.data and val.data, ready for GeneFace's audio2motion, post-net and SyncNet."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    dest: Annotated[Path, tyro.conf.Positional]
    """Folder for the set."""
    face_model: str | None = None
    """The run's face model: ict, demo or FILE.npz (as the run says when not given); for --keypoint-off-by-one only."""
    assets: Path | None = None
    """Folder with model files; for --keypoint-off-by-one only."""
    options: Annotated[ExportOptions, tyro.conf.arg(name="")] = field(default_factory=ExportOptions)

    def __call__(self) -> int:
        from lrs3_loader.interop.geneface.exporter import export_geneface
        from lrs3_loader.run.folder import RunFolder

        folder = RunFolder.open(self.run)
        model = None
        if self.options.items.keypoint_off_by_one:
            from lrs3_loader.assets.locate import Assets
            from lrs3_loader.config import FaceConfig
            from lrs3_loader.extraction.models import load_face_model

            name = self.face_model or folder.record["config"].get("face", {}).get("face_model")
            if name is None:
                raise cli.UsageError(f"{self.run} does not name its face model: give --face-model")
            model = load_face_model(FaceConfig(face_model=name), Assets(self.assets))
        with tqdm(total=folder.totals().num_samples, unit="clip", disable=None) as bar:
            report = export_geneface(folder, self.dest, self.options, model, bar.update)
        print(
            f"{count_of(report.num_train, 'clip')} in train.data, {report.num_val} in val.data, "
            f"{sum(report.dropped.values())} left out, {report.num_bytes / 1e6:.1f} MB in {self.dest}"
        )
        return cli.EXIT_OK


@dataclass(frozen=True)
class ImportGeneface:
    """Convert a binarised GeneFace set into a run. Run the same command again to resume."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder with train.data, val.data or both."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the run to make."""
    options: Annotated[ImportOptions, tyro.conf.arg(name="")] = field(default_factory=ImportOptions)

    def __call__(self) -> int:
        from lrs3_loader.interop.geneface.importer import import_geneface
        from lrs3_loader.launch.summary import describe_rejects

        with tqdm(unit="clip", disable=None) as bar:
            folder = import_geneface(self.source, self.out, self.options, bar.update)
        totals = folder.totals()
        print(
            f"{count_of(totals.num_samples, 'sample')}, {count_of(len(totals.rejects), 'reject')} "
            f"in {count_of(totals.num_shards, 'shard')} in {self.out}",
            *describe_rejects(totals),
            sep="\n",
        )
        return cli.EXIT_OK


@dataclass(frozen=True)
class Files:
    """Write every clip as plain files: arrays (npz), json, and audio (wav) and video (mp4) where the run holds them."""

    run: Annotated[Place, tyro.conf.Positional]
    """Folder or URL of the run."""
    dest: Annotated[Path, tyro.conf.Positional]
    """Folder for the files; those that are there are replaced."""
    splits: tuple[str, ...] = ()
    """Only clips of these splits (all when empty)."""

    def __call__(self) -> int:
        from lrs3_loader.interop.plain_files import export_files
        from lrs3_loader.run.folder import RunFolder

        def select(key: str) -> bool:
            return not self.splits or key.split("/")[0] in self.splits

        with tqdm(unit="clip", disable=None) as bar:
            num_clips = export_files(RunFolder.open(self.run), self.dest, select, bar.update)
        print(f"{count_of(num_clips, 'clip')} in {self.dest}")
        return cli.EXIT_OK


@dataclass(frozen=True)
class Stats:
    """Write mean, standard deviation and percentiles of every field to stats.json in the run's folder."""

    run: Annotated[Place, tyro.conf.Positional]
    """Folder or URL of the run."""
    partial: bool = False
    """Use the shards written so far of an unfinished run."""
    splits: tuple[str, ...] = ()
    """Only clips of these splits (all when empty)."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    out: Path | None = None
    """Another file to write, for the figures of some clips, or for those of a run at a URL."""

    def __call__(self) -> int:
        from lrs3_loader.stream import stats

        def select(key: str) -> bool:
            return not self.splits or key.split("/")[0] in self.splits

        where = self.choice.text
        if (self.splits or where) and self.out is None:
            raise cli.UsageError("stats.json holds the figures of all clips: name another file for some, with --out")
        if self.out is None and not isinstance(self.run, Path):
            raise cli.UsageError(f"name the file to write with --out: {self.run} is no folder of this machine")
        path, figures = stats.write_stats(self.run, self.partial, select, self.out, where)
        print(f"{path}: {stats.describe_stats(figures)}")
        return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    return cli.parse(Geneface | ImportGeneface | Files | Stats, __doc__ or "", "export", argv)()  # type: ignore[arg-type]
