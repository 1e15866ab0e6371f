"""The smallest reader of GeneFace's binarised sets: written from the description of the format, sharing no code with
the package, and trusting what it reads, as GeneFace's own does. For files that the tests wrote themselves.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

FIRST_ITEM = 16 * 1024 * 1024


def read_set(folder: Path, prefix: str) -> list[dict[str, Any]]:
    """All items of ``<folder>/<prefix>.data``."""
    with open(folder / f"{prefix}.data", "rb") as file:
        length = int.from_bytes(file.read(32), "little")
        assert 32 + length < FIRST_ITEM
        index = pickle.loads(file.read(length))
        assert index["id2pos"] == {}
        assert index["meta"] == {"chunk_begin": [0], "gzip": False}
        offsets = index["offsets"]
        assert offsets[0] == FIRST_ITEM
        items = []
        for start, stop in pairwise(offsets):
            file.seek(start)
            items.append(pickle.loads(file.read(stop - start)))
        assert file.seek(0, 2) == offsets[-1]
    return items


def read_sizes(folder: Path, prefix: str) -> list[int]:
    return np.load(folder / f"sizes_{prefix}.npy", allow_pickle=True).tolist()


def read_speakers(folder: Path) -> dict[str, int]:
    return np.load(folder / "spk_id2spk_idx.npy", allow_pickle=True).tolist()


def ceil8(rows: int) -> int:
    return -(-rows // 8) * 8


def collate(items: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Pads as GeneFace's dataset does: everything to the longest mel, rounded up to a multiple of 8."""
    num_rows = ceil8(max(len(item["mel"]) for item in items))
    batch = {}
    for name, length in (("mel", num_rows), ("hubert", num_rows), ("f0", num_rows), ("idexp_lm3d", num_rows // 2)):
        first = items[0][name].reshape(len(items[0][name]), -1)
        batch[name] = np.zeros((len(items), length, first.shape[1]), dtype=first.dtype)
        for row, item in zip(batch[name], items, strict=True):
            row[: len(item[name])] = item[name].reshape(len(item[name]), -1)  # raises where it does not fit
    return batch
