"""The ledger of a shard: the record of its samples and rejects that makes it published."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import Store

LEDGER_FOLDER = "ledger"


@dataclass(frozen=True)
class Ledger:
    """The record of a published shard."""

    shard: str
    run: str  # hash of the run's config and plan
    sha256: str  # of the tar
    num_bytes: int  # of the tar
    samples: tuple[tuple[str, int], ...]  # (key, T) in the order of the tar
    rejects: tuple[tuple[str, str, str], ...]  # (key, reason, message)
    timings: dict[str, float]  # seconds per stage
    provenance: dict[str, Any]  # software, device and rank that made it, and the time

    @property
    def num_frames(self) -> int:
        """25 fps frames of all samples together."""
        return sum(frames for _, frames in self.samples)

    @property
    def reasons(self) -> Counter[str]:
        """Number of rejects by reason."""
        return Counter(reason for _, reason, _ in self.rejects)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read a ledger file; see ``parse``. ``FileNotFoundError`` if there is none."""
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, where: str) -> Ledger:
        """Parse the contents of a ledger file, which messages call ``where``.

        Raises:
            RunError: the contents are not a ledger.
        """
        try:
            plain = json.loads(data)
            return cls(
                shard=str(plain["shard"]),
                run=str(plain["run"]),
                sha256=str(plain["sha256"]),
                num_bytes=int(plain["num_bytes"]),
                samples=tuple((str(key), int(frames)) for key, frames in plain["samples"]),
                rejects=tuple((str(key), str(reason), str(text)) for key, reason, text in plain["rejects"]),
                timings=dict(plain["timings"]),
                provenance=dict(plain["provenance"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise RunError(f"{where} is not a ledger ({error}); delete it and run the extraction again") from error


def ledger_name(shard: str) -> str:
    """Return the name of a shard's ledger, relative to its run."""
    return f"{LEDGER_FOLDER}/{shard}.json"


def read_ledger(store: Store, shard: str) -> Ledger:
    """Read the ledger of a shard; ``FileNotFoundError`` if it is not published."""
    name = ledger_name(shard)
    return Ledger.parse(store.read(name), store.where(name))
