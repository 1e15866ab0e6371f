"""Pack a run or any folder into an archive in parts, and unpack it.

lrs3-loader bundle pack runs/demo --to parts --part-size 2GiB

lrs3-loader bundle unpack lrs3_0722.zip.part_* --out data/binary/lrs3
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from lrs3_loader.errors import count_of
from lrs3_loader.launch import cli
from lrs3_loader.selection.settings import Choice


@dataclass(frozen=True)
class Pack:
    """Write NAME.tar.part_0000 ... and NAME.tar.manifest.json with the sha256 of each."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run, or any folder of plain files."""
    to: Path = Path()
    """Folder for the parts."""
    part_size: str = "2GiB"
    """Size of each part except the last: 500MB, 2GiB, or a number of bytes."""
    name: str | None = None
    """Name of the archive (the folder's when not given)."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)

    def __call__(self) -> int:
        from lrs3_loader.interop.bundle.bundle import pack_archive
        from lrs3_loader.interop.bundle.parts import parse_size

        try:
            part_size = parse_size(self.part_size)
            with self._chosen() as source, tqdm(unit="B", unit_scale=True, disable=None) as bar:
                manifest = pack_archive(source, self.to, part_size, self.name or self.source.name, bar.update)
        except ValueError as error:
            raise cli.UsageError(str(error)) from error
        print(manifest)
        return cli.EXIT_OK

    @contextmanager
    def _chosen(self) -> Iterator[Path]:
        """Yield the folder to pack: a run of the chosen clips is made beside the parts, and removed afterwards."""
        from lrs3_loader.io.files import make_folder
        from lrs3_loader.run.folder import RunFolder
        from lrs3_loader.selection.smaller_run import filter_run

        where = self.choice.expression()
        if where is None:
            yield self.source
            return
        make_folder(self.to)
        with tempfile.TemporaryDirectory(prefix=".filter-", dir=self.to) as scratch:
            filter_run(RunFolder.open(self.source), where, Path(scratch) / "run")
            yield Path(scratch) / "run"


@dataclass(frozen=True)
class Unpack:
    """Check every part, then unpack. Run the same command again to resume."""

    parts: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The parts in any order (X.zip.part_*, X.zip_part_aa, X.zip.001, X.tar.part_0000), or a manifest."""
    out: Path
    """Folder to unpack into, such as data/binary/lrs3."""

    def __call__(self) -> int:
        from lrs3_loader.interop.bundle.bundle import unpack_archive

        with tqdm(unit="B", unit_scale=True, disable=None) as bar:
            done = unpack_archive(self.parts, self.out, bar.update)
        print(
            f"{count_of(done.num_written, 'file')}, {done.num_bytes / 1e6:.1f} MB written to {done.out}; "
            f"{done.num_there} already existed"
        )
        return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    return cli.parse(Pack | Unpack, __doc__ or "", "bundle", argv)()  # type: ignore[arg-type]
