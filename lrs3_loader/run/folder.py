"""A run in a folder or on object storage: its configuration, its clips, and its published shards.

OUT/
  run.json         config, plan hash, model files, software
  manifest.jsonl   one line per clip, sorted, with the shard it belongs to
  shards/          pretrain-000000.tar ...
  ledger/          pretrain-000000.json ... each written after its tar
  index.jsonl      large runs only: the contents of the ledgers in one file; may be deleted
  tmp/             local runs only: shards being written
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import Location, Store, local_path, store_at
from lrs3_loader.run.ledger import LEDGER_FOLDER, Ledger, ledger_name, read_ledger
from lrs3_loader.run.ledger_index import LedgerIndex, LedgerSummary
from lrs3_loader.run.manifest import Manifest, manifest_lines, open_manifest
from lrs3_loader.run.shards import TAR_FOLDER, check_shard, publish_shard, read_shard, tar_name
from lrs3_loader.types import ClipFeatures, Reject, Shard

RECORD_FILE = "run.json"
MANIFEST_FILE = "manifest.jsonl"


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
            with store.write(RECORD_FILE) as file:
                file.write((json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        except RunError as error:
            raise RunError(f"{error}; or choose another --out") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises:
            RunError: there is no run, or its files are damaged.
        """
        store = store_at(path)
        try:
            record = json.loads(store.read(RECORD_FILE))
            digest = record["plan_sha256"]
            run_hash(record)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(f"{path} holds no run (no {RECORD_FILE} there)") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path}/{RECORD_FILE} is damaged ({error}); begin another run") from error
        with store.local_copy(MANIFEST_FILE) as folder:
            return cls(path, record, open_manifest(folder / MANIFEST_FILE, digest, store.where(MANIFEST_FILE)))

    @property
    def run_hash(self) -> str:
        """Hash of everything that decides the bytes of the shards."""
        return run_hash(self.record)

    def tar_path(self, shard: Shard) -> Path:
        """Return the path of a shard's tar; ``RunError`` if the run is remote."""
        return local_path(self.path, "opening tars by path") / tar_name(shard.name)

    def tar_url(self, shard: Shard) -> str:
        """Return the path or URL of a shard's tar."""
        return self.store.where(tar_name(shard.name))

    def tar_size(self, shard: Shard) -> int:
        """Return the bytes of a shard's tar; ``FileNotFoundError`` if there is none."""
        return self.store.size(tar_name(shard.name))

    def ledger(self, shard: Shard) -> Ledger:
        """Return the ledger of a shard; ``FileNotFoundError`` if it is not published."""
        return read_ledger(self.store, shard.name)

    def ledgers(self) -> Iterator[Ledger]:
        """Yield the ledgers of all published shards in the order of the plan, reading many at a time."""
        names = [ledger_name(shard) for shard in self.shards.names]
        for name, data in self.store.read_many(names):
            yield Ledger.parse(data, self.store.where(name))

    def samples(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """Yield the samples of a published shard (see ``shards.read_shard``); a remote tar is downloaded first."""
        with self.store.local_copy(tar_name(shard.name)) as folder:
            yield from read_shard(folder / tar_name(shard.name))

    def summaries(self) -> list[LedgerSummary]:
        """Return the summaries of the published shards, sorted by name.

        A shard is published if its ledger exists and its tar has the size that the ledger says. This lists two folders
        and reads new ledgers, but no tar; ``check`` reads everything.
        """
        tars = self.store.listing(TAR_FOLDER)
        sizes = {name.removesuffix(".tar"): state.num_bytes for name, state in tars.items() if name.endswith(".tar")}
        run = self.run_hash
        ledgers = self._index.summaries()
        return [found for found in ledgers if found.run == run and sizes.get(found.shard) == found.num_bytes]

    def published(self) -> set[str]:
        """Return the names of the published shards."""
        return {summary.shard for summary in self.summaries()}

    def pending(self) -> list[int]:
        """Return the indices of the shards that are not published, in the order of the plan."""
        done = self.published()
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
        results: Iterable[ClipFeatures | Reject],
        timings: dict[str, float],
        provenance: dict[str, Any],
    ) -> Ledger:
        """Write one shard and its ledger atomically; see ``shards.publish_shard``."""
        return publish_shard(shard, results, self.store, run=self.run_hash, timings=timings, provenance=provenance)

    def clear_scratch(self) -> None:
        """Remove unfinished files of killed processes. Only rank 0 may call this, before any rank writes."""
        self.store.clear_scratch()

    def check(self) -> Iterator[tuple[Shard, list[str]]]:
        """Compare every shard with its ledger; yield each shard with a list of problems."""
        for shard in self.shards:
            try:
                ledger = self.ledger(shard)
            except FileNotFoundError:
                yield shard, [f"{shard.name} is not published yet: {len(shard.clips)} clips to go"]
                continue
            except RunError as error:
                yield shard, [str(error)]
                continue
            problems = check_shard(shard, self.store, ledger)
            if ledger.run != self.run_hash:
                problems.append(f"ledger of {shard.name} belongs to another run")
            yield shard, problems

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


def run_hash(record: dict[str, Any]) -> str:
    """Hash the parts of ``run.json`` that decide the bytes of shards: config, plan and model files, not software."""
    deciding = {name: record[name] for name in ("config", "plan_sha256", "models", "device_type")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Compare two nested configs; return a line ``name: old -> new`` for each difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        lines = [differences(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in names]
        return [line for part in lines for line in part]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]
