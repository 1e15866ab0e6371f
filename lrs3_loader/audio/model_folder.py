"""The files of a speech encoder in a Hugging Face model folder. Imports no torch: ``assets check`` should be quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
#: In the order in which transformers prefers them. An index lists the files of a checkpoint that was split.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files that transformers loads from a model folder.

    Raises:
        RunError: the folder has no config.json or no weights.
        OSError, ValueError, KeyError, TypeError: the index of a split checkpoint is damaged.
    """
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is no Hugging Face model folder: it has no config.json (pass `--hubert FOLDER`)")
    for file in WEIGHT_FILES:
        path = folder / file
        if path.is_file():
            return [folder / part for part in parts_of_index(path)] if path.suffix == ".json" else [path]
    raise RunError(f"{folder} holds no weights of a speech encoder (looked for {', '.join(WEIGHT_FILES)})")


def parts_of_index(path: Path) -> list[str]:
    """Return the names of the weight files that an index lists, sorted."""
    return sorted(set(dict(read_settings(path)["weight_map"]).values()))


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; raises ``ValueError`` for anything else."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return settings
