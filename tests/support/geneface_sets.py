"""Sets as other people's GeneFace writes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lrs3_loader.interop.geneface.indexed import INDEX_BYTES


def stranger(number: int = 0, num_frames: int = 40, **changes: Any) -> dict[str, Any]:
    """An item as GeneFace's own binariser writes it: numpy's own pickles, f0 [T, 1], sound a little longer."""
    rng = np.random.default_rng(number)
    item = {
        "mel": rng.normal(size=(2 * num_frames + 3, 80)).astype(np.float32),
        "f0": rng.uniform(size=(2 * num_frames + 3, 1)),
        "coeff": rng.normal(size=(num_frames, 257)).astype(np.float32),
        "lm68": rng.uniform(0, 224, size=(num_frames, 68, 2)).astype(np.float32),
        "lm5": np.zeros((num_frames, 5, 2), dtype=np.float32),
        "idexp_lm3d": rng.normal(size=(num_frames, 68, 3)).astype(np.float32),
        "spk_id": "a_b.c",
        "spk_idx": np.int64(3),
        "item_id": f"a_b.c_{number:05d}",
        "hubert": rng.normal(size=(2 * num_frames - 2, 32)).astype(np.float32),
    }
    return {name: value for name, value in (item | changes).items() if value is not None}


def write_set(folder: Path, items: list[bytes], meta: dict[str, Any] | None = None, **index: Any) -> None:
    """A ``train.data`` as other people's builders write it; ``index`` overrides what its index says."""
    offsets = [INDEX_BYTES]
    for item in items:
        offsets.append(offsets[-1] + len(item))
    head = pickle.dumps({"offsets": offsets, "id2pos": {}, "meta": meta or {"chunk_begin": [0], "gzip": False}} | index)
    folder.mkdir(exist_ok=True)
    with open(folder / "train.data", "wb") as file:
        file.write(len(head).to_bytes(32, "little") + head)
        file.seek(INDEX_BYTES)
        file.writelines(items)


def write_old_set(folder: Path, items: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, items)]).tolist()
    folder.mkdir(exist_ok=True)
    (folder / "train.data").write_bytes(b"".join(items))
    with open(folder / "train.idx", "wb") as file:
        np.save(file, {"offsets": offsets})  # type: ignore[arg-type]
