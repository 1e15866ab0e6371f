"""All that a training needs to go on, and a measurement to begin, in one file that is there whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write
from lrs3_loader.io.safe_load import load_plain
from lrs3_loader.syncnet.model import SyncNetModel

CHECKPOINT_FILE = "checkpoint.pt"
_FORMAT = "lrs3_loader syncnet 1"


@dataclass(frozen=True)
class SyncNetCheckpoint:
    """Plain values and tensors only: it is read without unpickling anything else."""

    model: dict[str, Any]  # state of the network
    optimizer: dict[str, Any]  # state of AdamW
    stream: dict[str, Any]  # position of the ``ShardStream``: which batches of which epoch are done
    step: int  # optimiser steps taken
    evaluated_step: int  # step of the last evaluation; -1: none yet
    config: dict[str, Any]  # ``TrainConfig``
    hubert_width: int
    features: dict[str, Any]  # what made the features it was trained on
    speakers: list[str]  # it was trained on, sorted

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, **{item.name: getattr(self, item.name) for item in fields(self)}}, buffer)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> SyncNetCheckpoint:
        """Read one, onto the CPU.

        Raises:
            RunError: there is none, or the file is damaged or something else.
        """
        try:
            plain = load_plain(path)
        except OSError as error:
            raise RunError(f"cannot read the checkpoint {path}: {error.strerror}") from error
        except ValueError as error:
            raise RunError(f"{path} is damaged or no checkpoint of train-syncnet") from error
        if not isinstance(plain, dict) or plain.pop("format", None) != _FORMAT:
            raise RunError(f"{path} is no checkpoint of train-syncnet (of this version)")
        return cls(**plain)

    def network(self, device: torch.device | str = "cpu") -> SyncNetModel:
        """The trained network, on a device."""
        model = SyncNetModel(self.hubert_width, int(self.config["width"]))
        model.load_state_dict(self.model)
        return model.to(device).eval()


def describe_features(record: Mapping[str, Any]) -> dict[str, Any]:
    """From a run's ``run.json``: what a network can only be used on if it was trained on the same."""
    models = record.get("models", {})
    speech, face = models.get("speech", {}), models.get("face_model", {})
    regression = record.get("config", {}).get("regression", {})
    return {
        "speech": {name: speech.get(name) for name in ("model", "sha256", "layer", "width")},
        "face_model": {name: face.get(name) for name in ("name", "sha256")},
        "idexp": regression.get("idexp", "fit"),
    }
