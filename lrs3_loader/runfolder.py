"""A run on disk: what was asked for, which clips it covers, and which shards are done.

OUT/
  run.json         config, plan hash, model files, software
  manifest.jsonl   one line per clip, sorted, with the shard it belongs to
  shards/          pretrain-000000.tar ...
  ledger/          pretrain-000000.json ... appears after its tar
  tmp/             shards in flight
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lrs3_loader.disk import cannot_write, reading, writing
from lrs3_loader.errors import RunError
from lrs3_loader.files import atomic_write
from lrs3_loader.manifest import manifest_lines, plan_sha256, read_manifest
from lrs3_loader.shards import Ledger, check_shard, publish_shard
from lrs3_loader.types import ClipFeatures, Reject, Shard


class RunFolder:
    """One output folder. Create it with ``create``, find it again with ``open``."""

    def __init__(self, path: Path, record: dict[str, Any], shards: tuple[Shard, ...]):
        self.path = path
        self.record = record  # run.json
        self.shards = shards

    @classmethod
    def exists(cls, path: Path) -> bool:
        return (path / "run.json").is_file()

    @classmethod
    def create(cls, path: Path, record: dict[str, Any], shards: tuple[Shard, ...]) -> RunFolder:
        """Begin a run in an empty or new folder; ``run.json`` is written last and marks it as begun."""
        try:
            for name in ("shards", "ledger", "tmp"):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{cannot_write(path, error)}, or choose another --out") from error
        with atomic_write(path / "manifest.jsonl") as file:
            file.writelines(line.encode("ascii") for line in manifest_lines(shards))
        with atomic_write(path / "run.json") as file:
            file.write((json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        return cls(path, record, shards)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open a run that was begun before.

        Raises:
            RunError: no run there, or its files are damaged.
        """
        if not cls.exists(path):
            raise RunError(f"{path} holds no run (no run.json there)")
        try:
            record = json.loads((path / "run.json").read_bytes())
            digest = record["plan_sha256"]
            run_hash(record)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path}/run.json is damaged ({error}); begin another run") from error
        shards = read_manifest(path / "manifest.jsonl")
        if plan_sha256(shards) != digest:
            raise RunError(f"{path}/manifest.jsonl was changed since the run began; begin another run")
        return cls(path, record, shards)

    @property
    def run_hash(self) -> str:
        """Names what decides the bytes: equal hashes, equal shards."""
        return run_hash(self.record)

    def tar_path(self, shard: Shard) -> Path:
        return self.path / "shards" / f"{shard.name}.tar"

    def ledger_path(self, shard: Shard) -> Path:
        return self.path / "ledger" / f"{shard.name}.json"

    def ledger(self, shard: Shard) -> Ledger:
        """The ledger of a published shard (``FileNotFoundError`` where there is none)."""
        return Ledger.read(self.ledger_path(shard))

    def published(self) -> set[str]:
        """Names of the shards whose ledger is there and whose tar has the size it says.

        Two directory listings and one small read per ledger, none of a tar: ``check`` is the one that reads all.
        """
        done = set()
        with reading(self.path / "shards"):
            tars = {entry.name: entry.stat().st_size for entry in _entries(self.path / "shards", ".tar")}
        for entry in _entries(self.path / "ledger", ".json"):
            ledger = Ledger.read(Path(entry.path))
            if ledger.run == self.run_hash and tars.get(f"{ledger.shard}.tar") == ledger.num_bytes:
                done.add(ledger.shard)
        return done

    def pending(self) -> list[int]:
        """Indices of the shards still to be done, in plan order."""
        done = self.published()
        return [index for index, shard in enumerate(self.shards) if shard.name not in done]

    def with_rejects(self, reasons: Sequence[str] = ()) -> list[int]:
        """Indices of published shards that hold rejects (of the given reasons, if any)."""
        done = self.published()
        wanted = set(reasons)

        def matches(shard: Shard) -> bool:
            found = set(self.ledger(shard).reasons)
            return bool(found & wanted if wanted else found)

        return [index for index, shard in enumerate(self.shards) if shard.name in done and matches(shard)]

    def publish(
        self,
        shard: Shard,
        results: Iterable[ClipFeatures | Reject],
        timings: dict[str, float],
        provenance: dict[str, Any],
    ) -> Ledger:
        """Write one shard and its ledger, whole or not at all (see ``shards.publish_shard``)."""
        return publish_shard(
            shard,
            results,
            self.tar_path(shard),
            self.ledger_path(shard),
            self.path / "tmp",
            run=self.run_hash,
            timings=timings,
            provenance=provenance,
        )

    def clear_scratch(self) -> None:
        """Remove what killed processes left in flight. Only for rank 0, before any rank writes."""
        with writing(self.path / "tmp"):
            (self.path / "tmp").mkdir(exist_ok=True)
            for entry in os.scandir(self.path / "tmp"):
                os.unlink(entry.path)

    def check(self) -> Iterator[tuple[Shard, list[str]]]:
        """Re-read every shard against its ledger; yields each shard with what is wrong with it."""
        for shard in self.shards:
            try:
                ledger = self.ledger(shard)
            except FileNotFoundError:
                yield shard, [f"{shard.name} is not published yet: {len(shard.clips)} clips to go"]
                continue
            except RunError as error:
                yield shard, [str(error)]
                continue
            problems = check_shard(shard, self.tar_path(shard), ledger)
            if ledger.run != self.run_hash:
                problems.append(f"ledger of {shard.name} belongs to another run")
            yield shard, problems

    def totals(self) -> Totals:
        """Sums over all published shards."""
        done = self.published()
        ledgers = [self.ledger(shard) for shard in self.shards if shard.name in done]
        reasons: Counter[str] = sum((ledger.reasons for ledger in ledgers), Counter())
        return Totals(
            num_shards=len(ledgers),
            num_planned_shards=len(self.shards),
            num_samples=sum(len(ledger.samples) for ledger in ledgers),
            num_frames=sum(ledger.num_frames for ledger in ledgers),
            num_bytes=sum(ledger.num_bytes for ledger in ledgers),
            rejects=tuple(reject for ledger in ledgers for reject in ledger.rejects),
            reasons=reasons,
        )


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a run amounts to so far."""

    num_shards: int
    num_planned_shards: int
    num_samples: int
    num_frames: int
    num_bytes: int
    rejects: tuple[tuple[str, str, str], ...]  # (key, reason, message)
    reasons: Counter[str]


def demo_corpus_folder(out: Path) -> Path:
    """Where the corpus of a demo run lives: inside its output folder."""
    return out / "demo-corpus"


def run_hash(record: dict[str, Any]) -> str:
    """Hash of the parts of ``run.json`` that decide bytes: config, plan, model files (not software versions)."""
    deciding = {name: record[name] for name in ("config", "plan_sha256", "models", "device_type")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two nested configs differ, a line each: ``name: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        lines = [differences(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in names]
        return [line for part in lines for line in part]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


def _entries(folder: Path, suffix: str) -> Iterator[os.DirEntry[str]]:
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                yield entry
