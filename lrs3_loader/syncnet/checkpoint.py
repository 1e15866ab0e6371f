"""The checkpoint of a lip-sync training, a file that is written atomically."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import write_result
from lrs3_loader.io.safe_load import load_plain
from lrs3_loader.syncnet.model import SyncNetModel

CHECKPOINT_FILE = "checkpoint.pt"
_FORMAT = "lrs3_loader syncnet 1"


@dataclass(frozen=True)
class SyncNetCheckpoint:
    """The state of a training: plain values and tensors, so that loading unpickles nothing else."""

    model: dict[str, Any]  # state_dict of the network
    optimizer: dict[str, Any]  # state_dict of AdamW
    stream: dict[str, Any]  # state_dict of the ``ShardStream``
    step: int  # optimiser steps so far
    evaluated_step: int  # step of the last evaluation, or -1
    config: dict[str, Any]  # ``TrainConfig``
    hubert_width: int
    features: dict[str, Any]  # see ``feature_models``
    speakers: list[str]  # speakers of the training clips, sorted

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, **{item.name: getattr(self, item.name) for item in fields(self)}}, buffer)
        with write_result(path) as file:
            file.write(buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> SyncNetCheckpoint:
        """Load a checkpoint onto the CPU.

        Raises:
            RunError: the file is missing, damaged or not a checkpoint.
        """
        try:
            plain = load_plain(path)
        except OSError as error:
            raise RunError(f"cannot read the checkpoint {path}: {error.strerror}") from error
        except ValueError as error:
            raise RunError(f"{path} is damaged or not a checkpoint of train-syncnet") from error
        if not isinstance(plain, dict) or plain.pop("format", None) != _FORMAT:
            raise RunError(f"{path} is not a checkpoint of train-syncnet (of this version)")
        return cls(**plain)

    def network(self, device: torch.device | str = "cpu") -> SyncNetModel:
        """Return the trained network in evaluation mode."""
        model = SyncNetModel(self.hubert_width, int(self.config["width"]))
        model.load_state_dict(self.model)
        return model.to(device).eval()


def feature_models(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the models in ``run.json`` that must be those of the training when a network is used on a run."""
    models = record.get("models", {})
    speech, face = models.get("speech", {}), models.get("face_model", {})
    regression = record.get("config", {}).get("regression", {})
    return {
        "speech": {name: speech.get(name) for name in ("model", "sha256", "layer", "width")},
        "face_model": {name: face.get(name) for name in ("name", "sha256")},
        "idexp": regression.get("idexp", "fit"),
    }
