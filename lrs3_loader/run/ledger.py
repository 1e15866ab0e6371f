"""The ledger of a shard: the record of its samples and rejects that makes it published."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import Store

REPAIR = "run the extraction again with --repair"
LEDGER_FOLDER = "ledger"
TAR_FOLDER = "shards"
_DIGITS = 8  # of a checksum
_NO_MEMBER = "-" * _DIGITS
_NO_FIGURE = float("nan")
_LEDGER = {
    "shard": str,
    "run": str,
    "sha256": str,
    "num_bytes": int,
    "samples": [(str, int)],
    "rejects": [(str, str, str)],
    "timings": {str: float},
    "provenance": {"software?": {str: str}, "device?": str, "rank?": int, "started_at?": str, "finished_at?": str},
    "generation?": int,
    "checksums?": {str: str},
    "figures?": {str: str},
    "figures_version?": int,
}


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
    generation: int = 0  # how often the shard was replaced by another; part of the tar's name
    checksums: dict[str, str] = field(default_factory=dict)  # by extension: 8 digits per sample, see ``join_checksums``
    figures: dict[str, str] = field(default_factory=dict)  # by name: a number per sample, see ``join_figures``
    figures_version: int = 0  # of their definitions; 0: there are none

    @property
    def num_frames(self) -> int:
        """25 fps frames of all samples together."""
        return sum(frames for _, frames in self.samples)

    @property
    def reasons(self) -> Counter[str]:
        """Number of rejects by reason."""
        return Counter(reason for _, reason, _ in self.rejects)

    @cached_property
    def places(self) -> dict[str, int]:
        """Index in ``samples`` by key."""
        return {key: place for place, (key, _) in enumerate(self.samples)}

    def checksums_of(self, key: str) -> dict[str, str]:
        """Return the CRC-32 of each member of a sample by its extension; empty in ledgers of older versions."""
        start = _DIGITS * self.places[key]
        found = {extension: digits[start : start + _DIGITS] for extension, digits in self.checksums.items()}
        return {extension: digits for extension, digits in found.items() if digits != _NO_MEMBER}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, data: bytes, where: str, shard: str | None = None) -> Ledger:
        """Parse the contents of the ledger of a shard (None: of any), which messages call ``where``.

        Raises:
            RunError: the contents are not a ledger.
        """
        try:
            plain = decode_json(data)
            check_types(plain, _LEDGER)
            if shard is not None and plain["shard"] != shard:
                raise ValueError(f"it is of {plain['shard']!r:.100}")
            sizes = [plain["num_bytes"], plain.get("generation", 0), *(frames for _, frames in plain["samples"])]
            if min(sizes) < 0:
                raise ValueError("a size or length below 0")
            if any(not 0 <= seconds < 1e12 for seconds in plain["timings"].values()):
                raise ValueError("a timing that is no time")
            if any(key.count("/") != 2 for key, *_ in plain["samples"] + plain["rejects"]):
                raise ValueError("a sample that is not named SPLIT/SPEAKER/UTTERANCE")
            if any(len(digits) != _DIGITS * len(plain["samples"]) for digits in plain.get("checksums", {}).values()):
                raise ValueError(f"its checksums are not {_DIGITS} digits for each sample")
            num_spaces = max(len(plain["samples"]) - 1, 0)
            if any(text.count(" ") != num_spaces for text in plain.get("figures", {}).values()):
                raise ValueError("its figures are not a number for each sample")
        except ValueError as error:
            raise RunError(f"{where} is not a ledger ({error}); {REPAIR}") from error
        fields = {name: plain[name] for name in (name.rstrip("?") for name in _LEDGER) if name in plain}
        samples, rejects = (tuple(map(tuple, plain[name])) for name in ("samples", "rejects"))
        return cls(**fields | {"samples": samples, "rejects": rejects})


def join_checksums(samples: list[dict[str, str]]) -> dict[str, str]:
    """Join the checksums of the members of each sample (by extension) to one text per extension, in their order."""
    extensions = sorted({extension for sample in samples for extension in sample})
    return {name: "".join(sample.get(name, _NO_MEMBER) for sample in samples) for name in extensions}


def join_figures(samples: list[dict[str, float]]) -> dict[str, str]:
    """Join the figures of each sample (by name) to one text per name: decimal numbers in their order, ``nan`` for none.

    A text is parsed twenty times as fast as a list in JSON whose numbers are checked one by one.
    """
    names = sorted({name for sample in samples for name in sample})
    return {name: " ".join(repr(sample.get(name, _NO_FIGURE)) for sample in samples) for name in names}


def split_figures(text: str) -> np.ndarray:
    """Return the numbers [n] of a text of ``join_figures``, NaN where there is none.

    Raises:
        ValueError: it holds something else.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy before 2.3 only warns of what is no number
        try:
            numbers = np.fromstring(text, np.float64, sep=" ")
        except DeprecationWarning as error:
            raise ValueError(str(error)) from error
    if np.isinf(numbers).any():
        raise ValueError("a figure that is not finite")
    return numbers


def ledger_name(shard: str) -> str:
    """Return the name of a shard's ledger, relative to its run."""
    return f"{LEDGER_FOLDER}/{shard}.json"


def tar_name(shard: str, generation: int = 0) -> str:
    """Return the name of a shard's tar, relative to its run: another one each time that the shard is replaced."""
    return f"{TAR_FOLDER}/{shard}{f'.g{generation}' if generation else ''}.tar"


def shard_of_tar(name: str) -> str:
    """Return the shard of a tar of any generation, by the name of its file; "" if it is not a tar."""
    match = re.fullmatch(r"(.+?)(\.g[0-9]+)?\.tar", name)
    return match[1] if match else ""


def read_ledger(store: Store, shard: str) -> Ledger:
    """Read the ledger of a shard; ``FileNotFoundError`` if it is not published."""
    name = ledger_name(shard)
    return Ledger.parse(store.read(name), store.where(name), shard)
