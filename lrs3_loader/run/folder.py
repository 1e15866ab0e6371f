"""A run in a folder or on object storage: its configuration, its clips, and its published shards.

OUT/
  run.json         config, plan hash, model files, software
  manifest.jsonl   one line per clip, sorted, with the shard it belongs to (manifest.g1.jsonl once the run has grown)
  shards/          pretrain-000000.tar ... (pretrain-000000.g1.tar where another was published since)
  ledger/          pretrain-000000.json ... each written after its tar
  index.jsonl      large runs only: the contents of the ledgers in one file; may be deleted
  tmp/             local runs only: shards being written
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.io.files import HashingFile
from lrs3_loader.io.storage import Location, Store, local_path, store_at
from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.run.ledger import (
    LEDGER_FOLDER,
    REPAIR,
    TAR_FOLDER,
    Ledger,
    ledger_name,
    read_ledger,
    shard_of_tar,
    tar_name,
)
from lrs3_loader.run.ledger_index import LedgerIndex, LedgerSummary
from lrs3_loader.run.manifest import Manifest, manifest_lines, open_manifest
from lrs3_loader.run.offsets import read_offsets
from lrs3_loader.run.record import (
    MANIFEST_FILE,
    RECORD_FILE,
    manifest_of,
    next_manifest,
    read_record,
    run_hash,
    write_record,
)
from lrs3_loader.run.shards import Result, add_figures, check_shard, is_sound, open_tar, publish_shard, read_shard
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.types import Shard

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)


class RunFolder:
    """A run: ``create`` begins one, ``open`` opens it again."""

    def __init__(self, path: str | Path, record: dict[str, Any], shards: Iterable[Shard]):
        self.store: Store = store_at(path)
        self.record = record  # run.json
        self.shards = shards if isinstance(shards, Manifest) else Manifest.of(shards)
        self._index = LedgerIndex(self.store)

    @property
    def name(self) -> str:
        """The last part of the path or URL."""
        return self.path.absolute().name if isinstance(self.path, Path) else self.path.rpartition("/")[2]

    @property
    def path(self) -> Location:
        """Folder or URL of the run."""
        return self.store.root

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Return whether a run has begun there."""
        try:
            store_at(path).read(RECORD_FILE)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    @classmethod
    def create(cls, path: str | Path, record: dict[str, Any], shards: Iterable[Shard]) -> RunFolder:
        """Begin a run in a new or empty folder; ``run.json`` is written last.

        ``record["plan_sha256"]`` is the hash of these shards.
        """
        store = store_at(path)
        try:
            store.create([TAR_FOLDER, LEDGER_FOLDER])
            with store.write(MANIFEST_FILE) as file:
                file.writelines(line.encode("ascii") for line in manifest_lines(shards))
            write_record(store, record)
        except RunError as error:
            raise RunError(f"{error}; or choose another --out") from error
        return cls.open(path)

    def extend(self, shards: Sequence[Shard]) -> RunFolder:
        """Add shards to the plan, and open the run again.

        The whole plan goes to a manifest with another name, and the run has grown once ``run.json`` names that. What is
        published stays valid: ``plan_sha256`` remains the hash of the plan that the run began with.
        """
        name = next_manifest(self.record)
        plan = itertools.chain(self.shards, shards)
        with self.store.write(name) as file:
            hashing = HashingFile(file)
            for line in manifest_lines(plan):
                hashing.write(line.encode("ascii"))
        write_record(self.store, {**self.record, "manifest": {"file": name, "sha256": hashing.sha256}})
        return self.open(str(self.path))

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises:
            RunError: there is no run, or its files are damaged.
        """
        store = store_at(path)
        record = read_record(store)
        name, digest = manifest_of(record)
        with store.local_copy(name) as folder:
            return cls(path, record, open_manifest(folder / name, digest, store.where(name)))

    @property
    def run_hash(self) -> str:
        """Hash of everything that decides the bytes of the shards."""
        return run_hash(self.record)

    @property
    def earlier_hashes(self) -> frozenset[str]:
        """The hashes that the run had before fields were added; shards under these lack the last of them."""
        return frozenset(self.record.get("earlier", []))

    def owns(self, ledger: Ledger | LedgerSummary) -> bool:
        """Return whether a ledger is of this run, though perhaps from before fields were added."""
        return ledger.run == self.run_hash or ledger.run in self.earlier_hashes

    def incomplete(self, shard: Shard) -> Ledger | None:
        """Return the ledger of a sound shard from before fields were added; None for any other shard."""
        try:
            ledger = self.ledger(shard)
        except (FileNotFoundError, RunError):
            return None
        return ledger if ledger.run in self.earlier_hashes and is_sound(self.store, ledger) else None

    def tar_path(self, shard: Shard) -> Path:
        """Return the path of a shard's tar; ``RunError`` if the run is remote."""
        try:
            generation = self.ledger(shard).generation
        except FileNotFoundError:
            generation = 0
        return local_path(self.path, "opening tars by path") / tar_name(shard.name, generation)

    def open_tar(self, shard: Shard) -> TarIndex:
        """Open the tar of a published shard with its ledger; that of a remote run is downloaded for it.

        Raises:
            DamagedError: the tar or its ledger is missing or damaged.
        """
        try:
            ledger = self.ledger(shard)
        except (FileNotFoundError, RunError) as error:
            raise DamagedError(f"{shard.name} has no sound ledger: {error}") from error
        return open_tar(self.store, tar_name(shard.name, ledger.generation), ledger)

    def ledger(self, shard: Shard) -> Ledger:
        """Return the ledger of a shard; ``FileNotFoundError`` if it is not published."""
        return read_ledger(self.store, shard.name)

    def ledgers(self, shards: Collection[str] | None = None) -> Iterator[Ledger]:
        """Yield the ledgers of published shards (of these only, if given) in the order of the plan, many at a time."""
        names = [ledger_name(shard) for shard in self.shards.names if shards is None or shard in shards]
        for name, data in self.store.read_many(names):
            yield Ledger.parse(data, self.store.where(name))

    def figures(self) -> FigureTable:
        """Return the figures of all published clips, from the ledgers alone: no tar is opened.

        Where ``verify --sync`` measured offsets, ``sync_offset`` and ``sync_confidence`` are among them.

        Raises:
            RunError: a ledger or the file of the offsets is damaged.
        """
        offsets = read_offsets(self.store)
        table = FigureTable.of_ledgers(filter(self.owns, self.ledgers()), str(self.path))
        return table if offsets is None else table.with_offsets(offsets)

    def table(self) -> pandas.DataFrame:
        """Return the figures of all published clips as a pandas table, a row per clip (docs/quality.md).

        Raises:
            RunError: pandas is not installed, or a ledger is damaged.
        """
        return self.figures().to_pandas()

    def samples(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """Yield the samples of a published shard (see ``shards.read_shard``); a remote tar is downloaded first."""
        ledger = self.ledger(shard)
        name = tar_name(shard.name, ledger.generation)
        with self.store.local_copy(name) as folder:
            try:
                yield from read_shard(folder / name, ledger)
            except RunError as error:
                raise RunError(f"{error}; {REPAIR}".replace(str(folder / name), self.store.where(name))) from error

    def summaries(self) -> list[LedgerSummary]:
        """Return the summaries of the published shards, sorted by name.

        A shard is published if its ledger exists and its tar has the size that the ledger says. This lists two folders
        and reads new ledgers, but no tar; ``check`` reads everything.
        """
        sizes = {f"{TAR_FOLDER}/{name}": state.num_bytes for name, state in self.store.listing(TAR_FOLDER).items()}
        return [
            found
            for found in self._index.summaries(self.shards.names)
            if self.owns(found) and sizes.get(tar_name(found.shard, found.generation)) == found.num_bytes
        ]

    @property
    def ledger_errors(self) -> list[str]:
        """Problems of the ledgers that the last ``summaries`` passed over, one line each."""
        return list(self._index.errors.values())

    def published(self) -> set[str]:
        """Return the names of the published shards."""
        return {summary.shard for summary in self.summaries()}

    def pending(self) -> list[int]:
        """Return the indices of the shards that are not published, or lack fields, in the order of the plan."""
        run = self.run_hash
        done = {summary.shard for summary in self.summaries() if summary.run == run}
        return [index for index, name in enumerate(self.shards.names) if name not in done]

    def with_rejects(self, reasons: Sequence[str] = ()) -> list[int]:
        """Return the indices of published shards with rejects, or with rejects for one of the given reasons."""
        wanted = set(reasons)
        found = {summary.shard: set(summary.reasons) for summary in self.summaries() if summary.rejects}
        chosen = {name for name, present in found.items() if not wanted or present & wanted}
        return [index for index, name in enumerate(self.shards.names) if name in chosen]

    def save_index(self) -> None:
        """Write the index of the ledgers, if there are many; see ``LedgerIndex``."""
        self._index.save()

    def publish(
        self,
        shard: Shard,
        results: Iterable[Result],
        timings: dict[str, float],
        provenance: dict[str, Any],
    ) -> Ledger:
        """Write one shard and its ledger atomically; see ``shards.publish_shard``."""
        known: dict[str, Any] = {"run": self.run_hash, "earlier": self.earlier_hashes}
        return publish_shard(shard, results, self.store, **known, timings=timings, provenance=provenance)

    def add_figures(self, shard: Shard) -> bool:
        """Copy the figures of a published shard's samples into its ledger, if that has none; return whether it did."""
        ledger = self.ledger(shard)
        return not ledger.figures and bool(add_figures(self.store, ledger).figures)

    def unpublish(self, shard: Shard) -> None:
        """Remove the ledger of a shard, so that the shard is made again."""
        self.store.delete(ledger_name(shard.name))

    def clear_scratch(self) -> None:
        """Remove what killed processes have left, and make folders that are missing.

        Only rank 0 may call this, before any rank writes.
        """
        self.store.create([TAR_FOLDER, LEDGER_FOLDER])
        self.store.clear_scratch()
        current = {name: tar_name(name) for name in self.shards.names}
        current |= {
            found.shard: tar_name(found.shard, found.generation) for found in self._index.summaries(self.shards.names)
        }
        for file_name in self.store.listing(TAR_FOLDER):
            name = f"{TAR_FOLDER}/{file_name}"
            if name != current.get(shard_of_tar(file_name), name):
                self.store.delete(name)

    def check(self) -> Iterator[tuple[Shard, list[str]]]:
        """Compare every shard with its ledger; yield each shard with a list of problems.

        Raises:
            UnreachableError: object storage cannot be reached, which says nothing about a shard.
        """
        for shard in self.shards:
            try:
                ledger = self.ledger(shard)
                problems = check_shard(shard, self.store, ledger)
                if ledger.run != self.run_hash:
                    lacks = "is from before fields were added" if self.owns(ledger) else "belongs to another run"
                    problems.append(f"{self.store.where(ledger_name(shard.name))} {lacks}")
            except FileNotFoundError:
                problems = [f"{shard.name} is not published yet: {len(shard.clips)} clips to go"]
            except UnreachableError:
                raise
            except RunError as error:
                problems = [str(error)]
            yield shard, problems

    def unpublish_damaged(self) -> list[int]:
        """Unpublish the shards that do not match their ledgers, and return their indices."""
        names = self.store.listing(LEDGER_FOLDER)
        damaged = []
        for index, (shard, problems) in enumerate(self.check()):
            if problems and f"{shard.name}.json" in names:
                logger.warning("%s: %s; it is made again", shard.name, "; ".join(problems))
                self.unpublish(shard)
                damaged.append(index)
        return damaged

    def totals(self) -> Totals:
        """Return the sums over all published shards."""
        found = self.summaries()
        return Totals(
            num_shards=len(found),
            num_planned_shards=len(self.shards),
            num_samples=sum(summary.num_samples for summary in found),
            num_frames=sum(summary.num_frames for summary in found),
            num_bytes=sum(summary.num_bytes for summary in found),
            rejects=tuple(reject for summary in found for reject in summary.rejects),
            reasons=sum((summary.reasons for summary in found if summary.rejects), Counter()),
        )


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over the published shards of a run."""

    num_shards: int
    num_planned_shards: int
    num_samples: int
    num_frames: int
    num_bytes: int
    rejects: tuple[tuple[str, str, str], ...]  # (key, reason, message)
    reasons: Counter[str]


def demo_corpus_folder(out: Location) -> Path:
    """Return the folder of a demo run's corpus, inside its output folder."""
    return local_path(out, "a demo run") / "demo-corpus"
